"""Times the input pipeline of ImageNet training; one JSON line per measurement.

    python -m benchmarks.data --num_images 256

1. crop: JPEG files of 500×375 pixels, made of scikit-learn's two photographs,
   are decoded, converted to RGB and cropped to 256². Its seconds are processor
   time, so the rate is that of one core.
2. write: random moments of KL-16, 16×16×32 in float16, go to shards of a
   cache, hashed and synced; one thread. Encoding is left out: see
   `benchmarks.codec`.
3. read: batches of random examples of that cache, plain or mirrored at random,
   as training reads them, by 1 and 2 threads at a time. The files were just
   written, so they are in the page cache.

Each is repeated; seconds are per image.
"""

import argparse
import io
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import flags
from experiments import programs, rows
from marjax.data import (
  crops,
  decoding,
  latent_cache,
  latent_index,
  latent_writer,
)
from marjax.data.latent_index import CacheSettings, Shard
from marjax.experiment import DataConfig
from marjax.latents.kl import KLConfig

KL16 = KLConfig()
TASKS = ("crop", "write", "read")
SHARD_SIZE = 320
THREADS = (1, 2)
PACKAGES = ("pillow", "array_record", "scikit-learn")


def measure(
  tasks: Sequence[str], num_images: int, batch_size: int, repeats: int
) -> Iterator[dict]:
  """Rows of the tasks, as the module's docstring describes them.

  Args:
    tasks: of TASKS. num_images: of a round. batch_size: images read at once.
    repeats: rounds.
  """
  if "crop" in tasks:
    jpegs, clock = files(), time.process_time
    seconds = _rounds(lambda: crop_all(jpegs, num_images), repeats, clock)
    yield _row("crop", seconds, num_images, threads=1)
  if not {"write", "read"} & set(tasks):
    return
  with tempfile.TemporaryDirectory(prefix="marjax-") as name:
    caches = (Path(name) / str(i) for i in itertools.count())
    seconds = _rounds(lambda: write(next(caches), num_images), repeats)
    if "write" in tasks:
      yield _row("write", seconds, num_images, threads=1)
    if "read" in tasks:
      latents = _opened(Path(name) / "0")
      for threads in THREADS:
        rounds = [
          read(latents, num_images, batch_size, threads, seed)
          for seed in range(repeats + 1)
        ]
        yield _row("read", rounds[1:], num_images, threads, batch_size)


def files() -> list[bytes]:
  """Two photographs as JPEG files of the usual size of ImageNet's."""
  from PIL import Image
  from sklearn import datasets

  made = []
  for pixels in datasets.load_sample_images().images:
    file = io.BytesIO()
    picture = Image.fromarray(pixels).resize((500, 375))
    picture.save(file, "JPEG", quality=92)
    made.append(file.getvalue())
  return made


def crop_all(jpegs: list[bytes], count: int) -> np.ndarray:
  """Decodes and crops `count` files in turn; returns the last image."""
  for jpeg in itertools.islice(itertools.cycle(jpegs), count):
    image = decoding.decode(io.BytesIO(jpeg), "RGB")
    cropped = crops.centre_crop(image, KL16.image_size)
  return cropped


def write(cache: Path, count: int) -> None:
  """A cache of random moments, without an autoencoder."""
  settings = CacheSettings(
    source="random",
    split="train",
    num_source=count,
    codec=KL16,
    digest="",
    shard_size=SHARD_SIZE,
  )
  latent_index.begin(cache, settings)
  kind = settings.record_type
  rng = np.random.default_rng(0)
  moments = rng.standard_normal((2 * SHARD_SIZE, *kind["moments"].shape))
  moments = moments.astype(kind["moments"].base)
  for number in range(settings.num_shards):
    span = settings.span(number)
    block = np.empty(2 * len(span), kind)
    block["label"] = 0
    block["id"] = np.repeat(span, 2)
    block["moments"] = moments[: len(block)]
    name = settings.shard_name(number)
    path = cache / f"{name}.array_record"
    written = latent_writer.write_records(path, [block])
    latent_index.write_shard(cache, name, Shard(len(span), *written, 0))
  latent_index.join(cache, settings)


def read(
  latents: latent_cache.CachedLatents,
  count: int,
  batch_size: int,
  threads: int,
  seed: int,
) -> float:
  """Seconds that reading `count` random examples takes."""
  rng = np.random.default_rng(seed)
  batches = [
    (
      rng.integers(0, len(latents), batch_size),
      rng.integers(0, 2, batch_size).astype(bool),
    )
    for _ in range(-(-count // batch_size))
  ]
  with ThreadPoolExecutor(threads) as pool:
    start = time.perf_counter()
    for (indices, _), found in zip(
      batches,
      pool.map(lambda batch: latents.gather(*batch), batches),
      strict=True,
    ):
      if (found[2] != indices).any():
        raise RuntimeError("other examples were read than were asked for")
    seconds = time.perf_counter() - start
  return seconds * count / (batch_size * len(batches))


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → measurements → appended lines; 2 after an error to mend."""
  args = _flags(argv)
  tasks = programs.chosen("task", args.tasks, TASKS)
  rows.make(args.out)
  for row in measure(tasks, args.num_images, args.batch_size, args.repeats):
    rows.append(args.out, row)
    print(
      f"{row['task']}, {row['threads']} threads:"
      f" {row['images_per_second']:.5g} images/s",
      flush=True,
    )


def _opened(cache: Path) -> latent_cache.CachedLatents:
  config = DataConfig("latents", KL16.image_size, 1, data_dir=str(cache))
  return latent_cache.CachedLatents(config)


def _rounds(
  call: Callable, repeats: int, clock: Callable = time.perf_counter
) -> list[float]:
  """Seconds of `repeats` calls after a warm-up."""
  seconds = []
  for _ in range(repeats + 1):
    start = clock()
    call()
    seconds.append(clock() - start)
  return seconds[1:]


def _row(
  task: str,
  seconds: list[float],
  count: int,
  threads: int,
  batch_size: int | None = None,
) -> dict:
  median = float(np.median(seconds))
  return {
    "task": task,
    "num_images": count,
    "threads": threads,
    "batch_size": batch_size,
    "repeats": len(seconds),
    "seconds": median / count,
    "seconds_fastest": min(seconds) / count,
    "seconds_slowest": max(seconds) / count,
    "images_per_second": count / median,
    "load": os.getloadavg()[0],
    **flags.where(*PACKAGES),
  }


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("--tasks", default=",".join(TASKS), help=",".join(TASKS))
  parser.add_argument(
    "--num_images", type=programs.count, default=8192, help="of a round"
  )
  parser.add_argument(
    "--batch_size",
    type=programs.count,
    default=256,
    help="images read at a time",
  )
  flags.add_repeats(parser)
  flags.add_out(parser, "data")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
