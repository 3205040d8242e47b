"""Distances of all pairs of features, in tiles; no N × N matrix in memory.

1. Both sets are cut in tiles of at most TILE rows; the last is filled up.
2. A tile's squared distances are |x|² + |y|² - 2 x·y in float32 with full
   products. The mean of one set is subtracted from both, so that lengths are
   of the size of distances and few digits cancel.
3. A program takes one tile of rows and runs over all tiles of columns.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Float64, Int32, PyTree

from marjax.arrays import kept

TILE = 2048


class Tiles(NamedTuple):
  """A set of rows in tiles.

  Attributes:
    rows: features, 0 where there are none.
    number: of each row in its set, -1 where there is none.
  """

  rows: Float32[Array, "tiles rows features"]
  number: Int32[Array, "tiles rows"]


@kept
def centred(
  rows: Float32[np.ndarray, "count features"],
) -> tuple[Tiles, Float64[np.ndarray, " features"]]:
  """The tiles of a set less its mean, and that mean."""
  mean = rows.mean(0, dtype=np.float64)
  return tiles(rows, mean), mean


def tiles(
  rows: Float32[np.ndarray, "count features"],
  mean: Float64[np.ndarray, " features"],
) -> Tiles:
  """The tiles of a set, less a mean."""
  count, size = len(rows), min(TILE, len(rows))
  number = np.arange(-(-count // size) * size, dtype=np.int32)
  padded = np.zeros((len(number), rows.shape[1]), np.float32)
  padded[:count] = rows - mean
  number[count:] = -1
  return Tiles(
    jnp.asarray(padded.reshape(-1, size, rows.shape[1])),
    jnp.asarray(number.reshape(-1, size)),
  )


def squared_distances(
  rows: Float32[Array, "rows features"],
  columns: Float32[Array, "columns features"],
) -> Float32[Array, "rows columns"]:
  """Squared Euclidean distances; never below 0."""
  product = jax.lax.dot(rows, columns.T, precision="highest")
  lengths = [jnp.sum(part**2, axis=1) for part in (rows, columns)]
  apart = lengths[0][:, None] + lengths[1] - 2 * product
  return jnp.maximum(apart, 0)


def by_tile(
  program: Callable[[Tiles, Tiles], PyTree],
  rows: Float32[np.ndarray, "count features"],
  columns: Float32[np.ndarray, "others features"],
) -> Iterator[PyTree]:
  """What a program says of each tile of rows, cut to the rows there are.

  Args:
    program: (one tile of rows, all tiles of columns) → arrays [rows, ...].
  """
  theirs, mean = centred(columns)
  ours = theirs if rows is columns else tiles(rows, mean)
  for tile in zip(*ours, strict=True):
    answer = program(Tiles(*tile), theirs)
    count = int(np.sum(np.asarray(tile[1]) >= 0))
    yield jax.tree.map(lambda leaf, n=count: np.asarray(leaf)[:n], answer)


def gathered(parts: Iterator[PyTree]) -> PyTree:
  """Answers of all tiles as arrays [count, ...]."""
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *list(parts))


def is_there(tile: Tiles) -> Bool[Array, " rows"]:
  """Whether a row of a tile is one, not filling."""
  return tile.number >= 0
