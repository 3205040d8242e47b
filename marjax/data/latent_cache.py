"""Cached latents: what `marjax cache-latents` wrote, read at random.

1. Opening reads the index, compares it with the config, and opens every shard:
   files that are missing, cut off or of another autoencoder are told at once.
2. Example i is in the shard where the running count of examples passes i, as
   two records, plain and mirrored; `gather` reads just the one that is wanted,
   shard by shard, and joins the records to arrays.
3. `verify` hashes whole files. While reading, array_record's own hashes find
   every flipped bit of a record.

`gather` may be called by several threads at once.
"""

import functools
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Int64

from marjax.data import latent_index, latent_records
from marjax.data.latent_card import Index
from marjax.experiment import DataConfig
from marjax.latents.kl import KLConfig

Moments = Float[np.ndarray, "N rows columns C2"]
Examples = tuple[Moments, Int32[np.ndarray, " N"], Int64[np.ndarray, " N"]]


class CachedLatents:
  """The examples of one cache.

  Args:
    config: a DataConfig whose data_dir is the cache. image_size and channels
      must be those of the crops, num_classes must cover the labels, and
      `autoencoder`, unless it is "", must have made the cache.

  Attributes:
    path: its folder. index: what it says of itself.

  Raises:
    FileNotFoundError: there is no cache, a half-written one, or a shard or the
      autoencoder is missing.
    ValueError: the cache is damaged, or does not fit the config.
  """

  def __init__(self, config: DataConfig):
    self.path = latent_index.folder(config.data_dir)
    self.index: Index = latent_index.read_index(self.path)
    _check_fit(self.path, self.index, config)
    self._type = latent_records.record_type(self.index.settings)
    self._paths = [
      self.path / (name + latent_records.SUFFIX) for name in self.index.shards
    ]
    shards = list(self.index.shards.values())
    self._readers = [
      latent_records.open_reader(path, shard)
      for path, shard in zip(self._paths, shards, strict=True)
    ]
    # Where each shard's examples begin, and where the last one's end.
    self._starts = np.cumsum([0, *(shard.num_examples for shard in shards)])

  def __len__(self) -> int:
    return self.index.num_examples

  @property
  def codec(self) -> KLConfig:
    """The autoencoder that made the latents."""
    return self.index.settings.codec

  @property
  def digest(self) -> str:
    """Of its parameters; see `marjax.release.digest`."""
    return self.index.settings.digest

  @property
  def autoencoder(self) -> Path:
    """The copy of its release that is in the cache."""
    return latent_index.autoencoder_path(self.path)

  def gather(
    self, indices: Int[np.ndarray, " N"], is_mirrored: Bool[np.ndarray, " N"]
  ) -> Examples:
    """Examples in the order asked for.

    Args:
      indices: 0 .. len - 1. is_mirrored: of the mirror image, one for each.

    Returns:
      moments [N, rows, columns, 2C], mean before log-variance, as stored:
      float16 or float32; labels int32 [N]; ids int64 [N].

    Raises:
      IndexError: an index is out of range. ValueError: a shard is damaged.
    """
    if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
      raise IndexError(f"examples {indices.tolist()} of {len(self)}.")
    shards = np.searchsorted(self._starts, indices, side="right") - 1
    places = 2 * (indices - self._starts[shards]) + is_mirrored
    order = np.argsort(shards, kind="stable")
    cuts = np.flatnonzero(np.diff(shards[order])) + 1
    found: list[bytes] = [b""] * len(indices)
    for rows in np.split(order, cuts) if len(order) else ():
      shard = shards[rows[0]]
      read = latent_records.read(
        self._readers[shard],
        self._paths[shard],
        places[rows].tolist(),
        self._type.itemsize,
      )
      for row, record in zip(rows.tolist(), read, strict=True):
        found[row] = record
    records = np.frombuffer(b"".join(found), self._type)
    return tuple(
      np.ascontiguousarray(records[name]) for name in ("moments", "label", "id")
    )

  def verify(self, progress: bool = False) -> None:
    """Compares all files with their hashes; raises ValueError, naming one."""
    from tqdm import tqdm

    shards = self.index.shards.values()
    total = sum(shard.num_bytes for shard in shards)
    with tqdm(
      total=total, unit="B", unit_scale=True, disable=not progress
    ) as bar:
      for path, shard in zip(self._paths, shards, strict=True):
        latent_records.check_hash(path, shard)
        bar.update(shard.num_bytes)
    found = digest_of(str(self.autoencoder))
    if found != self.digest:
      raise ValueError(
        f"{self.autoencoder} has the digest {found[:12]}..., and the cache was"
        f" made with {self.digest[:12]}...; copy that folder again."
      )


@functools.lru_cache(maxsize=4)
def digest_of(autoencoder: str) -> str:
  """The digest of an autoencoder, by published name or path.

  Raises:
    ValueError, OSError: see `fetching.find`, `loading.load`; or a model.
  """
  from marjax.convert import fetching
  from marjax.parallel.mesh import host_mesh
  from marjax.release import loading
  from marjax.release.digest import digest

  release = loading.load(fetching.find(autoencoder), host_mesh())
  check_autoencoder(release.card, autoencoder)
  return digest(release.codec_params)


def check_autoencoder(card, name: str) -> None:
  """Refuses a release that is no KL autoencoder alone, with a ValueError."""
  if card.model is not None or not isinstance(card.codec, KLConfig):
    raise ValueError(
      f"{name} is a model; expected an autoencoder alone, such as kl16: name"
      " the one that the model goes with."
    )


def _check_fit(cache: Path, index: Index, config: DataConfig) -> None:
  codec = index.settings.codec
  if (config.image_size, config.channels) != (codec.image_size, codec.channels):
    raise ValueError(
      f"{cache} has latents of {codec.image_size}² pixels and {codec.channels}"
      f" channels, and data has {config.image_size} and {config.channels}; make"
      " them equal, or make another cache."
    )
  if index.num_classes > config.num_classes:
    raise ValueError(
      f"{cache} has labels up to {index.num_classes - 1}, and data.num_classes"
      f" is {config.num_classes}; set data.num_classes to at least"
      f" {index.num_classes}."
    )
  if not config.autoencoder:
    return
  found = digest_of(config.autoencoder)
  if found != index.settings.digest:
    raise ValueError(
      f"{cache} was made by another autoencoder (digest"
      f" {index.settings.digest[:12]}...) than data.autoencoder ="
      f" {config.autoencoder} (digest {found[:12]}...); name the one that made"
      " it, or make another cache."
    )
