"""A set of images, read as batches: of a folder, an .npz, a data source.

    where                    what is read
    FOLDER                   CLASS/*.png, jpg, ... below it, or images in it
    FOLDER of --save         its PNG or array_record shards, with labels
    FILE.npz                 arr_0, uint8 [N, H, W, C], and arr_1 (`archives`)
    a DataConfig             any data source, cropped as for training

1. Opening a set tells its size and number; files whose sizes differ are named,
   by their headers, before any network runs, unless a crop is asked for.
2. `choose` takes N of M images: one, drawn by a seed, of each of N equal parts.
   So a set sorted by class gives every class its share, and one that goes
   through the classes in turn does too. `others` are those not chosen.
3. `batches` reads them in the set's order, ahead of use by threads where they
   are files. All batches have one size, the last is padded; memory is that of
   a few batches, whatever the number of images.
"""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt8

from marjax import outputs
from marjax.data import sources
from marjax.data.folders import FolderSource
from marjax.data.trees import open_tree
from marjax.evaluate import saved
from marjax.evaluate.set_kinds import (
  ArchiveImages,
  Pictures,
  Row,
  SavedImages,
  sides,
)
from marjax.experiment import DataConfig
from marjax.schema import check

MOST_CLASSES = 2**31 - 1

LOOKED_AT = 100
"""Images by whose pixels sets of the same names are told apart."""


class Batch(NamedTuple):
  """Some images of a set.

  Attributes:
    images: of what is padding, zeros.
    index: of each, counted from 0 among those that are read.
    is_real: false of padding.
    labels: classes; -1 of padding, and where the set has none.
  """

  images: UInt8[np.ndarray, "B H W C"]
  index: Int32[np.ndarray, " B"]
  is_real: Bool[np.ndarray, " B"]
  labels: Int32[np.ndarray, " B"]


@runtime_checkable
class ImageSet(Protocol):
  """Images of one size.

  Attributes:
    description: kind, place and number, for people and files of statistics.
    crop: what was done to bring them to their size.
    shape: (H, W, C).
    num_classes: 0 where they have none, or it is not known of which.
  """

  description: str
  crop: str
  shape: tuple[int, int, int]
  num_classes: int

  def __len__(self) -> int: ...

  def rows(self, indices: Int[np.ndarray, " N"]) -> Iterator[Row]:
    """Images and labels at ascending indices."""
    ...


def open_set(
  where: Path | DataConfig,
  image_size: int | None = None,
  channels: int = 3,
  split: str = "",
) -> ImageSet:
  """The images at a place; see the module's docstring.

  Args:
    where: a path of this machine, or a data source.
    image_size: side of the centre crop of a folder's images.
    channels: 1 or 3, to which a folder's images are converted.
    split: of a data source; "" for its train_split.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: it is no set of images, or cannot be cropped.
  """
  if isinstance(where, DataConfig):
    source = sources.open_source(where, split or where.train_split)
    opened = Pictures(source, where.image_size, where.channels)
    opened.num_classes = where.num_classes  # a source need not name them
    return opened
  check_there(where)
  if where.is_dir() and not saved.is_saved(where):
    source = _open_folder(where, channels)
    return Pictures(source, image_size, channels, _described(where, source))
  check(
    where.is_dir() or where.suffix == ".npz",
    f"{outputs.shown(where)} is no folder and no .npz file; expected images as"
    " one of these.",
  )
  opened = SavedImages(where) if where.is_dir() else ArchiveImages(where)
  check(
    image_size is None or opened.shape[:2] == (image_size, image_size),
    f"{outputs.shown(where)} has images of {sides(opened.shape)}, and"
    f" image_size is {image_size}; expected images of that size, for only files"
    " of a folder or a data set are cropped.",
  )
  return opened


def check_there(where: Path) -> None:
  """Raises FileNotFoundError if nothing is at a place."""
  if not where.exists():
    raise FileNotFoundError(
      f"{outputs.shown(where)} does not exist; expected a folder of images or"
      " an .npz file."
    )


def choose(
  total: int, count: int, seed: int = 0
) -> Int64[np.ndarray, " count"]:
  """`count` of the indices 0 .. total - 1, ascending: one of each equal part.

  Raises:
    ValueError: there are not so many.
  """
  check(
    0 < count <= total,
    f"{count} images are asked for of {total}; expected 1 to {total}.",
  )
  edges = np.arange(count + 1, dtype=np.int64) * total // count
  # Raw bits are the same in every version of numpy.
  bits = np.random.PCG64(seed).random_raw(count)
  drawn = bits % np.diff(edges).astype(np.uint64)
  return edges[:-1] + drawn.astype(np.int64)


def others(
  total: int, chosen: Int[np.ndarray, " N"], count: int, seed: int = 0
) -> Int64[np.ndarray, " count"]:
  """`count` of the indices that were not chosen; errors as of `choose`."""
  is_left = np.ones(total, bool)
  is_left[chosen] = False
  left = np.flatnonzero(is_left)
  return left[choose(len(left), count, seed)]


def identity(images: ImageSet) -> str:
  """Its description, and a hash of its size and of the pixels of 100 images.

  So a set that was made anew under the same names has another, and one of which
  a few images were changed may not. An .npz has a checksum of all its images,
  which is taken instead.

  Raises:
    ValueError: an image cannot be read; it is named.
  """
  if isinstance(images, ArchiveImages):
    return f"{images.description}, pixels {images.crc:08x}"
  some = choose(len(images), min(len(images), LOOKED_AT))
  pixels = hashlib.sha256(repr(images.shape).encode())
  for image, _ in images.rows(some):
    pixels.update(np.ascontiguousarray(image).data)
  return f"{images.description}, pixels {pixels.hexdigest()[:8]}"


def batches(
  images: ImageSet, indices: Int[np.ndarray, " N"], batch_size: int
) -> Iterator[Batch]:
  """The images at ascending indices, `batch_size` at a time.

  Raises:
    ValueError: an image cannot be read, or has another size; it is named.
  """
  rows = images.rows(indices)
  for start in range(0, len(indices), batch_size):
    count = min(batch_size, len(indices) - start)
    batch = Batch(
      images=np.zeros((batch_size, *images.shape), np.uint8),
      index=np.arange(start, start + batch_size, dtype=np.int32),
      is_real=np.arange(batch_size) < count,
      labels=np.full(batch_size, -1, np.int32),
    )
    for row, (image, label) in enumerate(itertools.islice(rows, count)):
      batch.images[row] = image
      if images.num_classes:
        batch.labels[row] = label
    yield batch


def _open_folder(folder: Path, channels: int) -> FolderSource:
  """Image files in class folders, or without."""
  listing = open_tree(folder).listed("")
  has_images, has_classes = bool(listing.images), bool(listing.folders)
  check(
    not (has_images and has_classes),
    f"{outputs.shown(folder)} holds images and folders side by side; expected"
    " images alone, or one folder for each class: move the others away.",
  )
  config = DataConfig(
    source="folder",
    image_size=1,  # unused: cropped here
    num_classes=MOST_CLASSES if has_classes else 0,
    channels=channels,
    data_dir=str(folder),
    train_split=".",
    test_split=".",
  )
  return FolderSource(config, ".")


def _described(folder: Path, source: FolderSource) -> str:
  """Its name, and what is in it."""
  classes = len(source.class_names)
  words = [
    f"folder {outputs.shown(folder.resolve().name)}: {len(source)} images"
  ]
  words += [f"{classes} classes"] * bool(classes)
  words += [f"passed over {n} {kind}" for kind, n in source.skipped.items()]
  return ", ".join(words)
