"""Codes: one integer for a vector, that of the nearest vector of a list.

    vectors [..., D] ─nearest▶ ids [...] ─lookup▶ the listed vectors [..., D]

1. The nearest of V listed vectors c has the smallest |x - c|², and so the
   smallest |c|² / 2 - x · c, which is what is computed: |x|² is the same for
   all and would only be rounded.
2. Products are float32 whatever the accelerator does by default: with rounded
   factors another id would be chosen where two are about as near.

[B, rows, columns] ids are the latents of a codec of codes; its tokens are the
same in raster order, [B, L].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from marjax.schema import check

Ids = Int[Array, "B rows columns"]


def nearest(
  vectors: Float[Array, "*shape D"], codes: Float[Array, "V D"]
) -> Int[Array, "*shape"]:
  """The id [*shape], 0 .. V - 1, of the nearest code; the first of equals."""
  products = jnp.einsum(
    "...d,vd->...v",
    vectors.astype(jnp.float32),
    codes,
    precision=jax.lax.Precision.HIGHEST,
  )
  halves = 0.5 * jnp.sum(jnp.square(codes), axis=-1)
  return jnp.argmin(halves - products, axis=-1).astype(jnp.int32)


def check_ids(ids: Array) -> None:
  """Refuses what are no integers [B, rows, columns].

  Raises:
    ValueError: floats, or another number of axes.
  """
  check(
    jnp.issubdtype(ids.dtype, jnp.integer) and ids.ndim == 3,
    f"the codes have type {ids.dtype} and shape {ids.shape}; expected integers"
    " [B, rows, columns].",
  )


class Coded:
  """What codecs share whose tokens are ids, from `stride`, `latent_shape`."""

  @property
  def cell(self) -> int:
    """Pixels per side of one token."""
    return self.stride

  @property
  def num_tokens(self) -> int:
    """L."""
    rows, columns = self.latent_shape
    return rows * columns

  @property
  def token_shape(self) -> tuple[int, ...]:
    """Shape of one token: none, it is an integer."""
    return ()

  def to_tokens(
    self, latents: Shaped[Array | np.ndarray, "B rows columns"]
  ) -> Shaped[Array | np.ndarray, "B L"]:
    """Ids to tokens [B, L] in raster order."""
    return latents.reshape(len(latents), -1)

  def to_latents(
    self, tokens: Shaped[Array | np.ndarray, "B L"]
  ) -> Shaped[Array | np.ndarray, "B rows columns"]:
    """Tokens [B, L] in raster order to ids."""
    return tokens.reshape(-1, *self.latent_shape)
