"""k-means: V vectors that stand for many, with a small squared distance.

1. Start (k-means++): the first vector at random; each next one is a vector x
   with a probability proportional to its squared distance to the nearest of
   those chosen so far, so no two are equal.
2. Lloyd's iteration: every vector goes to its nearest centre, and every centre
   becomes the mean of what came to it. Neither step can raise the error, the
   mean squared distance.
3. A centre to which nothing came is moved to the vector that is farthest from
   all centres, one after the other.
4. It ends when no vector changes its centre, or after so many iterations.

Sums and draws are float64 on the host, in a fixed order: the same vectors and
the same seed give the same centres. Sources: Arthur and Vassilvitskii 2007,
"k-means++"; Lloyd 1982, "Least squares quantization in PCM".
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from marjax.latents.codes import nearest
from marjax.schema import check

CHUNK_NUMBERS = 2**24
"""Distances that are worked out at a time: 64 MiB of float32."""

NEAR = 1e-6
"""Of a sum of squares: distances below are worked out without cancellation."""

Vectors = Float32[np.ndarray, "N D"]
Centres = Float32[np.ndarray, "V D"]


def start(
  vectors: Vectors,
  count: int,
  seed: int,
  progress: Callable[[Iterable], Iterable] = iter,
) -> Centres:
  """Centres [V, D], `count` different ones of the vectors, by k-means++.

  Args:
    vectors: [N, D]. count: V. seed: of the draws.
    progress: wraps the loop over the centres, e.g. `tqdm`.

  Raises:
    ValueError: there are fewer than V different vectors.
  """
  random = np.random.default_rng(seed)
  exact = vectors.astype(np.float64)
  norms = np.einsum("nd,nd->n", exact, exact)
  chosen = np.empty((count, vectors.shape[1]), np.float32)
  distances = np.full(len(vectors), np.inf)
  for i in progress(range(count)):
    sums = np.cumsum(distances if i else np.ones(len(vectors)))
    check(
      bool(sums.size) and float(sums[-1]) > 0,
      f"there are {i} different vectors; expected at least one for each of the"
      f" {count} codes: lower num_codes, or take more images.",
    )
    # Rounding may reach the sum itself, which the last that counts stands for.
    last = int(np.searchsorted(sums, sums[-1]))
    place = np.searchsorted(sums, random.random() * sums[-1], side="right")
    chosen[i] = vectors[min(int(place), last)]
    distances = np.minimum(distances, _squares_of(exact, norms, chosen[i]))
  return chosen


def iterations(vectors: Vectors, centres: Centres) -> Iterator[float]:
  """The mean squared distance before each iteration, which moves `centres`.

  Args:
    vectors: [N, D]. centres: [V, D], changed in place.

  Yields:
    The error of the centres as they are. They move when the next is asked for;
    when it ends, no vector changed its centre.
  """
  before = None
  while True:
    ids = assigned(vectors, centres)
    distances = _squares(vectors, centres[ids])
    yield float(distances.mean())
    if before is not None and np.array_equal(ids, before):
      return
    before = ids
    _move(vectors, centres, ids, distances)


def assigned(vectors: Vectors, centres: Centres) -> Int[np.ndarray, " N"]:
  """Of each vector [N] the number of its nearest centre."""
  size = max(1, min(len(vectors), CHUNK_NUMBERS // len(centres)))
  ids = np.empty(len(vectors), np.int64)
  for first in range(0, len(vectors), size):
    chunk = vectors[first : first + size]
    # One shape, so one program.
    padded = np.zeros((size, vectors.shape[1]), np.float32)
    padded[: len(chunk)] = chunk
    ids[first : first + size] = _nearest(padded, centres)[: len(chunk)]
  return ids


@jax.jit
def _nearest(vectors, centres):
  return nearest(jnp.asarray(vectors), jnp.asarray(centres))


def _squares(
  vectors: Float[np.ndarray, "N D"], others: Float[np.ndarray, "*N D"]
) -> Float[np.ndarray, " N"]:
  """Squared distances, float64: 0 for equal vectors and for no others."""
  return np.square(vectors.astype(np.float64) - others).sum(axis=-1)


def _squares_of(
  vectors: Float64[np.ndarray, "N D"],
  norms: Float64[np.ndarray, " N"],
  other: Float32[np.ndarray, " D"],
) -> Float64[np.ndarray, " N"]:
  """`_squares` to one vector, by products: an eighth of the time.

  Args:
    norms: sums of squares.
  """
  other = other.astype(np.float64)
  squares = norms - 2 * np.einsum("nd,d->n", vectors, other) + other @ other
  near = squares <= NEAR * norms
  squares[near] = _squares(vectors[near], other)
  return squares


def _move(vectors, centres, ids, distances) -> None:
  """Every centre to the mean of its vectors, or where it is needed most."""
  counts = np.bincount(ids, minlength=len(centres))
  sums = np.stack(
    [np.bincount(ids, axis, len(centres)) for axis in vectors.T], axis=-1
  )
  is_used = counts > 0
  centres[is_used] = sums[is_used] / counts[is_used, None]
  for empty in np.flatnonzero(~is_used):
    place = int(distances.argmax())
    if distances[place] == 0:
      return
    centres[empty] = vectors[place]
    distances = np.minimum(distances, _squares(vectors, centres[empty]))
