"""Kernel Inception distance: a squared maximum mean discrepancy.

1. With the kernel k(x, y) = (x·y / D + 1)³ of features of length D (Bińkowski
   et al., 2018), of sets of m images,

       mean of k(x, x') + mean of k(y, y') - 2 mean of k(x, y),

   the first two over pairs of different images, so that its expectation is 0
   for two sets of one distribution, and a value may be below 0.
2. Mean and standard deviation are over subsets, drawn without replacement;
   with a seed of 2020, as torch-fidelity draws them.
3. The kernel is less 1, which cancels, and everything is float64: a difference
   of three means is a thousandth of each.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from marjax.arrays import kept
from marjax.schema import check


class KernelDistance(NamedTuple):
  """Over subsets.

  Attributes:
    mean: the distance.
    deviation: the population standard deviation, its error.
  """

  mean: float
  deviation: float


def kernel_distance(
  *,
  generated: Float32[np.ndarray, "generated features"],
  real: Float32[np.ndarray, "real features"],
  num_subsets: int = 100,
  subset_size: int = 1000,
  seed: int = 2020,
) -> KernelDistance:
  """The distance of two sets of features.

  Raises:
    ValueError: a set has fewer images than a subset.
  """
  fewest = min(len(generated), len(real))
  check(
    fewest >= subset_size,
    f"the smaller set has {fewest} images; expected {subset_size} or more, as"
    " many as a subset of the kernel distance has: take more images or a"
    " smaller subset_size.",
  )
  sizes = (len(generated), len(real), num_subsets, subset_size, seed)
  values = []
  for own, drawn in zip(_of_real(real, *sizes), _drawn(*sizes), strict=True):
    ours, theirs = (
      np.asarray(rows[numbers], np.float64)
      for rows, numbers in zip((generated, real), drawn, strict=True)
    )
    between = _sum(ours, theirs) / subset_size**2
    values.append(own + _mean_of_others(ours) - 2 * between)
  return KernelDistance(float(np.mean(values)), float(np.std(values)))


@kept
def _of_real(
  real: Float32[np.ndarray, "real features"], *sizes: int
) -> list[float]:
  """The part of each subset's value that generated images have no say in."""
  return [
    _mean_of_others(np.asarray(real[numbers], np.float64))
    for _, numbers in _drawn(*sizes)
  ]


def _drawn(
  num_generated: int, num_real: int, num_subsets: int, size: int, seed: int
) -> Iterator[list[np.ndarray]]:
  """Numbers of the generated and of the real images, subset by subset."""
  rng = np.random.RandomState(seed)
  for _ in range(num_subsets):
    counts = (num_generated, num_real)
    yield [rng.choice(count, size, False) for count in counts]


def _mean_of_others(rows: np.ndarray) -> float:
  """Mean of the kernel of different images of one set."""
  own = np.square(rows).sum(1) / rows.shape[1]
  count, itself = len(rows), np.sum(own * (3 + own * (3 + own)))
  return (_sum(rows, rows) - itself) / (count * (count - 1))


def _sum(rows: np.ndarray, columns: np.ndarray) -> float:
  """Sum of (x·y / D + 1)³ - 1 over all pairs."""
  product = rows @ columns.T
  product /= rows.shape[1]
  squared = np.square(product)
  return 3 * (product.sum() + squared.sum()) + np.vdot(squared, product)
