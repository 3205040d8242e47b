"""Writes a cache of latents: every image and its mirror image, encoded once.

    source ─threads▶ crops ─device▶ arrays ─▶ shard k, renamed when whole

1. Host h of n writes the shards k with k mod n = h that are not whole yet, so a
   command that was killed goes on where it stopped, a shard at most being done
   again; and n hosts write what one would.
2. Images are read and cropped ahead by grain's threads. One that cannot be read
   is skipped, named in the log and in the index; too many are an error.
3. A program for one size of batch encodes images and mirror images on a mesh of
   this host's devices, while the batch before is written. A shard's last batch
   is padded.
4. Numbers are rounded to the stored type; how far that is from float32 is
   summed up in the shard's JSON file.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import logging
import operator
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from marjax import outputs
from marjax.data import crops, decoding, latent_index
from marjax.data.latent_index import (
  AGAIN,
  CacheSettings,
  Choices,
  Index,
  Rounding,
  Shard,
  Skipped,
)
from marjax.data.sources import Source
from marjax.parallel.rules import batch_sharding
from marjax.release import loading
from marjax.release.loading import Release
from marjax.requests import batching
from marjax.schema import check

OPTIONS = "group_size:1,uncompressed"
LARGEST_BATCH = 16
"""Images that the encoder works on at a time, on each device."""

logger = logging.getLogger("marjax.data")

Arrays = dict[str, np.ndarray]


def write(
  cache: Path,
  source: Source,
  release: Release,
  release_path: Path,
  mesh: jax.sharding.Mesh,
  settings: CacheSettings,
  choices: Choices,
  progress: bool = False,
) -> Index | None:
  """Writes this host's share; the index if the cache is whole by then.

  Args:
    cache: a new folder, or that of the same command before.
    source: RGB images. settings: that describe it and the autoencoder.
    release: the autoencoder, on `mesh`: this host's devices.
    release_path: where it is, to be copied into the cache.
    progress: show rate and time left.

  Raises:
    ValueError: other settings than before, too many unreadable images, or
      numbers that are not finite.
    OSError: the cache cannot be written.
  """
  share = choices.share(settings.num_shards)
  latent_index.begin(cache, settings)
  _keep(release_path, cache)
  whole = {k: latent_index.read_shard(cache, settings, k) for k in share}
  pending = [k for k in share if whole[k] is None]
  skipped = sum(len(shard.skipped) for shard in whole.values() if shard)
  names = set(map(settings.shard_name, pending))
  for left in cache.glob(".latents-*"):
    if left.name[1:].split(".")[0] in names:
      left.unlink(missing_ok=True)
  total, count = (
    sum(len(settings.span(k)) for k in shards) for shards in (share, pending)
  )
  _check_room(cache, settings, count)
  largest = min(settings.shard_size, settings.num_source)
  size = batching.batch_size(mesh, largest, choices.batch_size, LARGEST_BATCH)
  batches = _batches(source, settings, pending, size, choices, skipped)
  with (
    contextlib.closing(batches),
    tqdm(
      total=total, initial=total - count, unit="image", disable=not progress
    ) as bar,
    jax.default_matmul_precision(settings.matmul_precision),
  ):
    encoded = _encoded(batches, release, settings, mesh, size)
    # The device works on a batch while the one before is written.
    pairs = itertools.pairwise(itertools.chain(encoded, [None]))
    encoded = (batch for batch, _ in pairs)
    for shard, blocks in itertools.groupby(encoded, operator.itemgetter(0)):
      _write_shard(cache, settings, shard, blocks, bar)
  return latent_index.join(cache, settings)


def write_records(path: Path, blocks: Iterable[np.ndarray]) -> tuple[int, str]:
  """Writes a shard's file, whole or not at all; returns its bytes and sha256.

  Args:
    path: of the file; what is there is replaced.
    blocks: arrays of `CacheSettings.record_type`, in order.

  Raises:
    OSError: it cannot be written.
  """
  try:
    with outputs.replacing(path, overwrite=True) as temporary:
      with _telling():
        writer = ArrayRecordWriter(str(temporary), OPTIONS)
      for records in blocks:
        with _telling():
          for record in records:
            writer.write(record.tobytes())
      # What cannot be written, as on a full disk, may be told only now.
      with _telling():
        writer.close()
      with open(temporary, "rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
      return temporary.stat().st_size, sha256
  except OSError as error:
    raise OSError(
      f"{path} cannot be written ({outputs.reason(error.__cause__ or error)});"
      " all whole shards are kept: make room there, or mend the folder, and"
      f" {AGAIN}."
    ) from error


@contextlib.contextmanager
def _telling() -> Iterator[None]:
  """array_record's errors as those of files that they are."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(errno.EIO, str(error).split(";")[0]) from None


def _check_room(cache: Path, settings: CacheSettings, count: int) -> None:
  """Refuses to begin what the disk cannot hold."""
  # array_record adds forty bytes to a record.
  needed = 2 * count * (settings.record_type.itemsize + 64)
  free = shutil.disk_usage(cache).free
  if needed > free:
    raise OSError(
      f"{cache} needs {needed / 1e9:.4g} GB for {count} images, and"
      f" {free / 1e9:.4g} GB are free there; make room, choose another --out,"
      " or float16."
    )


def _keep(release: Path, cache: Path) -> None:
  """Copies the autoencoder into the cache, unless it is there."""
  target = cache / latent_index.AUTOENCODER
  if target.exists():
    for left in cache.glob(".autoencoder.*"):
      shutil.rmtree(left, ignore_errors=True)
    return
  try:
    loading.export(release, target)
  except OSError:
    if not target.exists():  # else another host was quicker
      raise


def _example(source: Source, size: int, index: int) -> dict | Skipped:
  """image, label, id, name of an example, or why there is none.

  Raises:
    ValueError: no RGB image, or no label: it is not this image alone.
  """
  name = source.name(index)
  try:
    example = source[index]
    image = crops.centre_crop(example["image"], size)
  except (ValueError, OSError) as error:
    return Skipped(index, name, decoding.reason(error.__cause__ or error))
  check(
    image.shape == (size, size, 3) and image.dtype == np.uint8,
    f"{name} is {image.dtype} of shape {example['image'].shape}; expected uint8"
    " [height, width, 3], RGB: choose another dataset.",
  )
  check(
    example["label"] >= 0,
    f"{name} has label {example['label']}; expected 0 or more: choose a split"
    " with labels.",
  )
  return {**example, "image": image, "name": name}


def _batches(
  source: Source,
  settings: CacheSettings,
  pending: list[int],
  size: int,
  choices: Choices,
  num_skipped: int,
) -> Iterator[tuple[int, list[dict], list[Skipped]]]:
  """(shard, examples, skipped ones) of at most `size`, read ahead.

  Raises:
    ValueError: too many could not be read, with `num_skipped` before them.
  """
  indices = [i for shard in pending for i in settings.span(shard)]
  read = functools.partial(_example, source, settings.codec.image_size)
  dataset = grain.MapDataset.source(indices).map(read)
  threads = choices.num_threads or os.cpu_count()
  options = grain.ReadOptions(threads, prefetch_buffer_size=2 * size)
  with contextlib.closing(iter(dataset.to_iter_dataset(options))) as examples:
    for shard in pending:
      span = settings.span(shard)
      for start in range(0, len(span), size):
        count = min(size, len(span) - start)
        batch = list(itertools.islice(examples, count))
        skipped = [one for one in batch if isinstance(one, Skipped)]
        for image in skipped:
          logger.warning("skipped %s: %s", image.name, image.reason)
        num_skipped += len(skipped)
        check(
          num_skipped <= choices.max_skipped,
          f"{num_skipped} images could not be read, the last"
          f" {skipped[-1].name if skipped else 'before'}; expected at most"
          f" max_skipped = {choices.max_skipped}: mend or remove them, or raise"
          " --max_skipped.",
        )
        yield shard, [one for one in batch if isinstance(one, dict)], skipped


def _encoded(
  batches: Iterable,
  release: Release,
  settings: CacheSettings,
  mesh: jax.sharding.Mesh,
  size: int,
) -> Iterator[tuple[int, list[dict], list[Skipped], dict[str, jax.Array]]]:
  """Adds float32 arrays [2, size, ...]: of the images, of mirror images."""
  side = settings.codec.image_size
  for shard, examples, skipped in batches:
    images = np.zeros((size, side, side, 3), np.uint8)
    for row, example in enumerate(examples):
      images[row] = example["image"]
    images = jax.device_put(images, batch_sharding(mesh))
    arrays = _encode(settings.codec, release.codec_params, images)
    yield shard, examples, skipped, arrays


@functools.partial(jax.jit, static_argnums=0)
def _encode(codec, params, images):
  pixels = images.astype(jnp.float32) / 127.5 - 1
  both = jnp.stack([pixels, pixels[:, :, ::-1]])
  return jax.lax.map(functools.partial(codec.record, params), both)


def _write_shard(
  cache: Path, settings: CacheSettings, shard: int, blocks: Iterable, bar
) -> None:
  """Writes a shard's file, and then what is in it."""
  name, labels, skipped = settings.shard_name(shard), [], []
  errors: dict[str, Rounding] = {}

  def records():
    for _, examples, unreadable, arrays in blocks:
      exact = {
        key: np.asarray(array)[:, : len(examples)]
        for key, array in arrays.items()
      }
      stored = _stored(exact, examples, settings)
      for key, error in _roundings(stored, exact).items():
        errors[key] = errors.get(key, Rounding()) + error
      yield stored.T.reshape(-1)  # plain, mirrored, plain, mirrored, ...
      labels.extend(int(example["label"]) for example in examples)
      skipped.extend(unreadable)
      bar.update(len(examples) + len(unreadable))

  written = write_records(cache / f"{name}.array_record", records())
  highest = max(labels, default=-1)
  whole = Shard(len(labels), *written, highest, tuple(skipped), errors)
  latent_index.write_shard(cache, name, whole)


def _stored(
  exact: Arrays, examples: list[dict], settings: CacheSettings
) -> np.ndarray:
  """Records [2, N] of a batch; raises ValueError for what is not finite."""
  records = np.empty((2, len(examples)), settings.record_type)
  for key in ("label", "id"):
    records[key] = [example[key] for example in examples]
  for key, array in exact.items():
    with np.errstate(over="ignore"):
      records[key] = array
    axes = (0, *range(2, array.ndim))
    is_finite = np.isfinite(records[key]).all(axis=axes)
    if not is_finite.all():
      name = examples[int(np.argmin(is_finite))]["name"]
      raise ValueError(
        f"the autoencoder makes {key} of {name} that {settings.dtype} cannot"
        " hold; expected finite numbers: try --dtype float32, or another"
        " autoencoder."
      )
  return records


def _roundings(stored: np.ndarray, exact: Arrays) -> dict[str, Rounding]:
  """By array; of moments by mean and log-variance, whose sizes differ much."""
  pairs = {key: (stored[key], array) for key, array in exact.items()}
  if "moments" in pairs:
    halves = (np.split(array, 2, axis=-1) for array in pairs.pop("moments"))
    pairs["mean"], pairs["log_variance"] = zip(*halves, strict=True)
  return {name: Rounding.of(*pair) for name, pair in pairs.items()}
