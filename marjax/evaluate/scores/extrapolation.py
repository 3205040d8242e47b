"""The Fréchet distance that infinitely many images would have.

1. Of N images the expected distance is d∞ + c / N, c depending on the model
   (Chong and Forsyth, 2020): more images always look better.
2. Distances of subsets of several sizes, drawn without replacement, are fit by
   a line in 1 / N; d∞ is where it meets 0. Sizes go from a tenth of the images,
   at most 5 000, to all of them.
3. Real images are few too: where their features are at hand subsets of them
   grow alongside, and the line takes away both biases. Of statistics that were
   read there are only the moments of all.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from marjax.evaluate.scores import frechet
from marjax.evaluate.scores.moments import Known, Moments
from marjax.schema import check

LARGEST_FIRST = 5000


class Line(NamedTuple):
  """The fit.

  Attributes:
    infinity: the distance at infinitely many images; may be below 0.
    slope: c.
    sizes, distances: what was fit.
  """

  infinity: float
  slope: float
  sizes: tuple[int, ...]
  distances: tuple[float, ...]


def extrapolate(
  generated: Float32[np.ndarray, "generated features"],
  real: Float32[np.ndarray, "real features"] | Moments | Known,
  num_sizes: int = 15,
  seed: int = 2020,
) -> Line:
  """The line through distances of growing subsets.

  Raises:
    ValueError: there are too few images for different sizes.
  """
  is_growing = isinstance(real, np.ndarray)
  count = min(len(generated), len(real)) if is_growing else len(generated)
  first = min(LARGEST_FIRST, count // 10)
  check(
    first >= 2 and count - first >= num_sizes - 1,
    f"there are {count} images; expected at least {max(20, 2 * num_sizes)} to"
    f" extrapolate from {num_sizes} sizes: take more images or fewer sizes.",
  )
  sizes = np.linspace(first, count, num_sizes).astype(int).tolist()
  rng = np.random.default_rng(seed)
  fixed = None
  if not is_growing:
    fixed = frechet.gaussian(real.mean, real.covariance)
  distances = []
  for size in sizes:
    ours = frechet.gaussian_of_rows(_drawn(rng, generated, size))
    theirs = fixed or frechet.gaussian_of_rows(_drawn(rng, real, size))
    distances.append(frechet.between(ours, theirs))
  slope, infinity = np.polyfit(1 / np.array(sizes), distances, 1)
  return Line(float(infinity), float(slope), tuple(sizes), tuple(distances))


def _drawn(rng, rows: np.ndarray, size: int) -> np.ndarray:
  """Different rows, in any order."""
  return rows[rng.permutation(len(rows))[:size]]
