"""Latents to tokens and back: p × p patches, in raster order.

    latents [B, 4, 4, C], p = 2          tokens [B, 4, C·4]
      a b c d
      e f g h                 ─▶   (a b e f) (c d g h) (i j m n) (k l o p)
      i j k l
      m n o p

Inside a token the index is c·p² + i·p + j: channel-major, then the row and the
column inside the patch, as the published weights expect.
"""

import numpy as np
from jaxtyping import Array, Shaped


def num_tokens(latent_shape: tuple[int, int, int], patch: int) -> int:
  """Tokens of one image with latents of shape (rows, columns, channels)."""
  rows, columns, _ = latent_shape
  if patch < 1 or rows % patch or columns % patch:
    raise ValueError(
      f"latents of {rows}x{columns} cannot be cut into patches of {patch};"
      " choose an image size divisible by it."
    )
  return (rows // patch) * (columns // patch)


def patchify(
  latents: Shaped[Array | np.ndarray, "B rows columns C"], patch: int
) -> Shaped[Array | np.ndarray, "B L D"]:
  """Latents [B, rows, columns, C] to tokens [B, L, C·patch²]."""
  batch, rows, columns, channels = latents.shape
  length = num_tokens((rows, columns, channels), patch)
  grid = latents.reshape(
    batch, rows // patch, patch, columns // patch, patch, channels
  )
  return grid.transpose(0, 1, 3, 5, 2, 4).reshape(
    batch, length, channels * patch * patch
  )


def unpatchify(
  tokens: Shaped[Array | np.ndarray, "B L D"],
  latent_shape: tuple[int, int, int],
  patch: int,
) -> Shaped[Array | np.ndarray, "B rows columns C"]:
  """Tokens [B, L, C·patch²] to latents [B, rows, columns, C]."""
  rows, columns, channels = latent_shape
  grid = tokens.reshape(
    -1, rows // patch, columns // patch, channels, patch, patch
  )
  return grid.transpose(0, 1, 4, 2, 5, 3).reshape(-1, rows, columns, channels)
