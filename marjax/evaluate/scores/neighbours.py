"""Precision, recall and near copies, from nearest neighbours of features.

1. Each image of a set has a ball up to its k-th nearest neighbour in that set,
   itself not counted; the balls together are the set's manifold (Kynkäänniemi
   et al., 2019). Distances are Euclidean, k is 3.
2. Precision: share of generated images inside the manifold of the real ones,
   how good they are. Recall: share of real images inside the manifold of the
   generated ones, how varied they are. Inside: distance ≤ radius.
3. A generated image is nearly a copy if its nearest training image is nearer
   than that of almost all real images that were not trained on: below their
   first percentile, so that unseen real images score 0.01.

Both numbers of precision and recall depend on how many images each set has.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from marjax.arrays import kept
from marjax.evaluate.scores import pairs
from marjax.evaluate.scores.pairs import Tiles
from marjax.schema import check

COPY_PERCENTILE = 1.0


class PrecisionRecall(NamedTuple):
  """Precision and recall, and which images they are the shares of.

  Attributes:
    precision, recall: 0 to 1.
    is_precise: generated images inside the real manifold.
    is_recalled: real images inside the generated manifold.
  """

  precision: float
  recall: float
  is_precise: Bool[np.ndarray, " generated"]
  is_recalled: Bool[np.ndarray, " real"]


def precision_recall(
  *,
  generated: Float32[np.ndarray, "generated features"],
  real: Float32[np.ndarray, "real features"],
  num_neighbours: int = 3,
) -> PrecisionRecall:
  """Precision and recall; the two sets are named, since swapping swaps them.

  Raises:
    ValueError: a set has no more images than neighbours.
  """
  is_precise = is_inside(generated, real, radii(real, num_neighbours))
  is_recalled = is_inside(real, generated, radii(generated, num_neighbours))
  return PrecisionRecall(
    float(is_precise.mean()), float(is_recalled.mean()), is_precise, is_recalled
  )


@kept
def radii(
  features: Float32[np.ndarray, "count features"], num_neighbours: int
) -> Float32[np.ndarray, " count"]:
  """Squared distance of each image to its k-th neighbour in its own set."""
  check(
    len(features) > num_neighbours,
    f"there are {len(features)} images and {num_neighbours} neighbours are"
    " looked for; expected more images than neighbours.",
  )
  program = functools.partial(_nearest, count=num_neighbours, is_own=True)
  apart, _ = pairs.gathered(pairs.by_tile(program, features, features))
  return apart[:, -1]


def is_inside(
  points: Float32[np.ndarray, "points features"],
  centres: Float32[np.ndarray, "centres features"],
  squared_radii: Float32[np.ndarray, " centres"],
) -> Bool[np.ndarray, " points"]:
  """Whether each point is in some ball, borders included."""
  program = functools.partial(_is_inside, squared_radii=squared_radii)
  return pairs.gathered(pairs.by_tile(program, points, centres))


@kept
def nearest(
  points: Float32[np.ndarray, "points features"],
  others: Float32[np.ndarray, "others features"],
) -> tuple[Float32[np.ndarray, " points"], Int32[np.ndarray, " points"]]:
  """Distance of each point to the nearest of the others, and its number."""
  program = functools.partial(_nearest, count=1, is_own=False)
  apart, number = pairs.gathered(pairs.by_tile(program, points, others))
  return np.sqrt(apart[:, 0]), number[:, 0]


def is_near_copy(
  *,
  generated: Float32[np.ndarray, "generated features"],
  train: Float32[np.ndarray, "train features"],
  unseen: Float32[np.ndarray, "unseen features"],
) -> Bool[np.ndarray, " generated"]:
  """Which generated images are nearly copies of training images.

  Args:
    unseen: real images that were not trained on.

  Raises:
    ValueError: they were, so that there is nothing to compare with.
  """
  apart, _ = nearest(unseen, train)
  threshold = np.percentile(apart, COPY_PERCENTILE)
  # In float32 an image is up to about 1e-3 of that from itself, not always 0.
  check(
    bool(threshold > 1e-2 * np.median(apart)),
    "one in a hundred or more of the unseen real images is also a training"
    " image; expected other images: choose another split.",
  )
  return nearest(generated, train)[0] < threshold


@functools.partial(jax.jit, static_argnames=("count", "is_own"))
def _nearest(
  rows: Tiles, columns: Tiles, count: int, is_own: bool
) -> tuple[Float32[Array, "rows count"], Int32[Array, "rows count"]]:
  """Squared distances to the nearest columns, ascending, and their numbers.

  Args:
    is_own: rows and columns are of one set, and none is its own neighbour.
  """
  size = len(rows.number)

  def step(best, tile):
    """best: the nearest of all tiles up to this one."""
    apart = pairs.squared_distances(rows.rows, tile.rows)
    is_other = pairs.is_there(tile)[None]
    if is_own:
      is_other = is_other & (tile.number != rows.number[:, None])
    apart = jnp.where(is_other, apart, jnp.inf)
    number = jnp.broadcast_to(tile.number, apart.shape)
    apart = jnp.concatenate([best[0], apart], axis=1)
    number = jnp.concatenate([best[1], number], axis=1)
    apart, place = jax.lax.top_k(-apart, count)
    return (-apart, jnp.take_along_axis(number, place, axis=1)), None

  nothing = (
    jnp.full((size, count), jnp.inf),
    jnp.full((size, count), -1, jnp.int32),
  )
  return jax.lax.scan(step, nothing, columns)[0]


@jax.jit
def _is_inside(
  rows: Tiles, columns: Tiles, squared_radii: Float32[Array, " columns"]
) -> Bool[Array, " rows"]:
  """Whether each row is in the ball of some column."""

  def step(is_in, tile):
    """is_in: whether it is in a ball of a tile up to this one."""
    apart = pairs.squared_distances(rows.rows, tile.rows)
    radius = jnp.where(
      pairs.is_there(tile), squared_radii[tile.number], -jnp.inf
    )
    return is_in | (apart <= radius).any(axis=1), None

  return jax.lax.scan(step, jnp.zeros(len(rows.number), bool), columns)[0]
