"""The Fréchet distance where its answer is known."""

import numpy as np
import pytest

from marjax.evaluate.scores.frechet import frechet_distance


def random_covariance(rng, size, rank=None):
  factor = rng.normal(size=(size, rank or size))
  return factor @ factor.T


def test_frechet_distance_of_commuting_gaussians():
  # With diagonal covariances it is |m1 - m2|² + Σ (σ1 - σ2)².
  mean1, mean2 = np.array([1.0, 2, 3]), np.array([1.0, 0, 7])
  std1, std2 = np.array([1.0, 5, 0.1]), np.array([4.0, 3, 0.1])
  distance = frechet_distance(mean1, np.diag(std1**2), mean2, np.diag(std2**2))
  assert distance == pytest.approx(4 + 16 + 9 + 4, rel=1e-12)


def test_frechet_distance_of_a_rotated_pair():
  # A rotation common to both changes nothing.
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.normal(size=(12, 12)))
  std1, std2 = rng.uniform(0.1, 9, (2, 12))
  mean = np.zeros(12)
  distance = frechet_distance(
    mean, turn * std1**2 @ turn.T, mean, turn * std2**2 @ turn.T
  )
  assert distance == pytest.approx(np.sum((std1 - std2) ** 2), rel=1e-12)


def test_frechet_distance_of_two_by_two_matrices_by_hand():
  # The square root of a 2×2 matrix M has trace sqrt(tr M + 2 sqrt(det M)).
  cov1 = np.array([[2.0, 1.0], [1.0, 3.0]])
  cov2 = np.array([[4.0, -1.0], [-1.0, 1.0]])
  product = cov1 @ cov2
  overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
  expected = np.trace(cov1) + np.trace(cov2) - 2 * overlap
  zero = np.zeros(2)
  distance = frechet_distance(zero, cov1, zero, cov2)
  assert distance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [40, 7])
def test_frechet_distance_to_itself_is_zero(rank):
  rng = np.random.default_rng(1)
  cov = random_covariance(rng, 40, rank)
  mean = rng.normal(size=40)
  distance = frechet_distance(mean, cov, mean, cov)
  assert distance <= 1e-10 * np.trace(cov)


@pytest.mark.parametrize("seed", range(8))
def test_a_singular_covariance_gains_nothing_by_rounding(seed):
  # A Cholesky factor of one of rank 39 has a pivot of 1e-8 or of none.
  rng = np.random.default_rng(seed)
  one, other = rng.normal(size=(40, 39)), rng.normal(size=(40, 40))
  overlap = np.linalg.svd(one.T @ other, compute_uv=False).sum()
  expected = np.sum(one**2) + np.sum(other**2) - 2 * overlap
  zero = np.zeros(40)
  distance = frechet_distance(zero, one @ one.T, zero, other @ other.T)
  assert distance == pytest.approx(expected, rel=1e-12)


def test_no_features_are_no_distance_apart():
  mean, covariance = np.zeros(0), np.zeros((0, 0))
  assert frechet_distance(mean, covariance, mean, covariance) == 0


def test_frechet_distance_is_symmetric_and_scales():
  rng = np.random.default_rng(2)
  cov1, cov2 = random_covariance(rng, 9, 5), random_covariance(rng, 9)
  mean1, mean2 = rng.normal(size=(2, 9))
  distance = frechet_distance(mean1, cov1, mean2, cov2)
  swapped = frechet_distance(mean2, cov2, mean1, cov1)
  scaled = frechet_distance(10 * mean1, 100 * cov1, 10 * mean2, 100 * cov2)
  assert swapped == pytest.approx(distance, rel=1e-12)
  assert scaled == pytest.approx(100 * distance, rel=1e-12)


def test_frechet_distance_refuses_bad_moments():
  zero, one = np.zeros(2), np.eye(2)
  with pytest.raises(ValueError, match="the same D"):
    frechet_distance(zero, one, np.zeros(3), np.eye(3))
  with pytest.raises(ValueError, match="not finite"):
    frechet_distance(zero, one, zero, np.nan * one)


def test_frechet_distance_of_samples_falls_with_their_number():
  rng = np.random.default_rng(3)

  def distance(count):
    one, other = rng.normal(size=(2, count, 20))
    return frechet_distance(
      one.mean(0), np.cov(one.T), other.mean(0), np.cov(other.T)
    )

  assert distance(200) / distance(2000) == pytest.approx(10, rel=0.35)
