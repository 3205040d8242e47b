"""The VQ autoencoder: images ↔ codes at a fraction of the resolution.

    image [B, 256, 256, 3] ─encoder▶ z [B, 16, 16, d] ─nearest▶ ids [B, 16, 16]
    ids ─lookup▶ code vectors [B, 16, 16, d] ─decoder▶ image

1. The encoder is that of the KL autoencoder, with z_channels features instead
   of moments; a 1 × 1 convolution makes d of them: z.
2. The id of a position is that of the nearest of V code vectors
   (`marjax.latents.codes`). With `is_normalised` z and the code vectors have
   length 1 first, so the nearest is that of the largest cosine.
3. Decoder: the code vectors, of length 1 with `is_normalised`, through a 1 × 1
   convolution to z_channels, then the mirror image of the encoder; its deepest
   level has attention where the encoder's has.
4. With `continuous` latents are z itself, times latent_scale, as floats, for a
   model of continuous tokens; decoding undoes the scale and takes the nearest
   codes then.

Sources: arXiv 2112.10752, 2012.09841, 2406.06525 (normalised codes).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from marjax import schema
from marjax.arrays import ImageKeys, Latents
from marjax.latents import codes
from marjax.latents.blocks import FLOAT32, NORM_GROUPS, Decoder, Encoder, conv
from marjax.latents.codes import Coded
from marjax.latents.kl import LatentScale
from marjax.latents.patched import Patched
from marjax.latents.trunk import CHANNELS, RGBImages, Trunk
from marjax.schema import Range, Size, check

SMALLEST_LENGTH = 1e-12

Vectors = Float[Array, "*shape d"]


@schema.config
class VQConfig(Trunk):
  """Shape of the autoencoder; the defaults are LDM's VQ-16 at 256².

  LlamaGen's VQ-16 is z_channels 256 and is_normalised True.

  Attributes:
    image_size, base_width, multipliers, num_blocks: as of `KLConfig`.
    z_channels: of the encoder's features.
    latent_channels: d, numbers of one code vector.
    codebook_size: V.
    is_normalised: z and code vectors have length 1.
    has_level_attention: attention in the deepest level of encoder and decoder.
    continuous: latents are z instead of ids.
    latent_scale: 1 / std of z over the training images, if it is continuous.
    patch: latent positions per side of a token; 1 of ids.
    dtype: as of `KLConfig`; z and the choice of codes are float32.
  """

  image_size: Annotated[int, Range(1, 2**14)] = 256
  base_width: Annotated[int, Range(NORM_GROUPS, 2**14)] = 128
  multipliers: tuple[Annotated[int, Range(1, 64)], ...] = (1, 1, 2, 2, 4)
  num_blocks: Annotated[int, Range(1, 64)] = 2
  z_channels: Annotated[int, Range(1, 4096)] = 8
  latent_channels: Annotated[int, Range(1, 4096)] = 8
  codebook_size: Size = 16384
  is_normalised: bool = False
  has_level_attention: bool = True
  continuous: bool = False
  latent_scale: LatentScale = 1.0
  patch: Annotated[int, Range(1, 1024)] = 1
  dtype: Literal["float32", "bfloat16"] = "float32"
  kind: Literal["vq"] = "vq"
  is_cached: ClassVar[bool] = True

  def __post_init__(self):
    self.check_trunk()
    check(
      self.continuous or (self.patch == 1 and self.latent_scale == 1.0),
      f"codec.patch is {self.patch} and codec.latent_scale"
      f" {self.latent_scale}; expected 1 and 1.0, as ids have neither patches"
      " nor a scale: set codec.continuous for tokens of floats.",
    )

  @property
  def num_codes(self) -> int:
    """V where latents are ids, 0 where they are z."""
    return 0 if self.continuous else self.codebook_size

  @property
  def latent_shape(self) -> tuple[int, ...]:
    """Rows and columns of one image's ids; of z also its numbers, d."""
    side = self.image_size // self.stride
    last = (self.latent_channels,) if self.continuous else ()
    return (side, side, *last)

  @property
  def num_tokens(self) -> int:
    """L."""
    return (self.image_size // self.cell) ** 2

  @property
  def token_shape(self) -> tuple[int, ...]:
    """Shape of one token: () of ids, (d·patch²,) of z."""
    return (self.token_dim,) if self.continuous else ()

  def to_tokens(
    self, latents: Shaped[Array | np.ndarray, "B ..."]
  ) -> Shaped[Array | np.ndarray, "B L ..."]:
    """Latents to tokens [B, L, *token_shape] in raster order."""
    kind = Patched if self.continuous else Coded
    return kind.to_tokens(self, latents)

  def to_latents(
    self, tokens: Shaped[Array | np.ndarray, "B L ..."]
  ) -> Shaped[Array | np.ndarray, "B ..."]:
    """Tokens in raster order to latents [B, *latent_shape]."""
    kind = Patched if self.continuous else Coded
    return kind.to_latents(self, tokens)

  def module(self) -> "Autoencoder":
    """The network of this shape."""
    return Autoencoder(self)

  def features(
    self, params: PyTree, images: RGBImages
  ) -> Float[Array, "B rows columns d"]:
    """z [B, rows, columns, d] float32: what is quantised, not yet normalised.

    Args:
      params: of the autoencoder; those of the decoder may be missing.
      images: RGB in [-1, 1], sides multiples of the stride, not necessarily
        image_size.

    Raises:
      ValueError: integers, other channels or other sides.
    """
    self.check_images(images)
    return self.apply("features", params, images)

  def quantise(
    self, params: PyTree, z: Float[Array, "B rows columns d"]
  ) -> codes.Ids:
    """Ids int32 [B, rows, columns], 0 .. V - 1, of the codes nearest to z."""
    # Short ones would choose the same in exact numbers, and lose digits here.
    z = normalised(z) if self.is_normalised else z
    return codes.nearest(z, self.code_vectors(params))

  def encode(self, params: PyTree, images: RGBImages) -> Array:
    """Ids int32 [B, rows, columns], or z · latent_scale; see `features`."""
    z = self.features(params, images)
    return (
      z * self.latent_scale if self.continuous else self.quantise(params, z)
    )

  def decode(self, params: PyTree, latents: Array) -> RGBImages:
    """Float32 images of latents; values may leave [-1, 1] slightly.

    Args:
      params: of the autoencoder; those of the encoder may be missing.
      latents: as `encode` gives them, of any number of rows and columns.

    Raises:
      ValueError: floats instead of ids, ids instead of floats, other channels.
    """
    if self.continuous:
      check(
        latents.ndim == 4
        and latents.shape[-1] == self.latent_channels
        and jnp.issubdtype(latents.dtype, jnp.floating),
        f"latents have type {latents.dtype} and shape {latents.shape}; expected"
        f" floats [B, rows, columns, {self.latent_channels}].",
      )
      scaled = latents.astype(jnp.float32) / self.latent_scale
      latents = self.quantise(params, scaled)
    codes.check_ids(latents)
    return self.apply("decode", params, self.code_vectors(params)[latents])

  def record(self, params: PyTree, images: RGBImages) -> dict[str, Array]:
    """The ids, in the smallest type that holds them; or z, before scaling."""
    z = self.features(params, images)
    if self.continuous:
      return {"latents": z}
    return {"ids": self.quantise(params, z).astype(self._id_type)}

  def record_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of one image's record; z is float16, and computed with as float32."""
    shape = self.latent_shape
    if self.continuous:
      return {"latents": jax.ShapeDtypeStruct(shape, jnp.float16)}
    return {"ids": jax.ShapeDtypeStruct(shape, self._id_type)}

  def draw(
    self, params: PyTree, record: Mapping[str, Any], keys: ImageKeys
  ) -> Array:
    """Latents of records; nothing is random, and params may be {}."""
    del params, keys
    if self.continuous:
      return record["latents"].astype(jnp.float32) * self.latent_scale
    return record["ids"].astype(jnp.int32)

  @property
  def _id_type(self) -> np.dtype:
    return np.min_scalar_type(self.codebook_size - 1)

  @property
  def code_dim(self) -> int:
    """Numbers of a code vector."""
    return self.latent_channels

  def code_vectors(self, params: PyTree) -> Float[Array, "V d"]:
    """The code vectors as they are compared and decoded."""
    vectors = jnp.asarray(params["codes"], jnp.float32)
    return normalised(vectors) if self.is_normalised else vectors


def normalised(vectors: Vectors) -> Vectors:
  """The vectors over their lengths, which are taken as 1e-12 at least."""
  lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / jnp.maximum(lengths, SMALLEST_LENGTH)


class Autoencoder(nn.Module):
  """Encoder, codes and decoder, with the 1 × 1 convolutions between them."""

  config: VQConfig

  def setup(self):
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    attends = c.has_level_attention
    self.encoder = Encoder(c.widths, c.num_blocks, c.z_channels, attends, dtype)
    self.to_latents = conv(c.latent_channels, 1, dtype=FLOAT32)
    self.codes = self.param(
      "codes",
      nn.initializers.uniform(1.0),
      (c.codebook_size, c.latent_channels),
    )
    self.from_latents = conv(c.z_channels, 1, dtype=FLOAT32)
    self.decoder = Decoder(c.widths, c.num_blocks + 1, CHANNELS, attends, dtype)

  def features(self, images: RGBImages) -> Latents:
    """Images to z, float32."""
    return self.to_latents(self.encoder(images))

  def decode(self, vectors: Latents) -> RGBImages:
    """Code vectors to images, float32."""
    return self.decoder(self.from_latents(vectors))

  def __call__(self, images):
    return self.decode(self.features(images))
