"""Cached latents: what `marjax cache-latents` wrote, read at random.

1. Opening reads the index, compares it with the config, and opens every shard:
   files that are missing, cut off or of another autoencoder are told at once.
2. Example i is in the shard where the running count of examples passes i, as
   two records, plain and mirrored; `gather` reads just the one that is wanted.
3. array_record's own hashes find every flipped bit of a record that is read;
   `verify` hashes whole files.

`gather` may be called by several threads at once.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Bool, Int, Int32, Int64
from tqdm import tqdm

from marjax import outputs
from marjax.convert import fetching
from marjax.data import latent_index
from marjax.data.latent_index import AGAIN, Index, Shard
from marjax.experiment import DataConfig
from marjax.parallel.mesh import host_mesh
from marjax.release import loading
from marjax.release.digest import digest
from marjax.schema import check

# An example is read alone: what is read ahead would be thrown away.
OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
BUFFER_BYTES = 2**15

Record = dict[str, np.ndarray]
Examples = tuple[Record, Int32[np.ndarray, " N"], Int64[np.ndarray, " N"]]


class CachedLatents:
  """The examples of one cache.

  Args:
    config: a DataConfig whose data_dir is the cache. image_size and channels
      must be those of the crops, num_classes must cover the labels, and
      `autoencoder`, unless it is "", must have made the cache.

  Attributes:
    path: its folder. index: what it says of itself.
    codec: the autoencoder that made the latents.
    digest: of its parameters; see `marjax.release.digest`.

  Raises:
    FileNotFoundError: there is no cache, a half-written one, or a shard or the
      autoencoder is missing.
    ValueError: the cache is damaged, or does not fit the config.
  """

  def __init__(self, config: DataConfig):
    self.path = outputs.local(config.data_dir)
    self.index: Index = latent_index.read_index(self.path)
    self.codec = self.index.settings.codec
    self.digest = self.index.settings.digest
    self._check_fit(config)
    self._type = self.index.settings.record_type
    self._shards = {
      self.path / f"{name}.array_record": shard
      for name, shard in self.index.shards.items()
    }
    self._readers = list(map(_open, self._shards, self._shards.values()))
    # Where each shard's examples begin, and where the last one's end.
    counts = [shard.num_examples for shard in self._shards.values()]
    self._starts = np.cumsum([0, *counts])

  def __len__(self) -> int:
    return int(self._starts[-1])

  @property
  def autoencoder(self) -> Path:
    """The copy of its release in the cache; FileNotFoundError without it."""
    place = self.path / latent_index.AUTOENCODER
    if not place.exists():
      raise FileNotFoundError(
        f"{place} is missing; expected the copy of the autoencoder that marjax"
        " cache-latents made: copy the cache again, whole."
      )
    return place

  def gather(
    self, indices: Int[np.ndarray, " N"], is_mirrored: Bool[np.ndarray, " N"]
  ) -> Examples:
    """Examples in the order asked for.

    Args:
      indices: 0 .. len - 1. is_mirrored: of the mirror image, one for each.

    Returns:
      what is stored, by name: moments [N, rows, columns, 2C], mean before
      log-variance, float16 or float32; labels int32 [N]; ids int64 [N].

    Raises:
      IndexError: an index is out of range. ValueError: a shard is damaged.
    """
    if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
      raise IndexError(f"examples {indices.tolist()} of {len(self)}.")
    shards = np.searchsorted(self._starts, indices, side="right") - 1
    places = 2 * (indices - self._starts[shards]) + is_mirrored
    read = map(self._read, shards.tolist(), places.tolist())
    records = np.frombuffer(b"".join(read), self._type)
    columns = {
      name: np.ascontiguousarray(records[name]) for name in self._type.names
    }
    return columns, columns.pop("label"), columns.pop("id")

  def verify(self, progress: bool = False) -> None:
    """Compares all files with their hashes; raises ValueError, naming one."""
    total = sum(shard.num_bytes for shard in self._shards.values())
    hidden = not progress
    with tqdm(total=total, unit="B", unit_scale=True, disable=hidden) as bar:
      for path, shard in self._shards.items():
        with open(path, "rb") as file:
          found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
          raise _damaged(path, "another sha256 than the index says")
        bar.update(shard.num_bytes)
    found = digest_of(str(self.autoencoder))
    check(
      found == self.digest,
      f"{self.autoencoder} has the digest {found[:12]}..., and the cache was"
      f" made with {self.digest[:12]}...; copy that folder again.",
    )

  def _check_fit(self, config: DataConfig) -> None:
    codec, num_classes = self.codec, self.index.num_classes
    check(
      config.image_size == codec.image_size
      and config.channels == codec.channels,
      f"{self.path} has latents of {codec.image_size}² pixels and"
      f" {codec.channels} channels, and data has {config.image_size} and"
      f" {config.channels}; make them equal, or make another cache.",
    )
    check(
      num_classes <= config.num_classes,
      f"{self.path} has labels up to {num_classes - 1}, and data.num_classes is"
      f" {config.num_classes}; set data.num_classes to at least {num_classes}.",
    )
    name = config.autoencoder
    found = digest_of(name) if name else self.digest
    check(
      found == self.digest,
      f"{self.path} was made by another autoencoder (digest"
      f" {self.digest[:12]}...) than data.autoencoder = {name} (digest"
      f" {found[:12]}...); name the one that made it, or make another cache.",
    )

  def _read(self, shard: int, place: int) -> bytes:
    try:
      (record,) = self._readers[shard].read([place])
      check(
        len(record) == self._type.itemsize, f"{len(record)} bytes in a record"
      )
    except (RuntimeError, IndexError, ValueError) as error:
      raise _damaged(list(self._shards)[shard], str(error)) from error
    return record


@functools.lru_cache(maxsize=4)
def digest_of(autoencoder: str) -> str:
  """The digest of an autoencoder, by published name or path.

  Raises:
    ValueError, OSError: see `fetching.find`, `loading.load`; or a model.
  """
  release = loading.load(fetching.find(autoencoder), host_mesh())
  check_autoencoder(release.card, autoencoder)
  return digest(release.codec_params)


def check_autoencoder(card, name: str) -> None:
  """Refuses what is no autoencoder alone for caches, with a ValueError."""
  check(
    card.model is None,
    f"{name} is a model; expected an autoencoder alone, such as kl16: name the"
    " one that the model goes with.",
  )
  check(
    card.codec.is_cached,
    f"{name} is a codec of kind {card.codec.kind!r}, whose latents are computed"
    " while training; expected an autoencoder, such as kl16: train on the"
    " images, without a cache.",
  )


def _open(path: Path, shard: Shard) -> ArrayRecordReader:
  if not path.is_file():
    raise FileNotFoundError(f"{path} is missing; {_cure(path)}")
  size = path.stat().st_size
  if size != shard.num_bytes:
    raise _damaged(path, f"{size} bytes, expected {shard.num_bytes}")
  try:
    reader = ArrayRecordReader(
      str(path), options=OPTIONS, file_reader_buffer_size=BUFFER_BYTES
    )
    count, expected = reader.num_records(), 2 * shard.num_examples
  except RuntimeError as error:
    raise _damaged(path, str(error)) from error
  if count != expected:
    raise _damaged(path, f"{count} records, expected {expected}")
  return reader


def _damaged(path: Path, reason: str) -> ValueError:
  reason = (reason.split(";")[0].splitlines() or ["unreadable"])[0]
  return ValueError(f"{path} is damaged ({reason}); {_cure(path)}")


def _cure(path: Path) -> str:
  return f"copy {path.name} again, or delete it and {AGAIN}."
