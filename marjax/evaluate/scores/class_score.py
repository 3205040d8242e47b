"""Inception Score: how sure a classifier is of each image, how varied of all.

1. With p(y|x) the softmax of an image's logits (Salimans et al., 2016),

       score = exp(mean over images of KL(p(y|x) ‖ mean of p(y|x))).

2. The mean of KL is mean Σ p log p - Σ p̄ log p̄, so that sums of p and of
   p log p are all that is kept; log p is a log-softmax, nothing is added to p.
3. The images are split in ten; mean and standard deviation are over the splits,
   and the score of all images at once is beside them. A split sees N / 10
   images, so the mean of splits is lower than the unsplit score.
4. Which split image i of N belongs to is drawn beforehand: shuffled, as
   torch-fidelity does, or in the order that they come in, as ADM does. Images
   that come class by class must be shuffled: in order, a split sees a tenth of
   the classes and the score falls to a fifth.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Float64, Int32

from marjax.schema import check

SHUFFLE_SEED = 2020
"""Of torch-fidelity's shuffle, so that splits are those of published scores."""


def splits_of(
  num_images: int, num_splits: int = 10, order: str = "shuffled"
) -> Int32[np.ndarray, " images"]:
  """The split of every image, [num_images].

  Args:
    order: "shuffled", or "given" for consecutive images in a split.

  Raises:
    ValueError: there are fewer images than splits, or no such order.
  """
  check(
    num_images >= num_splits,
    f"there are {num_images} images for {num_splits} splits of the class score;"
    " expected an image or more for each: take more images or fewer splits.",
  )
  check(
    order in ("shuffled", "given"),
    f"the order of images is {order!r}; expected 'shuffled' or 'given'.",
  )
  ends = np.arange(1, num_splits + 1) * num_images // num_splits
  splits = np.searchsorted(ends, np.arange(num_images), side="right")
  splits = splits.astype(np.int32)
  if order == "given":
    return splits
  place = np.random.RandomState(SHUFFLE_SEED).permutation(num_images)
  shuffled = np.empty_like(splits)
  shuffled[place] = splits
  return shuffled


class Sums(NamedTuple):
  """Sums over the images of each split, of the device or, float64, the host.

  Attributes:
    counts: images.
    chances: of p(y|x).
    certainty: of Σ p log p, at most 0.
  """

  counts: Float32[Array, " splits"] | Float64[np.ndarray, " splits"]
  chances: (
    Float32[Array, "splits classes"] | Float64[np.ndarray, "splits classes"]
  )
  certainty: Float32[Array, " splits"] | Float64[np.ndarray, " splits"]


def batch_sums(
  logits: Float32[Array, "batch classes"],
  splits: Int32[Array, " batch"],
  is_real: Bool[Array, " batch"],
  num_splits: int,
) -> Sums:
  """Sums of the images that are real; for use inside compiled programs."""
  log_chances = jax.nn.log_softmax(logits, axis=-1)
  chances = jnp.exp(log_chances)
  certainty = jnp.sum(chances * log_chances, -1, where=chances > 0)
  each = jnp.concatenate([chances, certainty[:, None]], axis=1)
  each = jnp.where(is_real[:, None], each, 0)
  is_in = (splits[:, None] == jnp.arange(num_splits)) & is_real[:, None]
  is_in = is_in.astype(each.dtype)
  totals = jax.lax.dot(is_in.T, each, precision="highest")
  return Sums(is_in.sum(0), totals[:, :-1], totals[:, -1])


def empty(num_splits: int, num_classes: int) -> Sums:
  """Sums of no images."""
  return Sums(
    np.zeros(num_splits),
    np.zeros((num_splits, num_classes)),
    np.zeros(num_splits),
  )


def add(one: Sums, other: Sums) -> Sums:
  """Sums of the images of both, in float64 on the host."""
  return jax.tree.map(
    lambda mine, theirs: np.add(mine, theirs, dtype=np.float64), one, other
  )


class ClassScore(NamedTuple):
  """The Inception Score's formula.

  Attributes:
    mean: over the splits.
    deviation: the population standard deviation over the splits.
    unsplit: of all images at once.
  """

  mean: float
  deviation: float
  unsplit: float


def class_score(sums: Sums) -> ClassScore:
  """The score of summed images.

  Raises:
    ValueError: a split has no images.
  """
  check(
    bool(np.all(sums.counts > 0)),
    f"{np.sum(sums.counts == 0)} of {len(sums.counts)} splits of the class"
    " score have no images; expected images in each: add all images first.",
  )
  scores = [_score(*each) for each in zip(*sums, strict=True)]
  whole = _score(*[np.sum(array, axis=0) for array in sums])
  return ClassScore(float(np.mean(scores)), float(np.std(scores)), whole)


def of_draws(
  logits: Float32[np.ndarray, "images classes"],
  splits: Int32[np.ndarray, " images"],
) -> Callable[[np.random.Generator], float]:
  """What gives, by a random generator, the mean score of splits drawn anew.

  Each is drawn from its own images. A draw is made of how often each of them is
  in it, so images are not copied.
  """
  parts = []
  for split in range(splits.max() + 1):
    log_chances = np.asarray(jax.nn.log_softmax(logits[splits == split]))
    chances = np.exp(log_chances)
    certainty = np.sum(chances * log_chances, -1)
    parts.append((chances, certainty.astype(np.float64)))

  def draw(rng):
    scores = []
    for chances, certainty in parts:
      count = len(chances)
      times = np.bincount(rng.integers(count, size=count), minlength=count)
      total = (times.astype(np.float32) @ chances).astype(np.float64)
      scores.append(_score(float(count), total, float(times @ certainty)))
    return float(np.mean(scores))

  return draw


def _score(count: float, chances: np.ndarray, certainty: float) -> float:
  """exp of the mean divergence of images from their mean."""
  mean = chances / count
  seen = mean[mean > 0]
  return float(np.exp(certainty / count - np.sum(seen * np.log(seen))))
