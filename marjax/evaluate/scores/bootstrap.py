"""Intervals of scores: how much would other images have given.

1. Images are drawn with replacement, as many as there are, again and again, and
   scored (Efron, 1979); for a share that is a binomial number, and for a class
   score they are drawn within each of its splits.
2. A set with repeated images is farther from the real ones than one without:
   the draws of a Fréchet distance lie above its value, those of a class score
   below. So their deviations from their own mean are put around the value; 95 %
   of them are the interval.

It says how far another sample of the same model would differ, not another
training: training again moves a Fréchet distance about three times as much.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from marjax.evaluate.scores import class_score, frechet
from marjax.evaluate.scores.moments import Known, Moments
from marjax.evaluate.scores.options import Options

PERCENTILES = (2.5, 97.5)


class Interval(NamedTuple):
  """95 % of the draws.

  Attributes:
    low, high: its ends.
  """

  low: float
  high: float


def interval(
  value: float,
  draw: Callable[[np.random.Generator], float],
  num_draws: int,
  seed: int = 2020,
) -> Interval:
  """The interval around a value, from draws of it."""
  rng = np.random.default_rng(seed)
  draws = np.array([draw(rng) for _ in range(num_draws)])
  low, high = value + np.percentile(draws - draws.mean(), PERCENTILES)
  return Interval(float(low), float(high))


def of_share(
  is_so: Bool[np.ndarray, " images"], num_draws: int, seed: int = 2020
) -> Interval:
  """The interval of a share of images."""
  count, share = len(is_so), float(is_so.mean())
  return interval(
    share, lambda rng: rng.binomial(count, share) / count, num_draws, seed
  )


def of_frechet(
  value: float,
  features: Float32[np.ndarray, "images features"],
  real: Moments | Known,
  num_draws: int,
  seed: int = 2020,
) -> Interval:
  """The interval of a Fréchet distance; the real side stays as it is."""
  fixed = frechet.gaussian(real.mean, real.covariance)

  def draw(rng):
    rows = features[rng.integers(len(features), size=len(features))]
    return frechet.between(frechet.gaussian_of_rows(rows), fixed)

  return interval(value, draw, num_draws, seed)


def of_class_score(
  value: float, logits: Float32[np.ndarray, "images classes"], options: Options
) -> Interval:
  """The interval of a class score's mean; splits keep their sizes."""
  splits = class_score.splits_of(len(logits), options.num_splits, options.order)
  draw = class_score.of_draws(logits, splits)
  return interval(value, draw, options.num_draws, options.seed)
