"""CLIP ViT-L/14 at 336²: the embeddings of CMMD (arXiv 2401.09603).

1. The middle square of the image is resized to 336² by Pillow's bicubic rule on
   uint8; then (x / 255 - mean) / deviation of CLIP.
2. The vision transformer of 24 blocks, with a norm before them, the activation
   x · sigmoid(1.702 x), and no bias of the patches.
3. The class token after the last norm times a matrix is the features: 768
   numbers. CMMD brings them to length 1 itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from marjax import schema
from marjax.evaluate.networks import resize, vit
from marjax.evaluate.networks.layers import dense, float32
from marjax.evaluate.networks.protocol import Features, Named

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
PATCH = 14


@schema.config
class Clip(Named):
  """Images of any size → the embedding, not of length 1.

  Attributes:
    size: pixels of a side. num_features: of the embedding.
    width, depth, num_heads: the transformer's.
  """

  size: schema.Size = 336
  num_features: schema.Size = 768
  width: schema.Size = 1024
  depth: schema.Size = 24
  num_heads: schema.Size = 16

  name = "clip"
  source = (
    "CLIP ViT-L/14@336px: Hugging Face's openai/clip-vit-large-patch14-336"
    " (.safetensors or .bin), timm's, or the state dict of"
    " OpenAI's program"
  )

  def shapes(self) -> PyTree:
    """See `vit.shapes`; and the last matrix."""
    tree = vit.shapes(
      self._shape(), has_scales=False, has_patch_bias=False, has_first_norm=True
    )
    matrix = float32(self.width, self.num_features)
    return tree | {"projection": {"kernel": matrix}}

  def __call__(self, params: PyTree, images: resize.Pictures) -> Features:
    square = resize.centre_square(resize.rgb(images))
    small = resize.bicubic(square, self.size, self.size)
    mean, deviation = jnp.float32(MEAN), jnp.float32(DEVIATION)
    pixels = (small.astype(jnp.float32) / 255 - mean) / deviation
    positions = params["positions"]
    token = vit.class_token(params, pixels, positions, self._shape())
    return Features(dense(params["projection"]["kernel"], token))

  def _shape(self) -> vit.Shape:
    return vit.Shape(
      PATCH,
      self.width,
      self.depth,
      self.num_heads,
      1 + (self.size // PATCH) ** 2,
      1e-5,
      _quick_gelu,
    )


def _quick_gelu(x: Any) -> Any:
  return x * jax.nn.sigmoid(1.702 * x)
