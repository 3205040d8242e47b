"""The one table that places logical axes on the mesh.

1. Parameters, and everything that an array of training or generation is, have
   named axes; `RULES` says which mesh axis each name is split over.
2. `shardings` turns boxed abstract parameters into NamedShardings. What mirrors
   the parameters (averages, optimizer state) is placed like them.
3. Two axes of one array on the same mesh axis, or a size that its mesh axes do
   not divide, are errors; nothing is left whole silently.
4. `local_rows` and `global_batch`: a process reads the rows that its devices
   hold, and they become one array over all processes.
"""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

RULES = (
  # What flows through the model.
  ("batch", ("data", "fsdp")),
  ("sequence", None),
  ("features", None),
  # Parameters; heads and mlp also of what flows.
  ("layers", None),
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("head_dim", None),
  ("mlp", "tensor"),
)


def spec_of(
  logical: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, name: str
) -> PartitionSpec:
  """Where an array with these logical axes lives; `name` is for messages.

  Raises:
    ValueError: an axis that is not in the table, a collision, or a size that
      its mesh axes do not divide.
  """
  table = dict(RULES)
  unknown = [axis for axis in logical if axis and axis not in table]
  if unknown:
    raise ValueError(
      f"{name} has the logical axis {unknown[0]!r}; expected one of"
      f" {', '.join(table)}: add it to the table of rules."
    )
  axes = [table[axis] if axis else None for axis in logical]
  used = [axis for group in axes for axis in _as_tuple(group)]
  if len(used) != len(set(used)):
    raise ValueError(
      f"{name} has logical axes {tuple(logical)}, two of which go to one mesh"
      " axis; change the table of rules."
    )
  for size, group in zip(shape, axes, strict=False):
    parts = int(np.prod([mesh.shape[axis] for axis in _as_tuple(group)]))
    if size % parts:
      raise ValueError(
        f"{name} of shape {tuple(shape)} cannot be split over the {parts}"
        f" devices of mesh axis {group!r}; choose a mesh size that divides it."
      )
  return PartitionSpec(*axes)


def shardings(boxed_tree, mesh: Mesh):
  """NamedShardings of a tree of boxed abstract arrays, by `RULES`.

  Returns:
    The same tree, unboxed, with a NamedSharding at each leaf.

  Raises:
    ValueError: see `spec_of`.
  """
  specs = nn.get_partition_spec(boxed_tree)
  shapes = nn.unbox(boxed_tree)

  def place(path, logical, array):
    name = f"parameter {jax.tree_util.keystr(path)}"
    return NamedSharding(mesh, spec_of(tuple(logical), array.shape, mesh, name))

  return jax.tree_util.tree_map_with_path(
    place, specs, shapes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
  )


def placed(abstract: PyTree, where: PyTree) -> PyTree:
  """Abstract arrays with shardings; `where`: those, or one for all below."""
  return jax.tree.map(
    lambda sharding, tree: jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      tree,
    ),
    where,
    abstract,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis over all devices that share a batch."""
  return NamedSharding(mesh, PartitionSpec(dict(RULES)["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " N"]:
  """Rows of a global batch that this process's devices hold, ascending.

  Processes share rows where the tensor axis goes from one to another.
  """
  held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  spans = {rows.indices(batch_size)[:2] for (rows,) in held.values()}
  return np.concatenate([np.arange(*span) for span in sorted(spans)])


def global_batch(local: PyTree, mesh: Mesh) -> PyTree:
  """A tree of this process's rows, see `local_rows`, as arrays of all rows."""
  return jax.make_array_from_process_local_data(batch_sharding(mesh), local)


def _as_tuple(group: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if group is None:
    return ()
  return (group,) if isinstance(group, str) else group
