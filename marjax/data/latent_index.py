"""Which files a cache of latents has, and when it is whole.

    CACHE/settings.json                         first: what every host agrees on
    CACHE/autoencoder/                          a copy of the release
    CACHE/latents-00003-of-00257.array_record   a shard, renamed when whole
    CACHE/latents-00003-of-00257.json           then its record
    CACHE/index.json                            last: the cache is whole

1. Shard k holds the examples [k·n, (k + 1)·n) of the source, n = shard_size, so
   any host can write any shard, and again.
2. A file is written under a temporary name and renamed. A shard counts from the
   moment its record is there; the cache from the moment its index is there.
3. Whoever writes the last record joins all of them to the index. It is a
   function of the records, so several hosts may do it.
"""

import contextlib
import dataclasses
from pathlib import Path

from marjax import outputs
from marjax.data import latent_card
from marjax.data.latent_card import CacheSettings, Index, Rounding, Shard
from marjax.release import kinds
from marjax.schema import check

SETTINGS, INDEX, AUTOENCODER = "settings.json", "index.json", "autoencoder"
AGAIN = "run the marjax cache-latents command that began it again"


def folder(name: str) -> Path:
  """The cache of that name; raises ValueError for what is no path here."""
  check(
    bool(name) and "://" not in name,
    f"the folder of the cache is {name!r}; expected a path on this machine, or"
    " one that is mounted here: array_record files cannot be in a bucket.",
  )
  return outputs.path_of(name)


def begin(cache: Path, settings: CacheSettings) -> None:
  """Writes the settings, or compares them with those that are there.

  Raises:
    ValueError: the cache was begun with other settings.
    OSError: the folder cannot be written, or holds something else.
  """
  path, kind = cache / SETTINGS, kinds.kind_of(cache)
  begun = (kinds.CACHE, kinds.HALF_CACHE) if path.exists() else ()
  if kind not in (kinds.NOTHING, kinds.EMPTY, *begun):
    raise FileExistsError(
      f"{cache} is {kind}; expected a new or empty folder, or a cache that was"
      " begun: choose another --out."
    )
  if not path.exists():
    # Another host may be quicker; then its settings are compared with ours.
    with contextlib.suppress(FileExistsError):
      latent_card.write(path, settings)
  found = read_settings(cache)
  for field in dataclasses.fields(settings):
    theirs, ours = (getattr(s, field.name) for s in (found, settings))
    if theirs != ours:
      raise ValueError(
        f"{cache} was begun with {field.name} = {theirs!r}, and this command"
        f" has {ours!r}; expected the same: give the flags it was begun with,"
        " or another --out."
      )


def read_settings(cache: Path) -> CacheSettings:
  """The settings of a cache, whole or not; errors as in `read_index`."""
  path = cache / SETTINGS
  kinds.check_kind(cache, kinds.CACHE, kinds.HALF_CACHE)
  check(
    path.is_file(),
    f"{path} is missing, and says what the latents are; copy the cache again,"
    " whole, or make it anew.",
  )
  return latent_card.read(CacheSettings, path)


def shard_record(
  cache: Path, settings: CacheSettings, shard: int
) -> Shard | None:
  """The record of a shard, None if it is not whole yet."""
  name = settings.shard_name(shard)
  if not (cache / f"{name}.json").is_file():
    return None
  record = latent_card.read(Shard, cache / f"{name}.json")
  settings.check_shard(shard, record, str(cache / f"{name}.json"))
  return record if is_size_right(cache, name, record) else None


def is_size_right(cache: Path, name: str, record: Shard) -> bool:
  """Whether the shard's file is there, with as many bytes as recorded."""
  path = cache / f"{name}.array_record"
  return path.is_file() and path.stat().st_size == record.num_bytes


def write_record(cache: Path, name: str, record: Shard) -> None:
  """Makes a shard count; its file must be in place."""
  latent_card.write(cache / f"{name}.json", record, overwrite=True)


def join(cache: Path, settings: CacheSettings) -> Index | None:
  """Writes the index if every shard is whole; returns None if one is not.

  Raises:
    ValueError: no image at all could be read.
  """
  records = {}
  for shard in range(settings.num_shards):
    record = shard_record(cache, settings, shard)
    if record is None:
      return None
    records[settings.shard_name(shard)] = record
  shards = records.values()
  check(
    any(record.num_examples for record in shards),
    f"none of the {settings.num_source} images could be read, so {cache} would"
    " be empty; look at the reasons in its .json files, and mend the images.",
  )
  index = Index(
    settings=settings,
    num_examples=sum(record.num_examples for record in shards),
    num_classes=1 + max(record.highest_label for record in shards),
    mean_error=_errors([record.mean for record in shards]),
    log_variance_error=_errors([record.log_variance for record in shards]),
    skipped=tuple(image for record in shards for image in record.skipped),
    shards=records,
  )
  if not (cache / INDEX).is_file() or read_index(cache).shards != records:
    latent_card.write(cache / INDEX, index, overwrite=True)
  return index


def read_index(cache: Path) -> Index:
  """The index of a whole cache.

  Raises:
    FileNotFoundError: there is no cache, or a half-written one.
    ValueError: it is damaged, or of a newer format.
  """
  settings = read_settings(cache)
  if not (cache / INDEX).is_file():
    missing = [
      settings.shard_name(shard)
      for shard in range(settings.num_shards)
      if shard_record(cache, settings, shard) is None
    ]
    raise FileNotFoundError(
      f"{cache} is half-written: {len(missing)} of {settings.num_shards} shards"
      f" are missing{', the first ' + missing[0] if missing else ''}; {AGAIN},"
      " on every host, to finish it."
    )
  index = latent_card.read(Index, cache / INDEX)
  check(
    index.settings == settings,
    f"{cache} has an {INDEX} and a {SETTINGS} of two caches; copy the cache"
    " again, whole.",
  )
  return index


def _errors(parts: list[Rounding]) -> dict[str, float]:
  total = sum(parts, Rounding())
  return {
    "max": total.max_error,
    "rms": total.rms_error,
    "relative_rms": total.relative_error,
  }


def find_autoencoder(cache: Path) -> Path | None:
  """The copy of the autoencoder in a cache: a folder or one file."""
  places = [cache / AUTOENCODER, cache / f"{AUTOENCODER}.safetensors"]
  return next((place for place in places if place.exists()), None)


def autoencoder_path(cache: Path) -> Path:
  """The same; raises FileNotFoundError if it is missing."""
  place = find_autoencoder(cache)
  if place is None:
    raise FileNotFoundError(
      f"{cache / AUTOENCODER} is missing; expected the copy of the autoencoder"
      " that marjax cache-latents made: copy the cache again, whole."
    )
  return place
