"""The kinds of sets of images: a data source, an .npz file, saved images.

Each gives rows at ascending indices, in the set's order. Files are read ahead
of use by threads, at most AHEAD of them; an .npz in one pass.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from marjax import outputs
from marjax.data import crops, decoding
from marjax.data.sources import Source
from marjax.evaluate import archives, saved
from marjax.schema import check

Row = tuple[UInt8[np.ndarray, "H W C"], int]

NUM_THREADS = max(4, min(16, os.cpu_count() or 1))
"""That read image files ahead. Large images are decoded in parallel; of small
ones most of the work is Python's, which one thread does at a time."""

AHEAD, PART = 64, 4
"""Images that they read ahead of use, at most, and that one reads at a time:
handing over a small image alone costs a sixth of its decoding."""

DAMAGED = "copy the set again, or save its images again."

AS_THEY_ARE = "none: the images are of one size"


class Pictures:
  """The images of a data source.

  Args:
    source: of images of any size.
    image_size: side of the centre crop; None: all must have one size.
    channels: they have. description: "" takes the source's.

  Raises:
    ValueError: sizes differ, or a file is broken: it is named.
  """

  def __init__(
    self,
    source: Source,
    image_size: int | None,
    channels: int,
    description: str = "",
  ):
    self._source, self._size = source, image_size
    self.description = description or source.description
    self.num_classes = len(source.class_names)
    if image_size is None:
      self.crop = AS_THEY_ARE
      height, width, _ = source[0]["image"].shape
      self.shape = height, width, channels
    else:
      self.crop = f"centre crop to {image_size}²"
      self.shape = image_size, image_size, channels

  def __len__(self) -> int:
    return len(self._source)

  def rows(self, indices: Int[np.ndarray, " N"]) -> Iterator[Row]:
    """Images and labels at ascending indices; errors as of the class."""
    if self._size is None:
      for _ in _ahead(self._check_size, indices.tolist()):
        pass
    yield from _ahead(self._row, indices.tolist())

  def _row(self, index: int) -> Row:
    example = self._source[index]
    image, label = example["image"], example["label"]
    if self._size is not None:
      image = crops.centre_crop(image, self._size)
    self._check(index, image.shape)
    return image, label

  def _check_size(self, index: int) -> None:
    header = self._source.header(index)
    if header is not None:
      self._check(index, (header.height, header.width, self.shape[2]))

  def _check(self, index: int, shape: tuple[int, ...]) -> None:
    if tuple(shape) != self.shape:
      raise ValueError(
        f"{self._source.name(index)} is {sides(shape)}, and"
        f" {self._source.name(0)} is {sides(self.shape)}; expected images of"
        " one size: pass --image_size N to cut the middle square out of each, N"
        " pixels wide, or leave it out of the set."
      )


class ArchiveImages:
  """The images of an .npz file; errors as of `archives.Archive`."""

  crop = AS_THEY_ARE

  def __init__(self, path: Path):
    self._archive = archives.Archive(path)
    self.shape, self.crc = self._archive.shape, self._archive.crc
    labels = self._archive.labels
    self.num_classes = 0 if labels is None else int(labels.max()) + 1
    self.description = f"npz {outputs.shown(path.name)}: {len(self)} images"

  def __len__(self) -> int:
    return len(self._archive)

  def rows(self, indices: Int[np.ndarray, " N"]) -> Iterator[Row]:
    """Images and labels at ascending indices, in one pass."""
    labels = self._archive.labels
    labels = itertools.repeat(0) if labels is None else labels[indices].tolist()
    return zip(self._archive.rows(indices), labels, strict=False)


class SavedImages:
  """What `saving.Writer` wrote: PNG files or array_record.

  Raises:
    ValueError: it is damaged, or not whole. FileNotFoundError: a part is
      missing.
  """

  crop = AS_THEY_ARE

  def __init__(self, folder: Path):
    self._folder, self._saved = folder, saved.read_settings(folder)
    settings, name = self._saved, outputs.shown(folder)
    shards = range(settings.num_shards)
    paths = [folder / f"{settings.shard_name(k)}.json" for k in shards]
    missing = [path for path in paths if not path.is_file()]
    check(
      not missing,
      f"{name} lacks {len(missing)} of its {len(paths)} shards, the first"
      f" {(missing or paths)[0].stem}; expected a whole set: give the command"
      " that saved the images again, it goes on.",
    )
    self._labels = np.concatenate(
      [
        saved.read_labels(path, len(settings.span(k)))
        for k, path in enumerate(paths)
      ]
    )
    self.shape = settings.shape
    self.num_classes = int(self._labels.max()) + 1
    self.description = (
      f"saved {outputs.shown(folder.name)}: {len(self)} images as"
      f" {settings.kind}"
    )

  def __len__(self) -> int:
    return self._saved.num_images

  def rows(self, indices: Int[np.ndarray, " N"]) -> Iterator[Row]:
    """Images and labels at ascending indices."""
    labels = self._labels[indices].tolist()
    if self._saved.kind == "png":
      images = _ahead(self._png, indices.tolist())
    else:
      images = self._records(indices)
    return zip(images, labels, strict=True)

  def _png(self, index: int) -> np.ndarray:
    path = self._folder / self._saved.file_name(index)
    mode = "L" if self.shape[-1] == 1 else "RGB"
    image = decoding.read(path, mode)
    check(
      image.shape == self.shape,
      f"{outputs.shown(path)} is {sides(image.shape)}; expected"
      f" {sides(self.shape)}: {DAMAGED}",
    )
    return image

  def _records(self, indices: Int[np.ndarray, " N"]) -> Iterator[np.ndarray]:
    from array_record.python.array_record_module import ArrayRecordReader

    dtype = self._saved.record_type
    by_shard = itertools.groupby(
      indices.tolist(), lambda index: index // self._saved.shard_size
    )
    for shard, group in by_shard:
      name = f"{self._saved.shard_name(shard)}.array_record"
      path, start = self._folder / name, self._saved.span(shard).start
      if not path.is_file():
        raise FileNotFoundError(f"{outputs.shown(path)} is missing; {DAMAGED}")
      try:
        reader = ArrayRecordReader(str(path))
        for index in group:
          (record,) = reader.read([index - start])
          yield np.frombuffer(record, dtype)["image"][0]
      except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
          f"{outputs.shown(path)} is damaged ({outputs.reason(error)});"
          f" {DAMAGED}"
        ) from error


def sides(shape: tuple[int, ...]) -> str:
  """Width, height and colours, in words."""
  height, width, channels = shape
  return f"{width} × {height} in {'grey' if channels == 1 else 'RGB'}"


def _ahead(function: Callable, items: list) -> Iterator:
  """function(item) of each, in order, computed ahead by threads."""
  pool, waiting = ThreadPoolExecutor(NUM_THREADS), deque()
  try:
    for start in range(0, len(items), PART):
      part = items[start : start + PART]
      waiting.append(pool.submit(lambda part: [*map(function, part)], part))
      if len(waiting) == AHEAD // PART:
        yield from waiting.popleft().result()
    while waiting:
      yield from waiting.popleft().result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
