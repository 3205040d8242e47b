"""The patch codebook: each patch of pixels becomes the id of the nearest code.

    image [B, H, W, C] ─scale, cut▶ patches [B, L, p²·C] ─nearest▶ ids [B, L]
    ids ─lookup▶ patches ─join, unscale▶ image

1. Pixels are standardised as the codec "pixels" does it, and cut into p × p
   patches (`marjax.tokens.patches`).
2. Of V code vectors the nearest stands for a patch (`marjax.latents.codes`).
3. The V vectors are its only parameters; `marjax fit-codebook` finds them by
   k-means (`marjax.latents.k_means`). They are few, so ids are computed anew
   from images at each step of training, and nothing is cached.

With it a model of discrete tokens is trained in minutes, and compared with one
of continuous tokens of the very same patches.
"""

from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from marjax import schema
from marjax.arrays import Images, RootKey
from marjax.latents import codes
from marjax.latents.codes import Coded, Ids
from marjax.latents.patched import OfPixels
from marjax.schema import Range, Size
from marjax.tokens import patches


@schema.config
class CodebookConfig(OfPixels, Coded):
  """Image shape, scaling and size of the patch codebook.

  Attributes:
    image_size: height = width in pixels. channels: 1 or 3.
    patch: pixels per side of a token.
    num_codes: V.
    mean, std: of the training pixels in [-1, 1].
  """

  image_size: Annotated[int, Range(1, 2**14)]
  channels: Literal[1, 3] = 3
  patch: Annotated[int, Range(1, 2**14)] = 1
  num_codes: Size = 256
  mean: Annotated[float, Range(-1, 1)] = 0.0
  std: Annotated[float, Range(0, 1e3, is_open=True)] = 1.0
  kind: Literal["codebook"] = "codebook"
  FREE: ClassVar[frozenset[str]] = frozenset({"image_size"})

  def __post_init__(self):
    self.check_patch()

  @property
  def stride(self) -> int:
    """Pixels per side of one id."""
    return self.patch

  @property
  def latent_shape(self) -> tuple[int, int]:
    """Rows and columns of one image's ids."""
    side = self.image_size // self.patch
    return (side, side)

  def has_params(self) -> bool:
    """It has: the code vectors."""
    return True

  def init_params(self, key: RootKey) -> PyTree:
    """Code vectors {"codes": [V, p²·C]} that are fitted to nothing."""
    shape = (self.num_codes, self.code_dim)
    return {"codes": jax.random.normal(key, shape)}

  @property
  def code_dim(self) -> int:
    """Numbers of a code vector."""
    return self.channels * self.patch**2

  def code_vectors(self, params: PyTree) -> Float[Array, "V D"]:
    """The code vectors."""
    return jnp.asarray(params["codes"])

  def vectors(self, images: Images) -> Float[Array, "B rows columns D"]:
    """Standardised patches [B, rows, columns, p²·C] of images in [-1, 1]."""
    batch, height, width, _ = images.shape
    cut = patches.patchify(self.standardised(images), self.patch)
    return cut.reshape(batch, height // self.patch, width // self.patch, -1)

  def encode(self, params: PyTree, images: Images) -> Ids:
    """Ids int32 [B, rows, columns] of the codes nearest to the patches."""
    return codes.nearest(self.vectors(images), self.code_vectors(params))

  def decode(self, params: PyTree, ids: Array) -> Images:
    """Images of which each patch is the code vector of its id.

    `ids`: [B, rows, columns], of any number of rows and columns.

    Raises:
      ValueError: floats, or another number of axes.
    """
    codes.check_ids(ids)
    batch, rows, columns = ids.shape
    tokens = self.code_vectors(params)[ids].reshape(batch, rows * columns, -1)
    shape = (rows * self.patch, columns * self.patch, self.channels)
    joined = patches.unpatchify(tokens, shape, self.patch)
    return joined * self.std + self.mean
