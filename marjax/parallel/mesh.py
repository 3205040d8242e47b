"""The device mesh and the one table that places logical axes on it.

1. The mesh has three axes: data, fsdp, tensor. The batch is split over data and
   fsdp, parameters over fsdp and tensor.
2. `RULES` maps every logical axis name to a mesh axis (or to none).
3. `shardings` turns boxed abstract parameters into NamedShardings; two axes of
   one array on the same mesh axis, or sizes that do not divide, are errors.
"""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

RULES = (
  ("batch", ("data", "fsdp")),
  ("sequence", None),
  ("layers", None),
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("head_dim", None),
  ("mlp", "tensor"),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None):
  """A mesh of the given sizes; one of them may be -1, "all that are left".

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [data, fsdp, tensor]
  fixed = int(np.prod([size for size in sizes if size != -1]))
  if sizes.count(-1) == 1 and fixed and len(devices) % fixed == 0:
    sizes[sizes.index(-1)] = len(devices) // fixed
  if int(np.prod(sizes)) != len(devices):
    raise ValueError(
      f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not cover the"
      f" {len(devices)} devices; choose sizes whose product is"
      f" {len(devices)}, with one -1 for the rest."
    )
  return Mesh(
    np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3
  )


def host_mesh() -> Mesh:
  """One device in host memory, or the first where jax has none there."""
  try:
    devices = jax.devices("cpu")
  except RuntimeError:
    devices = jax.devices()
  return make_mesh(devices=devices[:1])


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis over all data-parallel devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def shardings(boxed_tree, mesh: Mesh):
  """NamedShardings of a tree of boxed abstract arrays, by `RULES`.

  Returns:
    The same tree, unboxed, with a NamedSharding at each leaf.

  Raises:
    ValueError: a collision, or a size that its mesh axes do not divide.
  """
  specs = nn.get_partition_spec(boxed_tree)
  shapes = nn.unbox(boxed_tree)

  def place(path, logical, array):
    name = jax.tree_util.keystr(path)
    return NamedSharding(mesh, _spec(name, logical, array.shape, mesh))

  return jax.tree_util.tree_map_with_path(
    place, specs, shapes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
  )


def _spec(name, logical, shape, mesh) -> PartitionSpec:
  table = dict(RULES)
  axes = [table[axis] if axis else None for axis in logical]
  used = [axis for axis in axes if axis is not None]
  if len(used) != len(set(used)):
    raise ValueError(
      f"parameter {name} has logical axes {tuple(logical)}, two of which go to"
      " one mesh axis; change the table of rules."
    )
  for size, axis in zip(shape, axes, strict=False):
    if axis is not None and size % mesh.shape[axis]:
      raise ValueError(
        f"parameter {name} of shape {tuple(shape)} cannot be split over the"
        f" {mesh.shape[axis]} devices of mesh axis {axis!r}; choose a mesh"
        " size that divides it."
      )
  return PartitionSpec(*axes)
