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

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

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
  rng = np.random.RandomState(seed)
  values = []
  for _ in range(num_subsets):
    ours, theirs = (
      np.asarray(rows[rng.choice(len(rows), subset_size, False)], np.float64)
      for rows in (generated, real)
    )
    own = _mean_of_others(_kernel(ours, ours))
    own += _mean_of_others(_kernel(theirs, theirs))
    values.append(own - 2 * _kernel(ours, theirs).mean())
  return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _kernel(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """(x·y / D + 1)³ - 1 of all pairs."""
  product = rows @ columns.T / rows.shape[1]
  return product * (3 + product * (3 + product))


def _mean_of_others(kernel: np.ndarray) -> float:
  """Mean of the kernel of different images of one set."""
  count = len(kernel)
  return (kernel.sum() - np.trace(kernel)) / (count * (count - 1))
