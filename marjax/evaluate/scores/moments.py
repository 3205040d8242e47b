"""Means and covariances of features, summed as they come; none is kept.

1. On the device, of a batch of rows x, in float32 with full products:

       m = mean of the rows,   Σ (x - m),   Σ (x - m)(x - m)ᵀ.

   Features are far from 0 and vary little, so sums of x xᵀ would lose in
   float32 the digits that a covariance is made of; about the batch's own mean
   they stay.
2. On the host, in float64, two sets of rows of which one knows count, mean and
   scatter are put together exactly (Chan, Golub and LeVeque, 1979):

       scatter = scatter₁ + scatter₂ + n₁ n₂ / (n₁ + n₂) · d dᵀ,   d = m₂ - m₁.

3. Rows that only fill up a batch count nothing, whatever is in them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Float64

from marjax.schema import check

BATCH = 1024
"""Rows summed at once where all of them are at hand."""

PART = 64
"""Rows of a matrix that are added at once."""


class Sums(NamedTuple):
  """What a batch of rows adds to moments; arrays of the device.

  Attributes:
    count: rows that are real.
    shift: what is subtracted from every row, about their mean.
    first: sum of the shifted rows, nearly 0.
    second: sum of their outer products.
  """

  count: Float32[Array, ""]
  shift: Float32[Array, " features"]
  first: Float32[Array, " features"]
  second: Float32[Array, "features features"]


def batch_sums(
  rows: Float32[Array, "batch features"], is_real: Bool[Array, " batch"]
) -> Sums:
  """Sums of the rows that are real; for use inside compiled programs."""
  weights = is_real.astype(rows.dtype)
  count = weights.sum()
  real = jnp.where(is_real[:, None], rows, 0)
  shift = real.sum(0) / jnp.maximum(count, 1)
  shifted = jnp.where(is_real[:, None], rows - shift, 0)
  second = jax.lax.dot(shifted.T, shifted, precision="highest")
  return Sums(count, shift, shifted.sum(0), second)


_batch_sums = jax.jit(batch_sums)


class Moments(NamedTuple):
  """Count, mean and scatter of rows.

  Attributes:
    count: of rows.
    mean: of the rows.
    scatter: sum of (x - mean)(x - mean)ᵀ over the rows.
  """

  count: int
  mean: Float64[np.ndarray, " features"]
  scatter: Float64[np.ndarray, "features features"]

  @property
  def covariance(self) -> Float64[np.ndarray, "features features"]:
    """The unbiased one: scatter over count - 1.

    Raises:
      ValueError: of fewer than two rows.
    """
    check(
      self.count > 1,
      f"there are moments of {self.count} images; expected two or more, which"
      " a covariance needs.",
    )
    return self.scatter / (self.count - 1)


class Known(NamedTuple):
  """Moments that were read, of a number of images that may be unknown.

  Attributes:
    count: of images, 0 where that is unknown.
    mean: of their features.
    covariance: the unbiased one.
  """

  count: int
  mean: Float64[np.ndarray, " features"]
  covariance: Float64[np.ndarray, "features features"]


def empty(num_features: int) -> Moments:
  """Moments of no rows."""
  return Moments(
    0, np.zeros(num_features), np.zeros((num_features, num_features))
  )


def of_features(rows: Float32[np.ndarray, "count features"]) -> Moments:
  """Moments of features that were kept, summed on the device like others."""
  total = empty(rows.shape[1])
  for start in range(0, len(rows), BATCH):
    part = rows[start : start + BATCH]
    padded = np.zeros((BATCH, rows.shape[1]), np.float32)
    padded[: len(part)] = part
    total = add(total, _batch_sums(padded, np.arange(BATCH) < len(part)))
  return total


def add(moments: Moments, sums: Sums) -> Moments:
  """Moments with a batch's sums added, in float64 on the host."""
  more = round(float(sums.count))
  if not more:
    return moments
  shift, first = (np.asarray(array, np.float64) for array in sums[1:3])
  second, rest = np.asarray(sums.second), first / more
  count = moments.count + more
  apart = shift + rest - moments.mean
  weighted = apart * (moments.count * more / count)
  scatter = np.empty_like(moments.scatter)
  # A whole matrix would leave the processor's cache between two operations.
  for start in range(0, len(scatter), PART):
    rows = slice(start, start + PART)
    part = second[rows] - np.outer(first[rows], rest)
    np.add(moments.scatter[rows], part, out=scatter[rows])
    scatter[rows] += np.outer(apart[rows], weighted)
  return Moments(count, moments.mean + apart * (more / count), scatter)
