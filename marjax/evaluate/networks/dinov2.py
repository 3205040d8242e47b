"""DINOv2 ViT-L/14: FD-DINOv2, as Stein et al. (arXiv 2306.04675) compute it.

1. The whole image is resized to 224² by Pillow's bicubic rule on uint8; then
   (x / 255 - mean) / deviation of ImageNet.
2. The vision transformer of 24 blocks with LayerScale. Its table of positions
   was trained on 37 × 37 patches, and is interpolated to 16 × 16 as the
   authors' program does: cubic with a = -3/4, no antialiasing, at places that a
   scale of 16.1 / 37 gives.

       place of new row i = (i + 1/2) · 37 / 16.1 - 1/2

3. The class token after the last norm is the features: 1024 numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, PyTree

from marjax import schema
from marjax.evaluate.networks import resize, vit
from marjax.evaluate.networks.layers import HIGHEST
from marjax.evaluate.networks.protocol import Features, Named

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH = 14

OFFSET = 0.1
"""What the authors add to the new number of rows before they divide by it."""


@schema.config
class DinoV2(Named):
  """Images of any size → the class token.

  Attributes:
    size: pixels of a side. grid: patches of a side in training.
    num_features, depth, num_heads: the transformer's.
  """

  size: schema.Size = 224
  grid: schema.Size = 37
  num_features: schema.Size = 1024
  depth: schema.Size = 24
  num_heads: schema.Size = 16

  name = "dinov2"
  source = (
    "dinov2_vitl14_pretrain.pth of github.com/facebookresearch/dinov2, or the"
    " same weights of Hugging Face's dinov2-large or timm"
  )

  def shapes(self) -> PyTree:
    """See `vit.shapes`; the positions are those of training."""
    return vit.shapes(
      self._shape(), has_scales=True, has_patch_bias=True, has_first_norm=False
    )

  def __call__(self, params: PyTree, images: resize.Pictures) -> Features:
    small = resize.bicubic(resize.rgb(images), self.size, self.size)
    mean, deviation = jnp.float32(MEAN), jnp.float32(DEVIATION)
    pixels = (small.astype(jnp.float32) / 255 - mean) / deviation
    positions = interpolated(params["positions"], self.size // PATCH)
    token = vit.class_token(params, pixels, positions, self._shape())
    return Features(token)

  def _shape(self) -> vit.Shape:
    return vit.Shape(
      PATCH,
      self.num_features,
      self.depth,
      self.num_heads,
      1 + self.grid**2,
      1e-6,
      functools.partial(jax.nn.gelu, approximate=False),
    )


def interpolated(
  table: Float32[Array, "positions W"], new: int
) -> Float32[Array, "new_positions W"]:
  """The class token's position, then those of new × new patches."""
  grid = round((len(table) - 1) ** 0.5)
  if grid == new:
    return table
  square = table[1:].reshape(grid, grid, -1)
  mix = jnp.float32(_mix(grid, new))
  square = jnp.einsum("ir,jc,rcw->ijw", mix, mix, square, precision=HIGHEST)
  return jnp.concatenate([table[:1], square.reshape(new * new, -1)])


def _mix(grid: int, new: int) -> np.ndarray:
  """Shares [new, grid] of the old rows in each new one."""
  # Places are float32 there as well.
  scale, half = np.float32(grid / (new + OFFSET)), np.float32(0.5)
  place = scale * (np.arange(new, dtype=np.float32) + half) - half
  low = np.floor(place).astype(int)
  mix = np.zeros((new, grid))
  for step in (-1, 0, 1, 2):
    share = _cubic(place - (low + step))
    row = np.clip(low + step, 0, grid - 1)
    np.add.at(mix, (np.arange(new), row), share)
  return mix


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys's kernel with a = -3/4."""
  x, a = np.abs(x), -0.75
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
