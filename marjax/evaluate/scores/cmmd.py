"""CMMD: maximum mean discrepancy of embeddings with a Gaussian kernel.

1. Embeddings of CLIP are scaled to length 1 (Jayasumana et al., 2024).
2. With k(x, y) = exp(-|x - y|² / (2 · 10²)),

       1000 · (mean of k(x, x') + mean of k(y, y') - 2 mean of k(x, y)),

   over all pairs, an image with itself included: biased, never below 0.
3. The kernel is less 1, which cancels: of numbers from 0.98 to 1 float32 would
   lose what the difference is made of. Sums of a row are float32, all others
   float64; see `marjax.evaluate.scores.pairs` for the tiles.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from marjax.evaluate.scores import pairs
from marjax.evaluate.scores.pairs import Tiles
from marjax.schema import check

BANDWIDTH = 10.0
SCALE = 1000.0


def cmmd(
  *,
  generated: Float32[np.ndarray, "generated features"],
  real: Float32[np.ndarray, "real features"],
) -> float:
  """The discrepancy of two sets of embeddings.

  Raises:
    ValueError: an embedding is 0, which has no direction.
  """
  ours, theirs = _directions(generated), _directions(real)
  own = _mean_kernel(ours, ours) + _mean_kernel(theirs, theirs)
  return SCALE * (own - 2 * _mean_kernel(ours, theirs))


def _directions(rows: np.ndarray) -> Float32[np.ndarray, "count features"]:
  """Rows of length 1."""
  wide = np.asarray(rows, np.float64)
  lengths = np.linalg.norm(wide, axis=1, keepdims=True)
  check(
    bool(np.all(lengths > 0)),
    f"the features of image {np.argmin(lengths)} are all 0; expected a"
    " direction: look at that image and the network's weights.",
  )
  return (wide / lengths).astype(np.float32)


def _mean_kernel(rows: np.ndarray, columns: np.ndarray) -> float:
  """Mean of the kernel less 1 over all pairs."""
  sums = pairs.gathered(pairs.by_tile(_row_sums, rows, columns))
  return float(sums.sum(dtype=np.float64)) / (len(rows) * len(columns))


@jax.jit
def _row_sums(rows: Tiles, columns: Tiles) -> Float32[Array, " rows"]:
  """Sums of the kernel less 1 over all columns."""

  def step(total, tile):
    """total: over the tiles up to this one."""
    apart = pairs.squared_distances(rows.rows, tile.rows)
    kernel = jnp.expm1(apart * (-0.5 / BANDWIDTH**2))
    return total + jnp.sum(kernel, 1, where=pairs.is_there(tile)[None]), None

  return jax.lax.scan(step, jnp.zeros(len(rows.number)), columns)[0]
