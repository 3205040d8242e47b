"""Where what is traced now will run, and how its arrays are split there.

Models name axes; a mesh and a table of rules, which others set, say where they
go.
"""

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


def platform() -> str:
  """What is traced now will run on this: "cpu", "gpu" or "tpu".

  The mesh tells, if one is set: it may be of chips that are not there.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.abstract_device is not None:
    return mesh.abstract_device.platform
  return jax.default_backend()


def is_split(axis: str | None = None) -> bool:
  """Whether what is traced now is for a mesh of several devices.

  `axis`: whether arrays are split along this logical one there.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or axis is None:
    return not mesh.empty and mesh.size > 1
  group = dict(nn.get_logical_axis_rules()).get(axis) or ()
  names = (group,) if isinstance(group, str) else group
  return any(mesh.shape[name] > 1 for name in names)


def has_kernels() -> bool:
  """Whether what is traced now may run on GPUs that kernels of ours are for.

  They were tried on compute capability 9.0; from 8.0 on there are products in
  bfloat16. GPUs of other makers get the plain code when it is lowered.
  """
  return platform() == "gpu" and all(
    float(device.compute_capability) >= 8.0
    for device in jax.local_devices()
    if device.platform == "gpu" and "cuda" in device.client.platform_version
  )


def constrained(x, axes: tuple[str | None, ...]):
  """On a mesh: x, placed by the logical names of its axes.

  Raises:
    ValueError: two of them go to one mesh axis.
  """
  table = dict(nn.get_logical_axis_rules())
  groups = [table.get(axis) or () for axis in axes]
  used = [
    axis
    for group in groups
    for axis in ((group,) if isinstance(group, str) else group)
  ]
  if len(used) != len(set(used)):
    raise ValueError(
      f"an array has logical axes {axes}, two of which go to one mesh axis;"
      " change the table of rules."
    )
  return nn.with_logical_constraint(x, axes)


def by_device(function, axes_in, axes_out):
  """A function that each device of a mesh computes of its own parts.

  For what XLA cannot split by itself, kernels.

  Args:
    function: of arrays or trees of them.
    axes_in, axes_out: logical names of the axes of what it takes and gives, a
      tuple for each array, in trees of the same form.
  """
  if not is_split():
    return function
  table = dict(nn.get_logical_axis_rules())

  def specs(tree):
    return jax.tree.map(
      lambda axes: PartitionSpec(*(table.get(axis) for axis in axes)),
      tree,
      is_leaf=is_axes,
    )

  return jax.shard_map(
    function,
    in_specs=specs(axes_in),
    out_specs=specs(axes_out),
    check_vma=False,
  )


def is_axes(tree) -> bool:
  """Whether a tree is the logical names of one array's axes."""
  return type(tree) is tuple and all(
    axis is None or isinstance(axis, str) for axis in tree
  )


def by_batch(x, last: str | None = None, *, before: int = 0):
  """On a mesh: the leading axis split as the batch is, the last as `last` says.

  `before` axes come before that of the batch.

  Said of all that flows between split parameters. Otherwise XLA may gather the
  batch instead of the parameters; and where an axis that parameters split is
  cut up, it has been seen to mix up images on a mesh of three axes.
  """
  if x.ndim == before + 1:
    return x
  between = (None,) * (x.ndim - before - 2)
  return constrained(x, (*(None,) * before, "batch", *between, last))
