"""Shards of latents: array_record files, two records for an image.

    record 2i       header, moments of image i
    record 2i + 1   header, moments of its mirror image
    header          label int32, is_mirrored int32, id int64
    moments         [rows, columns, 2C], mean before log-variance

1. All numbers are little-endian, and every record of a cache is equally long.
   Nothing is compressed or grouped: the bits of moments look random, and
   training reads one of the two records of an image at a time.
2. `write` writes under a temporary name and renames. What array_record cannot
   write, as on a full disk, it tells when the file is closed.
3. `open_reader` and `read` find every damage that matters: the file's hashes
   cover all records, its length and first bytes are compared here.

DIFFERS: float16-latents. The published program caches float32, one file for
each image; `--dtype float32` keeps that precision.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from marjax.data.latent_card import CacheSettings, Shard
from marjax.data.latent_index import AGAIN

SUFFIX = ".array_record"
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
BUFFER_BYTES = 2**15

# The first 64 bytes of any file of this kind: its signature as a chunk.
SIGNATURE = bytes.fromhex(
  "83af70d10d884a3f" + 8 * "00" + "4000000000000000" + "91bac23c9287e1a9"
  "0000000000000000" + "e19f13c0e9b1c372" + "7300000000000000" + 8 * "00"
)


def record_type(settings: CacheSettings) -> np.dtype:
  """One record, as a structured type of numpy."""
  rows, columns, channels = settings.codec.latent_shape
  number = np.dtype(settings.dtype).newbyteorder("<")
  return np.dtype(
    [
      ("label", "<i4"),
      ("is_mirrored", "<i4"),
      ("id", "<i8"),
      ("moments", number, (rows, columns, 2 * channels)),
    ]
  )


def write(path: Path, blocks: Iterable[np.ndarray]) -> tuple[int, str]:
  """Writes a shard, whole or not at all; returns its bytes and sha256.

  Args:
    path: of the shard; what is there is replaced.
    blocks: arrays of records, in order.

  Raises:
    OSError: it cannot be written.
  """
  from array_record.python import array_record_module

  with _telling(path):
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
  temporary = Path(name)
  try:
    with _telling(path):
      writer = array_record_module.ArrayRecordWriter(name, WRITER_OPTIONS)
    for records in blocks:
      size, content = records.itemsize, records.tobytes()
      with _telling(path):
        for start in range(0, len(content), size):
          writer.write(content[start : start + size])
    with _telling(path):
      writer.close()
      num_bytes, sha256 = temporary.stat().st_size, hashed(temporary, sync=True)
      temporary.chmod(0o644)
      temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
  return num_bytes, sha256


def hashed(path: Path, sync: bool = False) -> str:
  """The sha256 of a file; `sync` first makes sure that it is on the disk."""
  with open(path, "rb") as file:
    if sync:
      os.fsync(file.fileno())
    return hashlib.file_digest(file, "sha256").hexdigest()


def open_reader(path: Path, shard: Shard):
  """array_record's reader of a shard, after the checks that cost no reading.

  Raises:
    FileNotFoundError: it is missing. ValueError: it is damaged.
  """
  from array_record.python import array_record_module

  if not path.is_file():
    raise FileNotFoundError(f"{path} is missing; {_cure(path)}")
  size = path.stat().st_size
  if size != shard.num_bytes:
    raise _damaged(path, f"{size} bytes, expected {shard.num_bytes}")
  with open(path, "rb") as file:
    if file.read(len(SIGNATURE)) != SIGNATURE:
      raise _damaged(path, "other first bytes than an array_record file has")
  try:
    reader = array_record_module.ArrayRecordReader(
      str(path), options=READER_OPTIONS, file_reader_buffer_size=BUFFER_BYTES
    )
    found = reader.num_records()
  except RuntimeError as error:
    raise _damaged(path, _reason(error)) from error
  if found != 2 * shard.num_examples:
    raise _damaged(path, f"{found} records, expected {2 * shard.num_examples}")
  return reader


def read(reader, path: Path, places: list[int], size: int) -> list[bytes]:
  """Some of a shard's records, each of `size` bytes.

  Raises:
    ValueError: the shard is damaged there.
  """
  try:
    records = reader.read(places)
  except (RuntimeError, IndexError) as error:
    raise _damaged(path, _reason(error)) from error
  if any(len(record) != size for record in records):
    raise _damaged(path, f"records of other lengths than {size} bytes")
  return records


def check_hash(path: Path, shard: Shard) -> None:
  """Compares the whole file with its record; raises ValueError."""
  if hashed(path) != shard.sha256:
    raise _damaged(path, "another sha256 than its record says")


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
  """What goes wrong while writing, as one sentence; array_record's too."""
  try:
    yield
  except (RuntimeError, OSError) as error:
    reason = getattr(error, "strerror", None) or _reason(error)
    raise OSError(
      f"{path} cannot be written ({reason.lower()}); all whole shards are kept:"
      f" make room there, or mend the folder, and {AGAIN}."
    ) from error


def _reason(error: Exception) -> str:
  return (str(error).split(";")[0].splitlines() or [type(error).__name__])[0]


def _cure(path: Path) -> str:
  return f"copy {path.name} again, or delete it and {AGAIN}."


def _damaged(path: Path, reason: str) -> ValueError:
  return ValueError(f"{path} is damaged ({reason}); {_cure(path)}")
