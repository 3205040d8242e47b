"""The identity codec: pixels, scaled to unit variance, are the latents.

    latents = (image - mean) / std          image = latents · std + mean

Patches of raw pixels are then tokens, as in the paper's pixel-space experiment
(section 5.3, 64² images in 4 × 4 patches). It is called as every codec is,
with parameters, of which it has none.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import PyTree

from marjax.arrays import Images, Latents
from marjax.schema import check
from marjax.tokens import patches


@dataclass(frozen=True)
class PixelsConfig:
  """Image shape and scaling of the identity codec.

  Attributes:
    image_size: height = width in pixels. channels: 1 or 3.
    patch: pixels per side of a token.
    mean, std: of the training pixels in [-1, 1].
  """

  image_size: int
  channels: int = 3
  patch: int = 1
  mean: float = 0.0
  std: float = 1.0
  kind: Literal["pixels"] = "pixels"

  def __post_init__(self):
    check(
      self.patch >= 1 and self.image_size % self.patch == 0,
      f"codec.image_size is {self.image_size}; expected a multiple of"
      f" codec.patch = {self.patch}.",
    )
    check(self.std > 0, f"codec.std is {self.std}; expected more than 0.")
    check(
      self.channels in (1, 3),
      f"codec.channels is {self.channels}; expected 1 or 3.",
    )

  @property
  def stride(self) -> int:
    """Pixels per side of one latent."""
    return 1

  @property
  def cell(self) -> int:
    """Pixels per side of one token."""
    return self.stride * self.patch

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """Rows, columns, channels of one image's latents."""
    return (self.image_size, self.image_size, self.channels)

  @property
  def num_tokens(self) -> int:
    """L."""
    return patches.num_tokens(self.latent_shape, self.patch)

  @property
  def token_dim(self) -> int:
    """D."""
    return self.channels * self.patch**2

  def init_params(self, key) -> dict:
    """No parameters."""
    del key
    return {}

  def encode(self, params: PyTree, images: Images) -> Latents:
    """Images in [-1, 1] to latents of about unit variance; params is {}."""
    del params
    return (images.astype(jnp.float32) - self.mean) / self.std

  def decode(self, params: PyTree, latents: Latents) -> Images:
    """Latents to images; values may leave [-1, 1] slightly; params is {}."""
    del params
    return latents * self.std + self.mean
