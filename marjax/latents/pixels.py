"""The identity codec: pixels, scaled to unit variance, are the latents.

    latents = (image - mean) / std          image = latents · std + mean

Patches of raw pixels are then tokens, as in the paper's pixel-space experiment
(section 5.3, 64² images in 4 × 4 patches). It is called as every codec is,
with parameters, of which it has none.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from marjax import schema
from marjax.arrays import ImageKeys, Images, Latents
from marjax.latents.patched import Patched
from marjax.schema import Range, check


@schema.config
class PixelsConfig(Patched):
  """Image shape and scaling of the identity codec.

  Attributes:
    image_size: height = width in pixels. channels: 1 or 3.
    patch: pixels per side of a token.
    mean, std: of the training pixels in [-1, 1].
  """

  image_size: Annotated[int, Range(1, 2**14)]
  channels: Literal[1, 3] = 3
  patch: Annotated[int, Range(1, 2**14)] = 1
  mean: Annotated[float, Range(-1, 1)] = 0.0
  std: Annotated[float, Range(0, 1e3, is_open=True)] = 1.0
  kind: Literal["pixels"] = "pixels"
  is_cached: ClassVar[bool] = False

  def __post_init__(self):
    check(
      self.image_size % self.patch == 0,
      f"codec.image_size is {self.image_size}; expected a multiple of"
      f" codec.patch = {self.patch}.",
    )

  @property
  def stride(self) -> int:
    """Pixels per side of one latent."""
    return 1

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """Rows, columns, channels of one image's latents."""
    return (self.image_size, self.image_size, self.channels)

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
  ) -> Latents:
    """The latents of recorded images; nothing is random."""
    del keys
    return self.encode(params, record["image"])
