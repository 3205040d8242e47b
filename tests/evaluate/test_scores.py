"""Scores with known answers."""

import numpy as np
import pytest

from marjax.evaluate import scores


def random_covariance(rng, size, rank=None):
  factor = rng.normal(size=(size, rank or size))
  return factor @ factor.T


def noise_images(rng, count, size=8, low=0, high=256):
  shape = (count, size, size, 1)
  return rng.integers(low, high, shape).astype(np.uint8)


def test_frechet_distance_of_commuting_gaussians():
  # With diagonal covariances it is |m1 - m2|² + Σ (σ1 - σ2)².
  mean1, mean2 = np.array([1.0, 2, 3]), np.array([1.0, 0, 7])
  std1, std2 = np.array([1.0, 5, 0.1]), np.array([4.0, 3, 0.1])
  distance = scores.frechet_distance(
    mean1, np.diag(std1**2), mean2, np.diag(std2**2)
  )
  assert distance == pytest.approx(4 + 16 + 9 + 4, rel=1e-12)


def test_frechet_distance_of_a_rotated_pair():
  # A rotation common to both changes nothing.
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.normal(size=(12, 12)))
  std1, std2 = rng.uniform(0.1, 9, (2, 12))
  mean = np.zeros(12)
  distance = scores.frechet_distance(
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
  distance = scores.frechet_distance(zero, cov1, zero, cov2)
  assert distance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [40, 7])
def test_frechet_distance_to_itself_is_zero(rank):
  rng = np.random.default_rng(1)
  cov = random_covariance(rng, 40, rank)
  mean = rng.normal(size=40)
  distance = scores.frechet_distance(mean, cov, mean, cov)
  assert distance <= 1e-10 * np.trace(cov)


def test_frechet_distance_is_symmetric_and_scales():
  rng = np.random.default_rng(2)
  cov1, cov2 = random_covariance(rng, 9, 5), random_covariance(rng, 9)
  mean1, mean2 = rng.normal(size=(2, 9))
  distance = scores.frechet_distance(mean1, cov1, mean2, cov2)
  swapped = scores.frechet_distance(mean2, cov2, mean1, cov1)
  scaled = scores.frechet_distance(
    10 * mean1, 100 * cov1, 10 * mean2, 100 * cov2
  )
  assert swapped == pytest.approx(distance, rel=1e-12)
  assert scaled == pytest.approx(100 * distance, rel=1e-12)


def test_frechet_distance_refuses_bad_moments():
  zero, one = np.zeros(2), np.eye(2)
  with pytest.raises(ValueError, match="the same D"):
    scores.frechet_distance(zero, one, np.zeros(3), np.eye(3))
  with pytest.raises(ValueError, match="not finite"):
    scores.frechet_distance(zero, one, zero, np.nan * one)


def test_frechet_distance_of_samples_falls_with_their_number():
  rng = np.random.default_rng(3)

  def distance(count):
    halves = rng.normal(size=(2, count, 20))
    return scores.frechet_distance(*sum(map(scores.moments, halves), ()))

  assert distance(200) / distance(2000) == pytest.approx(10, rel=0.35)


def test_frechet_ratio_of_the_training_images_is_one():
  rng = np.random.default_rng(4)
  train, test = noise_images(rng, 300), noise_images(rng, 100)
  ratio = scores.frechet_ratio(train, train, test)
  assert ratio.ratio == pytest.approx(1, rel=1e-9)
  assert ratio.num_components == scores.NUM_COMPONENTS >= 20
  assert 0 < ratio.variance_kept < 1


def test_frechet_ratio_sees_a_shift_and_a_missing_half():
  rng = np.random.default_rng(5)
  train, test = noise_images(rng, 300), noise_images(rng, 100)
  darker = (noise_images(rng, 300) // 2).astype(np.uint8)
  assert scores.frechet_ratio(darker, train, test).ratio > 5
  ramp = np.linspace(0, 255, 300).astype(np.uint8)[:, None, None, None]
  train = train // 4 + ramp // 2
  test = train[rng.permutation(300)[:100]]
  half = train[:150]
  assert scores.frechet_ratio(half, train, test).ratio > 5


def test_frechet_ratio_refuses_too_few_images():
  rng = np.random.default_rng(6)
  train, test = noise_images(rng, 300), noise_images(rng, 20)
  with pytest.raises(ValueError, match="smallest set has 20 images"):
    scores.frechet_ratio(train, train, test)
  with pytest.raises(ValueError, match="same moments"):
    scores.frechet_ratio(train, train, train)


def test_repeated_images_are_drawn_by_class_and_score_above_one():
  rng = np.random.default_rng(10)
  train, test = noise_images(rng, 300), noise_images(rng, 100)
  train_labels = np.arange(300) % 3
  train[train_labels == 1] //= 8
  labels = np.repeat([0, 2, 7], 40)
  # Drawing the dark class 1 would put the ratio far off.
  bright = train[train_labels != 1]
  few = scores.repeated_ratio(train, train_labels, test, labels, 5)
  again = scores.repeated_ratio(train, train_labels, test, labels, 5)
  assert few == again
  own = [
    scores.frechet_ratio(bright[rng.choice(200, 80)], train, test).ratio
    for _ in range(5)
  ]
  assert few[0] == pytest.approx(np.mean(own), rel=0.2)


def test_principal_axes_find_the_plane_of_the_data():
  rng = np.random.default_rng(7)
  plane, _ = np.linalg.qr(rng.normal(size=(30, 2)))
  rows = rng.normal(size=(500, 2)) * [3, 1] @ plane.T + 5
  axes, kept = scores.principal_axes(rows, 2)
  assert kept == pytest.approx(1, abs=1e-12)
  np.testing.assert_allclose(axes @ axes.T, plane @ plane.T, atol=1e-9)


def test_copies_are_all_found_and_unseen_images_hardly_any():
  rng = np.random.default_rng(8)
  train, test = noise_images(rng, 700), noise_images(rng, 300)
  assert scores.near_copy_rate(train, train, test) == 1
  assert scores.near_copy_rate(test, train, test) == pytest.approx(0.01)
  fresh = noise_images(rng, 600)
  assert scores.near_copy_rate(fresh, train, test) < 0.04
  nudged = np.where(train < 255, train + 1, train).astype(np.uint8)
  mixed = np.concatenate([nudged[:300], fresh[:300]])
  assert scores.near_copy_rate(mixed, train, test) == pytest.approx(
    0.5, abs=0.02
  )


def test_nearest_distances_match_the_definition():
  rng = np.random.default_rng(9)
  images, train = noise_images(rng, 300, 4), noise_images(rng, 50, 4)
  apart = images[:, None].astype(float) - train[None]
  expected = np.sqrt((apart**2).sum((2, 3, 4))).min(1)
  found = scores.nearest_distances(images, train)
  np.testing.assert_array_equal(found, expected)


def test_classifier_scores_real_digits_and_counts_wrong_labels():
  datasets = pytest.importorskip("sklearn.datasets")
  digits = datasets.load_digits()
  images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
  train, test = slice(None, 1400), slice(1400, None)
  classifier = scores.fit_classifier(images[train], digits.target[train])
  labels = digits.target[test].copy()
  accuracy = scores.label_accuracy(classifier, images[test], labels)
  assert accuracy > 0.95
  by_class = scores.accuracy_by_class(classifier, images[test], labels)
  weighted = [np.mean(labels == label) * by_class[label] for label in range(10)]
  assert sum(weighted) == pytest.approx(accuracy)
  wrong = (labels + 1) % 10
  assert scores.label_accuracy(classifier, images[test], wrong) < 0.05


def test_scores_refuse_images_that_are_not_uint8():
  images = np.zeros((3, 8, 8, 1))
  with pytest.raises(ValueError, match="expected at least one uint8"):
    scores.nearest_distances(images, images)
