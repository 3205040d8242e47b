"""Fréchet distance of two Gaussians.

|m1 - m2|² + tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½)

"""

import numpy as np

from marjax.evaluate.scores.moments import Moments


def distance(one: Moments, other: Moments) -> float:
  """The distance of two sets of rows, from their moments."""
  return frechet_distance(
    one.mean, one.covariance, other.mean, other.covariance
  )


def frechet_distance(
  mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
  """Squared 2-Wasserstein distance of two Gaussians, in float64.

  The trace of (S1^½ S2 S1^½)^½ is the sum of singular values of S1^½ S2^½:
  that form never squares a small eigenvalue, and singular covariances need
  nothing added to their diagonals.

  Args:
    mean1: [D]. cov1: [D, D], symmetric, no negative eigenvalues.
    mean2: [D]. cov2: [D, D], likewise.

  Raises:
    ValueError: shapes differ, or a number is not finite.
  """
  arrays = [np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2)]
  mean1, cov1, mean2, cov2 = arrays
  shapes = [a.shape for a in arrays]
  if shapes != [(len(mean1),), (len(mean1),) * 2] * 2:
    raise ValueError(
      f"means and covariances have shapes {shapes}; expected [D] and [D, D]"
      " twice, with the same D."
    )
  if not all(np.isfinite(a).all() for a in arrays):
    raise ValueError(
      "a mean or covariance holds a number that is not finite; expected"
      " finite moments: look for such numbers in the images."
    )
  product = _square_root(cov1) @ _square_root(cov2)
  overlap = np.linalg.svd(product, compute_uv=False).sum()
  distance = np.sum((mean1 - mean2) ** 2)
  distance += np.trace(cov1) + np.trace(cov2) - 2 * overlap
  return float(max(distance, 0.0))


def _square_root(covariance: np.ndarray) -> np.ndarray:
  """The symmetric square root of a positive semi-definite matrix."""
  values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
  # Rounding leaves eigenvalues of about ±1e-16 of the largest where the exact
  # one is 0; their roots, 1e-8 of its root, would spoil half the digits.
  noise = np.abs(values).max(initial=0) * len(values) * np.finfo(float).eps
  return (vectors * np.sqrt(np.where(values > noise, values, 0))) @ vectors.T
