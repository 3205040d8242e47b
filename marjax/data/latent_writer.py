"""Writes a cache of latents: every image and its mirror image, encoded once.

    source ─threads▶ crops ─device▶ moments ─▶ shard k, renamed when whole

1. Host h of n writes the shards k with k mod n = h that are not whole yet, so a
   command that was killed goes on where it stopped, a shard at most being done
   again; and n hosts write what one would.
2. Images are read and cropped ahead by threads. One that cannot be read is
   skipped, named in the log and in the index; too many are an error.
3. A program for one size of batch encodes images and mirror images on a mesh of
   this host's devices, while the batch before is written. A shard's last batch
   is padded.
4. Moments are rounded to the stored type; how far that is from float32 is
   summed up in the shard's record.
"""

import functools
import itertools
import operator
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from marjax import schema
from marjax.data import latent_images, latent_index, latent_records
from marjax.data.latent_card import CacheSettings, Index, Rounding, Shard
from marjax.data.latent_images import Batch
from marjax.data.sources import Source
from marjax.parallel.rules import batch_sharding
from marjax.release import loading
from marjax.release.loading import Release
from marjax.requests import batching
from marjax.schema import Count, Range, Size, check

LARGEST_BATCH = 16
"""Images that the encoder works on at a time, on each device."""


@schema.config
class Choices:
  """How the work is done; none of it changes what is written.

  Attributes:
    host, num_hosts: which share of the shards is written here.
    batch_size: images encoded at a time, None for a size that fits.
    max_skipped: images of this host's share that may be unreadable.
    num_threads: that read and crop, None for one per core.
    progress: show rate and time left.
  """

  host: Annotated[int, Range(0, 2**20)] = 0
  num_hosts: Annotated[int, Range(1, 2**20)] = 1
  batch_size: Size | None = None
  max_skipped: Count = 100
  num_threads: Annotated[int, Range(1, 1024)] | None = None
  progress: bool = False

  def __post_init__(self):
    check(
      self.host < self.num_hosts,
      f"host is {self.host} of {self.num_hosts}; expected 0 .. num_hosts - 1.",
    )


def write(
  cache: Path,
  source: Source,
  release: Release,
  release_path: Path,
  mesh: jax.sharding.Mesh,
  settings: CacheSettings,
  choices: Choices,
) -> Index | None:
  """Writes this host's share; the index if the cache is whole by then.

  Args:
    cache: a new folder, or that of the same command before.
    source: RGB images. settings: that describe it and the autoencoder.
    release: the autoencoder, on `mesh`: this host's devices.
    release_path: where it is, to be copied into the cache.

  Raises:
    ValueError: other settings than before, too many unreadable images, or
      moments that are no finite numbers.
    OSError: the cache cannot be written.
  """
  latent_index.begin(cache, settings)
  _keep(release_path, cache)
  pending = _pending(cache, settings, choices)
  _check_room(cache, settings, pending)
  size = batching.batch_size(
    mesh,
    min(settings.shard_size, settings.num_source),
    choices.batch_size,
    LARGEST_BATCH,
  )
  threads = choices.num_threads or os.cpu_count()
  with (
    ThreadPoolExecutor(threads) as pool,
    _bar(settings, choices, pending) as bar,
    jax.default_matmul_precision(settings.matmul_precision),
  ):
    read = latent_images.read(source, settings, pending, size, pool)
    skipped = _count_skipped(cache, settings, choices)
    read = latent_images.limited(read, skipped, choices.max_skipped)
    encoded = _encoded(read, release, settings, mesh, size)
    by_shard = itertools.groupby(encoded, key=operator.itemgetter(0))
    for shard, blocks in by_shard:
      _write_shard(cache, settings, shard, blocks, bar)
  return latent_index.join(cache, settings)


def _share(settings: CacheSettings, choices: Choices) -> range:
  return range(choices.host, settings.num_shards, choices.num_hosts)


def _pending(
  cache: Path, settings: CacheSettings, choices: Choices
) -> list[int]:
  """This host's shards that are not whole, cleared of half-written files."""
  pending = [
    shard
    for shard in _share(settings, choices)
    if latent_index.shard_record(cache, settings, shard) is None
  ]
  names = {settings.shard_name(shard) for shard in pending}
  for path in cache.glob(".latents-*"):
    if path.name[1:].split(".")[0] in names:
      path.unlink(missing_ok=True)
  return pending


def _count_skipped(
  cache: Path, settings: CacheSettings, choices: Choices
) -> int:
  """Images skipped in the shards that are whole."""
  records = (
    latent_index.shard_record(cache, settings, shard)
    for shard in _share(settings, choices)
  )
  return sum(len(record.skipped) for record in records if record)


def _check_room(
  cache: Path, settings: CacheSettings, pending: list[int]
) -> None:
  """Refuses to begin what the disk cannot hold."""
  images = sum(len(settings.span(shard)) for shard in pending)
  # array_record adds forty bytes to a record.
  needed = 2 * images * (latent_records.record_type(settings).itemsize + 64)
  free = shutil.disk_usage(cache).free
  if needed > free:
    raise OSError(
      f"{cache} needs {needed / 1e9:.4g} GB for {images} images, and"
      f" {free / 1e9:.4g} GB are free there; make room, choose another --out,"
      " or float16."
    )


def _keep(release: Path, cache: Path) -> None:
  """Copies the autoencoder into the cache, unless it is there."""
  target = cache / latent_index.AUTOENCODER
  if latent_index.find_autoencoder(cache):
    for left in cache.glob(".autoencoder.*"):
      shutil.rmtree(left, ignore_errors=True)
    return
  made = tempfile.mkdtemp(prefix=".autoencoder.", dir=cache)
  try:
    copied = Path(made) / latent_index.AUTOENCODER
    loading.copy(release, copied)
    copied.rename(target)
  except OSError as error:
    if not target.exists():  # else another host was quicker
      reason = (error.strerror or str(error)).lower()
      raise OSError(
        f"{target} cannot be written ({reason}); make room there, or choose"
        " another --out."
      ) from error
  finally:
    shutil.rmtree(made, ignore_errors=True)


def _encoded(
  batches: Iterable[tuple[int, Batch]],
  release: Release,
  settings: CacheSettings,
  mesh: jax.sharding.Mesh,
  size: int,
) -> Iterator[tuple[int, Batch, np.ndarray]]:
  """Adds moments float32 [2, N, rows, columns, 2C]: images, mirror images.

  The device works on a batch while the one before is used.
  """
  before = None
  for shard, batch in batches:
    padded = np.zeros((size, *batch.images.shape[1:]), np.uint8)
    padded[: len(batch.images)] = batch.images
    images = jax.device_put(padded, batch_sharding(mesh))
    moments = _encode(settings.codec, release.codec_params, images)
    if before:
      yield _on_host(*before)
    before = shard, batch, moments
  if before:
    yield _on_host(*before)


def _on_host(shard: int, batch: Batch, moments) -> tuple:
  return shard, batch, np.asarray(moments)[:, : len(batch.images)]


@functools.partial(jax.jit, static_argnums=0)
def _encode(codec, params, images):
  pixels = images.astype(jnp.float32) / 127.5 - 1

  def moments(pixels):
    return jnp.concatenate(codec.moments(params, pixels), axis=-1)

  return jax.lax.map(moments, jnp.stack([pixels, pixels[:, :, ::-1]]))


def _write_shard(
  cache: Path, settings: CacheSettings, shard: int, blocks: Iterable, bar
) -> None:
  """Writes a shard and then its record."""
  name, skipped, highest = settings.shard_name(shard), [], -1
  errors = [Rounding(), Rounding()]
  num_examples = 0

  def records():
    nonlocal highest, num_examples
    for _, batch, moments in blocks:
      stored = _rounded(moments, batch, settings)
      parts = (np.split(array, 2, axis=-1) for array in (stored, moments))
      for i, (ours, exact) in enumerate(zip(*parts, strict=True)):
        errors[i] += _rounding(ours, exact)
      yield _records(settings, batch, stored)
      num_examples += len(batch.labels)
      skipped.extend(batch.skipped)
      highest = max([highest, *batch.labels.tolist()])
      bar.update(len(batch.labels) + len(batch.skipped))

  path = cache / (name + latent_records.SUFFIX)
  written = latent_records.write(path, records())
  record = Shard(num_examples, *written, highest, tuple(skipped), *errors)
  latent_index.write_record(cache, name, record)


def _rounded(
  moments: np.ndarray, batch: Batch, settings: CacheSettings
) -> np.ndarray:
  """The moments in the stored type; raises ValueError if that cannot be."""
  with np.errstate(over="ignore"):
    stored = moments.astype(settings.dtype)
  is_finite = np.isfinite(stored).all(axis=(0, 2, 3, 4))
  if not is_finite.all():
    name = batch.names[int(np.argmin(is_finite))]
    raise ValueError(
      f"the autoencoder makes moments of {name} that {settings.dtype} cannot"
      " hold; expected finite numbers: try --dtype float32, or another"
      " autoencoder."
    )
  return stored


def _rounding(stored: np.ndarray, exact: np.ndarray) -> Rounding:
  if not exact.size:
    return Rounding()
  exact = exact.astype(np.float64)
  error = np.abs(stored - exact)
  return Rounding(
    exact.size,
    float(error.max()),
    float(np.square(error).sum()),
    float(np.square(exact).sum()),
  )


def _records(
  settings: CacheSettings, batch: Batch, moments: np.ndarray
) -> np.ndarray:
  """Records of a batch: plain, mirrored, plain, mirrored, ..."""
  count = len(batch.labels)
  records = np.empty((count, 2), latent_records.record_type(settings))
  records["label"] = batch.labels[:, None]
  records["is_mirrored"] = [0, 1]
  records["id"] = batch.ids[:, None]
  records["moments"] = moments.swapaxes(0, 1)
  return records.reshape(-1)


def _bar(settings: CacheSettings, choices: Choices, pending: list[int]):
  from tqdm import tqdm

  def count(shards):
    return sum(len(settings.span(shard)) for shard in shards)

  total = count(_share(settings, choices))
  return tqdm(
    total=total,
    initial=total - count(pending),
    unit="image",
    disable=not choices.progress,
  )
