"""What codecs share whose tokens are patches of float latents."""

from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float

from marjax.tokens import patches


class Patched:
  """The sizes that follow from `stride`, `patch` and `latent_shape`."""

  num_codes: ClassVar[int] = 0
  FREE: ClassVar[frozenset[str]] = frozenset({"image_size", "patch", "dtype"})

  @property
  def cell(self) -> int:
    """Pixels per side of one token."""
    return self.stride * self.patch

  @property
  def num_tokens(self) -> int:
    """L."""
    return patches.num_tokens(self.latent_shape, self.patch)

  @property
  def token_dim(self) -> int:
    """D."""
    return self.latent_shape[-1] * self.patch**2

  @property
  def token_shape(self) -> tuple[int, ...]:
    """Shape of one token, (D,)."""
    return (self.token_dim,)

  def to_tokens(
    self, latents: Float[Array | np.ndarray, "B rows columns C"]
  ) -> Float[Array | np.ndarray, "B L D"]:
    """Latents to tokens [B, L, D] in raster order."""
    return patches.patchify(latents, self.patch)

  def to_latents(
    self, tokens: Float[Array | np.ndarray, "B L D"]
  ) -> Float[Array | np.ndarray, "B rows columns C"]:
    """Tokens [B, L, D] in raster order to latents."""
    return patches.unpatchify(tokens, self.latent_shape, self.patch)

  def has_params(self) -> bool:
    """Whether it has weights."""
    return bool(jax.eval_shape(lambda: self.init_params(jax.random.key(0))))
