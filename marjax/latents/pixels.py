"""The identity codec: pixels, scaled to unit variance, are the latents.

    latents = (image - mean) / std          image = latents · std + mean

Patches of raw pixels are then tokens, as in the paper's pixel-space experiment
(section 5.3, 64² images in 4 × 4 patches). It is called as every codec is,
with parameters, of which it has none.
"""

from typing import Annotated, Literal

from jaxtyping import PyTree

from marjax import schema
from marjax.arrays import Images, Latents
from marjax.latents.patched import OfPixels, Patched
from marjax.schema import Range


@schema.config
class PixelsConfig(OfPixels, Patched):
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

  def __post_init__(self):
    self.check_patch()

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
    return self.standardised(images)

  def decode(self, params: PyTree, latents: Latents) -> Images:
    """Latents to images; values may leave [-1, 1] slightly; params is {}."""
    del params
    return latents * self.std + self.mean
