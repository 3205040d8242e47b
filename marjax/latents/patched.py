"""What codecs share whose tokens are patches of float latents, or of pixels."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from marjax.arrays import ImageKeys, Images
from marjax.schema import check
from marjax.tokens import patches


class OfPixels:
  """What codecs share that cut standardised pixels, and keep images.

  From `image_size`, `channels`, `patch`, `mean`, `std` and `encode`.
  """

  is_cached: ClassVar[bool] = False

  def check_patch(self) -> None:
    """Refuses sizes that do not fit, with a ValueError."""
    check(
      self.image_size % self.patch == 0,
      f"codec.image_size is {self.image_size}; expected a multiple of"
      f" codec.patch = {self.patch}.",
    )

  def standardised(self, images: Images) -> Images:
    """Images in [-1, 1] to numbers of about unit variance."""
    return (images.astype(jnp.float32) - self.mean) / self.std

  def record(self, params: PyTree, images: Images) -> dict[str, Images]:
    """The image itself."""
    del params
    return {"image": images}

  def record_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of one image's record."""
    shape = (self.image_size, self.image_size, self.channels)
    return {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}

  def draw(
    self, params: PyTree, record: Mapping[str, Any], keys: ImageKeys
  ) -> Array:
    """The latents of recorded images; nothing is random."""
    del keys
    return self.encode(params, record["image"])


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
