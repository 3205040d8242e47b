"""The distance of infinitely many images, and how sure a score is."""

import jax
import numpy as np
import pytest
from evaluate.networks import moments_of

from marjax.evaluate.scores import bootstrap, class_score, frechet, moments
from marjax.evaluate.scores.extrapolation import extrapolate
from marjax.evaluate.scores.options import Options


def rows(seed, count, shift=0.0, size=20):
  rng = np.random.default_rng(seed)
  return rng.normal(1 + shift, 1, (count, size)).astype(np.float32)


def test_two_halves_of_one_set_are_no_distance_apart():
  halves = rows(0, 1000), rows(1, 1000)
  plain = frechet.distance(*map(moments_of, halves))
  line = extrapolate(*halves)
  assert plain > 0.15
  assert abs(line.infinity) < 0.1 * plain
  assert line.sizes[0] == 100
  assert line.sizes[-1] == 1000
  assert len(line.sizes) == 15
  assert line.distances[-1] == pytest.approx(plain, rel=1e-5)
  assert line.slope == pytest.approx(plain * 1000, rel=0.2)


def test_against_moments_the_bias_of_generated_images_is_taken_away():
  # Of the true moments, so that the distance of infinitely many is known.
  truth = moments.Known(0, np.ones(20), np.eye(20))
  shifted = rows(2, 1500, 0.1)
  plain = frechet.distance(moments_of(shifted), truth)
  line = extrapolate(shifted, truth)
  assert plain > 0.22 > 1.08 * 0.2
  assert line.infinity == pytest.approx(0.2, abs=0.03)


def test_too_few_images_to_extrapolate_from_are_refused():
  with pytest.raises(ValueError, match="15 images; expected at least 30"):
    extrapolate(rows(0, 15), rows(1, 15))


def test_a_gaussian_of_few_rows_is_that_of_their_moments():
  few, other = rows(3, 12), frechet.gaussian(np.zeros(20), np.eye(20))
  summed = moments_of(few)
  expected = frechet.gaussian(summed.mean, summed.covariance)
  assert frechet.between(frechet.gaussian_of_rows(few), other) == pytest.approx(
    frechet.between(expected, other), rel=1e-10
  )
  many = rows(4, 30)
  summed = moments_of(many)
  expected = frechet.gaussian(summed.mean, summed.covariance)
  assert frechet.between(
    frechet.gaussian_of_rows(many), other
  ) == pytest.approx(frechet.between(expected, other), rel=1e-6)


def test_an_interval_is_as_wide_as_samples_differ():
  real = moments_of(rows(0, 2000))
  sets = [rows(10 + seed, 300, 0.5) for seed in range(30)]
  values = [frechet.distance(moments_of(each), real) for each in sets]
  ends = bootstrap.of_frechet(values[0], sets[0], real, 60)
  assert ends.low < values[0] < ends.high
  width = (ends.high - ends.low) / (2 * 1.96)
  assert width == pytest.approx(np.std(values), rel=0.5)
  assert ends == bootstrap.of_frechet(values[0], sets[0], real, 60)


def test_an_interval_is_around_its_value_though_repeats_are_farther():
  # Of one distribution, where nearly all of a distance is that of few images.
  real, few = moments_of(rows(0, 2000)), rows(50, 300)
  value = frechet.distance(moments_of(few), real)
  ends = bootstrap.of_frechet(value, few, real, 40)
  assert ends.low < value < ends.high


def test_the_interval_of_a_share_is_binomial():
  is_so = np.arange(400) < 100
  low, high = bootstrap.of_share(is_so, 2000)
  error = 1.96 * np.sqrt(0.25 * 0.75 / 400)
  assert low == pytest.approx(0.25 - error, abs=0.006)
  assert high == pytest.approx(0.25 + error, abs=0.006)


def class_scores(sets):
  """The class score's mean of each set of logits."""
  splits = class_score.splits_of(sets.shape[1])
  program = jax.jit(class_score.batch_sums, static_argnums=3)
  empty = class_score.empty(10, sets.shape[2])
  sums = [program(logits, splits, splits >= 0, 10) for logits in sets]
  return [
    class_score.class_score(class_score.add(empty, each)).mean for each in sums
  ]


def test_the_interval_of_a_class_score_is_as_wide_as_samples_differ():
  rng = np.random.default_rng(0)
  sets = rng.normal(0, 2, (40, 500, 12)).astype(np.float32)
  values = class_scores(sets)
  options = Options(num_draws=100)
  ends = bootstrap.of_class_score(values[0], sets[0], options)
  # Around the value, though the mean of draws is lower: images repeat.
  assert ends.low < values[0] < ends.high
  width = (ends.high - ends.low) / (2 * 1.96)
  assert width == pytest.approx(np.std(values), rel=0.3)


def test_every_image_once_is_the_class_score_itself():
  class Once:
    def integers(self, count, size):
      return np.arange(size)

  logits = np.random.default_rng(0).normal(0, 3, (203, 12)).astype(np.float32)
  draw = class_score.of_draws(logits, class_score.splits_of(203))
  (expected,) = class_scores(logits[None])
  assert draw(Once()) == pytest.approx(expected, rel=1e-6)
