"""Mean, standard deviation and scale of cached latents.

A latent is mean + exp(log_variance / 2) · noise, drawn anew each time, or the
mean itself where no variance is stored. So over images, mirror images,
positions and noise, per channel c:

    E_c = E[mean]       std_c² = E[exp(log_variance)] + E[mean²] - E_c²

1. One pass over the cache sums mean, mean² and exp(log_variance) in float64.
2. For all channels together the same with the sums added up; that E is one
   number. latent_scale = 1 / std: scaled latents then vary by 1. Their mean is
   not removed, neither here per channel nor in training, so `rms`, the root of
   E[latent²], is given too.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from tqdm import tqdm

from marjax import outputs
from marjax.data.latent_cache import CachedLatents
from marjax.release import json_files
from marjax.schema import check

FILE = "statistics.json"
CHUNK = 256


@dataclass(frozen=True)
class Spread:
  """Of some latents: mean, standard deviation, root mean square."""

  mean: float
  std: float
  rms: float


@dataclass(frozen=True)
class Statistics:
  """Of drawn latents before scaling.

  Attributes:
    num_examples: images, each counted plain and mirrored.
    latent_scale: 1 / std of all.
    all: all channels together. channels: one by one.
  """

  num_examples: int
  latent_scale: float
  all: Spread
  channels: tuple[Spread, ...]

  def __str__(self) -> str:
    rows = [("all", self.all), *enumerate(self.channels)]
    lines = [f"{'channel':>7} {'mean':>9} {'std':>9} {'rms':>9}"]
    lines += [
      f"{name:>7} {row.mean:9.4f} {row.std:9.4f} {row.rms:9.4f}"
      for name, row in rows
    ]
    lines.append(f"latent_scale = 1 / std = {self.latent_scale:.4f}")
    return "\n".join(lines)


def measure(
  latents: CachedLatents, num_threads: int = 2, progress: bool = False
) -> Statistics:
  """One pass over the cache, plain and mirrored.

  Raises:
    ValueError: the latents are codes, or have no finite spread.
  """
  check(
    latents.codec.num_codes == 0,
    f"{latents.path} holds codes, 0 to {latents.codec.num_codes - 1}; expected"
    " latents of floats, which have a mean and a scale: leave --statistics"
    " out.",
  )
  count = len(latents)
  chunks = np.array_split(np.arange(count), -(-count // CHUNK))
  with ThreadPoolExecutor(num_threads) as pool:
    sums = tqdm(
      pool.map(functools.partial(_sums, latents), chunks),
      total=len(chunks),
      unit="image",
      unit_scale=CHUNK,
      disable=not progress,
    )
    total = sum(sums)
  rows, columns, _ = latents.codec.latent_shape
  total /= 2 * count * rows * columns
  everything = _spread(*total.mean(axis=1))
  check(
    0 < everything.std < math.inf,
    f"the latents have a standard deviation of {everything.std}, which gives no"
    " scale; expected finite latents that vary: look at the images, and at the"
    " autoencoder.",
  )
  return Statistics(
    count,
    1 / everything.std,
    everything,
    tuple(_spread(*channel) for channel in total.T),
  )


def save(cache: Path, statistics: Statistics) -> Path:
  """Writes CACHE/statistics.json, anew if it is there; returns its path."""
  path = cache / FILE
  content = json_files.write_json(asdict(statistics))
  outputs.write(path, content, overwrite=True)
  return path


def _sums(
  latents: CachedLatents, indices: np.ndarray
) -> Float64[np.ndarray, "3 C"]:
  """Sums of mean, mean² and variance, per channel."""
  sums = 0
  for is_mirrored in (False, True):
    coins = np.full(len(indices), is_mirrored)
    record = latents.gather(indices, coins)[0]
    if "latents" in record:  # nothing is drawn
      mean = record["latents"].astype(np.float64)
      variance = np.zeros_like(mean)
    else:
      moments = record["moments"].astype(np.float64)
      mean, log_variance = np.split(moments, 2, axis=-1)
      variance = np.exp(log_variance)
    parts = np.stack([mean, np.square(mean), variance])
    sums = sums + parts.sum(axis=(1, 2, 3))
  return sums


def _spread(mean: float, square: float, variance: float) -> Spread:
  total = square + variance
  return Spread(
    float(mean), math.sqrt(total - mean**2), float(math.sqrt(total))
  )
