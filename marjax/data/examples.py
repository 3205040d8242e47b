"""A source's images at the configured size, checked, and kept when small.

1. `gather(indices)` reads those examples, crops them to size (`crops`), and
   checks channels and labels.
2. A set that fits into MEMORY_LIMIT is kept as uint8 once read, so from the
   second epoch on an example costs a copy: half a microsecond for a digit.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

from marjax.data import crops, decoding, sources
from marjax.experiment import DataConfig

MEMORY_LIMIT = 256 * 2**20
"""Bytes of pixels that one split may keep in memory."""


class Columns(NamedTuple):
  """Examples side by side."""

  images: UInt8[np.ndarray, "N H W C"]
  labels: Int32[np.ndarray, " N"]
  ids: Int64[np.ndarray, " N"]


class Examples:
  """The examples of one split; errors as in `sources.open_source`.

  Attributes:
    source: where they are read.
  """

  def __init__(
    self, config: DataConfig, split: str, names: frozenset[str] | None = None
  ):
    self._config, self._split = config, split
    self.source = sources.open_source(config, split, names)
    size, count = config.image_size, len(self.source)
    shape = (count, size, size, config.channels)
    self._kept = None
    if math.prod(shape) <= MEMORY_LIMIT:
      self._is_kept = np.zeros(count, bool)
      self._kept = Columns(
        np.empty(shape, np.uint8),
        np.empty(count, np.int32),
        np.empty(count, np.int64),
      )

  def __len__(self) -> int:
    return len(self.source)

  def gather(self, indices: Int[np.ndarray, " N"]) -> Columns:
    """The examples at `indices`, in that order. Threads may call it at once.

    Raises:
      ValueError: an image cannot be read or has other channels than
        config.channels, or a label is not in 0 .. config.num_classes - 1.
    """
    if self._kept is None:
      return self._read(indices)
    missing = indices[~self._is_kept[indices]]
    if missing.size:
      for kept, read in zip(self._kept, self._read(missing), strict=True):
        kept[missing] = read
      # Last, so that another thread never sees an example before its pixels.
      self._is_kept[missing] = True
    return Columns(*(column[indices] for column in self._kept))

  def _read(self, indices: Int[np.ndarray, " N"]) -> Columns:
    read = []
    for index in indices.tolist():
      example = self.source[index]
      self._check(example, index)
      image = crops.centre_crop(example["image"], self._config.image_size)
      read.append((image, example["label"], example["id"]))
    images, labels, ids = zip(*read, strict=True)
    return Columns(
      np.stack(images), np.array(labels, np.int32), np.array(ids, np.int64)
    )

  def _check(self, example: dict, index: int) -> None:
    config, where = self._config, f"image {index} of split {self._split!r}"
    shape, dtype = example["image"].shape, example["image"].dtype
    if len(shape) != 3 or shape[2] != config.channels or dtype != np.uint8:
      raise ValueError(
        f"{where} is {dtype} of shape {shape}; expected uint8 [height, width,"
        f" {config.channels}]: set data.channels to what the dataset has, or"
        " choose another."
      )
    decoding.check_sides(shape[1], shape[0], where)
    # Without classes (data.num_classes = 0) all labels are 0.
    highest = max(1, config.num_classes) - 1
    if not 0 <= example["label"] <= highest:
      raise ValueError(
        f"{where} has label {example['label']}; expected 0 .. {highest}: set"
        " data.num_classes to the classes of the dataset, or choose a split"
        " with labels."
      )
