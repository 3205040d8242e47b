"""The device mesh: which device stands where.

1. The mesh has three axes: data, fsdp, tensor. The batch is split over data and
   fsdp, parameters over fsdp and tensor; `marjax.parallel.rules` has the table.
2. Neighbours along tensor talk most, along data least. On TPUs the devices are
   laid out so that axes follow the links of the chip's torus; of several slices
   each is a whole number of steps along data, the only axis that then crosses
   the slower network between them.

       2 slices of 4 devices, "fsdp"      data 0   | slice 0: 0 1 2 3 | fsdp
                                          data 1   | slice 1: 4 5 6 7 |
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from marjax.experiment import Experiment, MeshConfig
from marjax.schema import check

AXES = ("data", "fsdp", "tensor")


def mesh_for(experiment: Experiment, devices: Sequence | None = None) -> Mesh:
  """The configured mesh; `devices` are all there are unless given.

  Raises:
    ValueError: it does not cover the devices, or cannot share out the batch.
  """
  devices = jax.devices() if devices is None else list(devices)
  num_slices = count_slices(devices)
  mesh = make_mesh(*sizes_of(experiment.mesh, num_slices), devices=devices)
  training = experiment.training
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  if training.batch_size % (parts * training.num_microbatches):
    microbatches = training.num_microbatches
    raise ValueError(
      f"training.batch_size is {training.batch_size}; expected a multiple of"
      f" {parts * microbatches}, the devices that the mesh splits a batch over"
      f" ({parts}) times training.num_microbatches ({microbatches})."
    )
  return mesh


def sizes_of(config: MeshConfig, num_slices: int = 1) -> tuple[int, int, int]:
  """(data, fsdp, tensor) of a configuration; -1 for all that are left."""
  match config.preset:
    case "dp":
      return (-1, 1, 1)
    case "fsdp":
      return (num_slices, -1, 1)
    case "fsdp+tensor":
      return (num_slices, -1, config.tensor)
  return (config.data, config.fsdp, config.tensor)


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence | None = None,
) -> Mesh:
  """A mesh of the given sizes; one of them may be -1, "all that are left".

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or the data
      axis cannot be shared out among several slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [data, fsdp, tensor]
  fixed = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and fixed and len(devices) % fixed == 0:
    sizes[sizes.index(-1)] = len(devices) // fixed
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not cover the"
      f" {len(devices)} devices; choose sizes whose product is"
      f" {len(devices)}, with one -1 for the rest."
    )
  num_slices = count_slices(devices)
  if sizes[0] % num_slices:
    raise ValueError(
      f"mesh data={sizes[0]} cannot be shared out among {num_slices} slices;"
      f" expected a multiple of {num_slices}: only the data axis crosses from"
      " slice to slice."
    )
  arranged = _arranged(sizes, devices, num_slices)
  return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 3)


def check_mesh(mesh: Any, name: str = "mesh") -> Mesh:
  """A mesh with the axes that everything here is split over.

  Raises:
    ValueError: it is none.
  """
  is_ours = isinstance(mesh, Mesh) and set(AXES) <= set(mesh.axis_names)
  axes = f" with axes {mesh.axis_names}" if isinstance(mesh, Mesh) else ""
  check(
    is_ours,
    f"{name} is of type {type(mesh).__name__}{axes}; expected a mesh with the"
    f" axes {', '.join(AXES)}, as marjax.parallel.mesh.make_mesh makes.",
  )
  return mesh


def host_mesh() -> Mesh:
  """One device in host memory, or the first where jax has none there."""
  try:
    devices = jax.devices("cpu")
  except RuntimeError:
    devices = jax.devices()
  return make_mesh(devices=devices[:1])


def count_slices(devices: Sequence) -> int:
  """How many TPU slices the devices are of; 1 for all else."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def _arranged(sizes: list[int], devices: list, num_slices: int) -> np.ndarray:
  """The devices in an array of these sizes, neighbours near each other."""
  from jax.experimental import mesh_utils

  if devices[0].platform != "tpu" or len(devices) == 1:
    return np.asarray(devices).reshape(sizes)
  if num_slices == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  data, *others = sizes
  return mesh_utils.create_hybrid_device_mesh(
    (data // num_slices, *others),
    (num_slices, 1, 1),
    devices,
    allow_split_physical_axes=True,
  )
