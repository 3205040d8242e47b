"""Images in one .npz file, read and written as streams.

    arr_0   uint8 [N, H, W, C]    images; "images" is read too
    arr_1   integers [N]          their classes, if any; "labels" is read too

1. A .npz file is a zip archive of arrays. A member is opened alone and its rows
   are read one after the other, so memory is that of one image, however many
   there are, and whether members are stored or compressed.
2. What the header says must be what the member holds before anything is read;
   arrays of objects, which are pickles, are refused.
3. Written, the header comes first, since the final shape is known; then rows
   pass through. The archive's comment tells what it was made from.

This is the file of samples that ADM's evaluation defined; others read it.
"""

import contextlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from marjax import outputs
from marjax.outputs import shown
from marjax.schema import check

IMAGES, LABELS = ("arr_0", "images"), ("arr_1", "labels")

PIECE = 2**20
"""Bytes that are passed over at a time."""

MOST_COMMENT = 2**16 - 1
"""Bytes of an archive's comment."""

EXPECTED = (
  "expected arr_0, uint8 [N, H, W, C] with C of 1 or 3, as ADM's samples have"
  " it: save it with np.savez(path, images)"
)


class Refused(ValueError):
  """A file that can be read, but is none of images; the text is a sentence."""


class Archive:
  """The images of one .npz file.

  Attributes:
    path: of it. shape: (H, W, C) of each image. crc: of all of them.
    labels: int32 [N], or None.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no whole archive, or holds no such arrays.
  """

  def __init__(self, path: Path):
    self.path = path
    with _explained(path), zipfile.ZipFile(path) as archive:
      names = {name.removesuffix(".npy") for name in archive.namelist()}
      member, labels = (
        next((name for name in choice if name in names), "")
        for choice in (IMAGES, LABELS)
      )
      _require(
        bool(member),
        f"{shown(path)} holds {', '.join(sorted(map(shown, names)))};"
        f" {EXPECTED}.",
      )
      self._member = f"{member}.npy"
      self._count, *shape = self._check(archive)
      self.crc = archive.getinfo(self._member).CRC
      self.shape = tuple(shape)
      self.labels = self._read_labels(archive, f"{labels}.npy")

  def __len__(self) -> int:
    return self._count

  def rows(
    self, indices: Int[np.ndarray, " N"]
  ) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    """The images at ascending indices, in one pass through the file.

    Raises:
      ValueError: the file is damaged.
    """
    num_bytes, position = math.prod(self.shape), 0
    with (
      _explained(self.path),
      zipfile.ZipFile(self.path) as archive,
      archive.open(self._member) as file,
    ):
      _header(file)
      for index in indices.tolist():
        _pass_over(file, (index - position) * num_bytes)
        row = _exactly(file, num_bytes)
        yield np.frombuffer(row, np.uint8).reshape(self.shape)
        position = index + 1

  def _check(self, archive: zipfile.ZipFile) -> tuple[int, ...]:
    """[N, H, W, C], where the member holds that."""
    with archive.open(self._member) as file:
      shape, dtype = _header(file)
      start = file.tell()
    name = f"{shown(self.path)} has {self._member}"
    what = f"{name}, {dtype} [{', '.join(map(str, shape))}]"
    is_images = len(shape) == 4 and shape[-1] in (1, 3) and 0 not in shape
    _require(is_images and dtype == np.uint8, f"{what}; {EXPECTED}.")
    size = archive.getinfo(self._member).file_size
    _require(
      size == start + math.prod(shape),
      f"{what}, of {size} bytes; expected {start + math.prod(shape)}: the file"
      " is damaged, copy or write it again.",
    )
    return shape

  def _read_labels(
    self, archive: zipfile.ZipFile, name: str
  ) -> np.ndarray | None:
    if name not in archive.namelist():
      return None
    with archive.open(name) as file:
      shape, dtype = _header(file)
      _require(
        shape == (self._count,) and dtype.kind in "iu",
        f"{shown(self.path)} has {name}, {dtype} [{', '.join(map(str, shape))}]"
        f"; expected the classes of its {self._count} images, integers"
        f" [{self._count}]: save them so, or leave them out.",
      )
      labels = np.frombuffer(
        _exactly(file, self._count * dtype.itemsize), dtype
      )
    _require(
      bool(labels.min() >= 0 and labels.max() < 2**31),
      f"{shown(self.path)} has labels from {labels.min()} to {labels.max()};"
      " expected 0 or more: leave them out if the images have no classes.",
    )
    return labels.astype(np.int32)


def members(path: Path) -> set[str]:
  """Names of the arrays in an .npz file; errors as of `Archive`."""
  with _explained(path), zipfile.ZipFile(path) as archive:
    return {name.removesuffix(".npy") for name in archive.namelist()}


def comment(path: Path) -> bytes:
  """What `write` was told to leave; b"" where nothing was."""
  with _explained(path), zipfile.ZipFile(path) as archive:
    return archive.comment


def write(
  path: Path,
  shape: tuple[int, int, int, int],
  blocks: Iterable[UInt8[np.ndarray, "..."]],
  labels: Int[np.ndarray, " N"] | None,
  comment: bytes = b"",
  overwrite: bool = False,
) -> None:
  """Writes images [N, H, W, C] that come in pieces, whole or not at all.

  Raises:
    FileExistsError: something is there and `overwrite` is false.
    OSError: it cannot be written.
    ValueError: the pieces are not N images, or the comment is too long.
  """
  check(
    len(comment) <= MOST_COMMENT,
    f"the record of what {path} is made from has {len(comment)} bytes; expected"
    f" at most {MOST_COMMENT}: shorten it.",
  )
  num_bytes, expected = 0, math.prod(shape)
  with (
    outputs.replacing(path, overwrite) as temporary,
    zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
  ):
    with _new(archive, IMAGES[0], shape, np.dtype(np.uint8)) as file:
      for block in blocks:
        file.write(np.ascontiguousarray(block).data)
        num_bytes += block.nbytes
    check(
      num_bytes == expected,
      f"{path} was given {num_bytes} bytes of images; expected {expected}.",
    )
    if labels is not None:
      labels = np.asarray(labels, np.int64)
      with _new(archive, LABELS[0], labels.shape, labels.dtype) as file:
        file.write(labels.data)
    archive.comment = comment


def _new(
  archive: zipfile.ZipFile, name: str, shape, dtype
) -> io.BufferedIOBase:
  """A member with the header of an array, to which its rows are written."""
  header = {
    "descr": np.lib.format.dtype_to_descr(dtype),
    "fortran_order": False,
    "shape": tuple(shape),
  }
  file = archive.open(f"{name}.npy", "w", force_zip64=True)
  np.lib.format.write_array_header_1_0(file, header)
  return file


def _header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype of an array; its rows in C order come next."""
  version = np.lib.format.read_magic(file)
  check(version in ((1, 0), (2, 0)), f"it has .npy version {version}")
  read = np.lib.format.read_array_header_1_0
  if version == (2, 0):
    read = np.lib.format.read_array_header_2_0
  shape, is_fortran, dtype = read(file)
  check(not dtype.hasobject, "it holds Python objects, which are not read")
  check(not is_fortran or len(shape) < 2, "its rows are in Fortran's order")
  return shape, dtype


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise Refused(message)


def _exactly(file: io.BufferedIOBase, count: int) -> bytes:
  content = file.read(count)
  if len(content) < count:
    raise EOFError(f"{count - len(content)} bytes are missing")
  return content


def _pass_over(file: io.BufferedIOBase, count: int) -> None:
  while count:
    count -= len(_exactly(file, min(count, PIECE)))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
  """Makes one sentence of what the archive's readers raise."""
  try:
    yield
  except (Refused, FileNotFoundError, IsADirectoryError, PermissionError):
    raise
  except (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    ValueError,
  ) as error:
    raise ValueError(
      f"{shown(path)} cannot be read ({outputs.reason(error)}); expected a"
      " whole .npz file of numbers: copy or write it again."
    ) from error
