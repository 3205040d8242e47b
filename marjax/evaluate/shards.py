"""Writers of one shard of saved images, one for each kind.

Rows go to the disk as they come, so memory is that of a batch.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from marjax.evaluate.saved import Saving

OPTIONS = "group_size:1"
NUM_THREADS = 8


@runtime_checkable
class Shard(Protocol):
  """A shard that is being written."""

  def add(self, images: UInt8[np.ndarray, "N H W C"], index: int, labels):
    """Writes rows, of which the first is image `index` of the set."""
    ...

  def close(self) -> None:
    """What is left to be written."""
    ...


class PngFolder:
  """PNG files in a folder, encoded by several threads."""

  def __init__(self, path: Path, saving: Saving):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    self._path, self._saving = path, saving
    self._pool = ThreadPoolExecutor(NUM_THREADS)

  def add(self, images: UInt8[np.ndarray, "N H W C"], index: int, labels):
    """See `Shard`."""
    list(self._pool.map(self._write, images, range(index, index + len(images))))

  def close(self) -> None:
    """See `Shard`."""
    self._pool.shutdown()

  def _write(self, image: np.ndarray, index: int) -> None:
    from PIL import Image

    name = self._saving.file_name(index).rpartition("/")[2]
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    # The smallest files take six times as long for a tenth less.
    Image.fromarray(pixels).save(self._path / name, compress_level=1)


class Records:
  """An array_record file of `Saving.record_type`."""

  def __init__(self, path: Path, saving: Saving):
    from array_record.python.array_record_module import ArrayRecordWriter

    self._type = saving.record_type
    self._writer = ArrayRecordWriter(str(path), OPTIONS)

  def add(self, images: UInt8[np.ndarray, "N H W C"], index: int, labels):
    """See `Shard`."""
    records = np.empty(len(images), self._type)
    records["label"], records["image"] = labels, images
    records["id"] = np.arange(index, index + len(images))
    for record in records:
      self._writer.write(record.tobytes())

  def close(self) -> None:
    """See `Shard`."""
    self._writer.close()


class Plain:
  """The bytes of the images, one after the other."""

  def __init__(self, path: Path, saving: Saving):
    self._file = open(path, "wb")

  def add(self, images: UInt8[np.ndarray, "N H W C"], index: int, labels):
    """See `Shard`."""
    self._file.write(np.ascontiguousarray(images).data)

  def close(self) -> None:
    """See `Shard`."""
    self._file.close()


SHARDS = {"png": PngFolder, "array_record": Records, "npz": Plain}
