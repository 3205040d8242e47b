"""The KL autoencoder: images ↔ latents at a fraction of the resolution.

    image [B, 256, 256, 3] ─encoder▶ moments [B, 16, 16, 2·16] ─draw▶ latents
    latents [B, 16, 16, 16] ─decoder▶ image [B, 256, 256, 3]

1. Encoder: 3 × 3 convolution in; per level, residual blocks (in the last level
   of KL-16 attention after each), then half the resolution; a middle of block,
   attention, block; norm, swish, 3 × 3 convolution, 1 × 1 convolution to the
   moments: mean, then log-variance, clamped to [-30, 20].
2. Latents = (mean + exp(log_variance / 2) · noise) · latent_scale. The scale is
   1 / std of the training latents; their mean is not removed.
3. Decoder: the mirror image, deepest level first, with one more block per level
   and no attention outside the middle; it undoes the scale first.

Everything is convolutional, so any image whose sides are multiples of the
stride will do. Source: arXiv 2112.10752 section 3.1; spec section 1.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from marjax import keys, schema
from marjax.arrays import ImageKeys, Latents
from marjax.latents.blocks import FLOAT32, NORM_GROUPS, Decoder, Encoder, conv
from marjax.latents.trunk import CHANNELS, RGBImages, Trunk
from marjax.schema import Range, check

LOG_VARIANCES = (-30.0, 20.0)


LatentScale = Annotated[float, Range(0, 1e6, is_open=True)]


class Moments(NamedTuple):
  """The posterior of the latents before scaling, float32.

  Attributes:
    mean: [B, rows, columns, C].
    log_variance: the same shape, in [-30, 20].
  """

  mean: Latents
  log_variance: Latents


@schema.config
class KLConfig(Trunk):
  """Shape of the autoencoder; the defaults are KL-16 at 256².

  KL-8 is multipliers (1, 2, 4, 4), latent_channels 4, has_level_attention
  False, patch 2 and its own latent_scale.

  Attributes:
    image_size: height = width in pixels of the model's images; `moments` and
      `decode` take other sizes too.
    base_width: width of the first level, a multiple of 32.
    multipliers: width of each level over base_width; the resolution halves
      from one to the next.
    num_blocks: residual blocks of a level of the encoder.
    latent_channels: numbers of one latent position.
    latent_scale: 1 / std of the training latents.
    has_level_attention: attention in the encoder's last level too.
    patch: latent positions per side of a token.
    dtype: of the convolutions and of what flows between them; parameters,
      norms, softmax and the convolutions that give moments and images are
      float32. Accelerators round the factors of float32 products unless
      `jax_default_matmul_precision` is "highest".
  """

  image_size: Annotated[int, Range(1, 2**14)] = 256
  base_width: Annotated[int, Range(NORM_GROUPS, 2**14)] = 128
  multipliers: tuple[Annotated[int, Range(1, 64)], ...] = (1, 1, 2, 2, 4)
  num_blocks: Annotated[int, Range(1, 64)] = 2
  latent_channels: Annotated[int, Range(1, 4096)] = 16
  latent_scale: LatentScale = 0.2325
  has_level_attention: bool = True
  patch: Annotated[int, Range(1, 1024)] = 1
  dtype: Literal["float32", "bfloat16"] = "float32"
  kind: Literal["kl"] = "kl"
  is_cached: ClassVar[bool] = True

  def __post_init__(self):
    self.check_trunk()

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """Rows, columns, channels of one image's latents."""
    side = self.image_size // self.stride
    return (side, side, self.latent_channels)

  def moments(self, params: PyTree, images: RGBImages) -> Moments:
    """Mean and log-variance of the latents, before scaling.

    Args:
      params: of the autoencoder; `decoder` and `from_latents` may be missing.
      images: RGB in [-1, 1], sides multiples of the stride, not necessarily
        image_size.

    Returns:
      Moments of shape [B, height / stride, width / stride, C].

    Raises:
      ValueError: integers, other channels or other sides.
    """
    self.check_images(images)
    return self.apply("moments", params, images)

  def record(
    self, params: PyTree, images: RGBImages
  ) -> dict[str, Float[Array, "B rows columns C2"]]:
    """The moments, mean before log-variance."""
    return {"moments": jnp.concatenate(self.moments(params, images), axis=-1)}

  def record_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of one image's record; float16, of which float32 is computed with."""
    rows, columns, channels = self.latent_shape
    shape = (rows, columns, 2 * channels)
    return {"moments": jax.ShapeDtypeStruct(shape, jnp.float16)}

  def draw(
    self,
    params: PyTree,
    record: Mapping[str, Any],
    image_keys: ImageKeys,
  ) -> Latents:
    """One draw from each recorded posterior, float32; params may be {}."""
    del params
    moments = record["moments"].astype(jnp.float32)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    noise = keys.normal(image_keys, mean.shape[1:])
    return self.posterior_draw(Moments(mean, log_variance), noise)

  def posterior_draw(self, moments: Moments, noise: Latents) -> Latents:
    """(mean + exp(log_variance / 2) · noise) · latent_scale.

    `noise`: standard normal, shaped like the mean.
    """
    check(
      noise.shape == moments.mean.shape,
      f"noise has shape {noise.shape}; expected that of the mean,"
      f" {moments.mean.shape}.",
    )
    std = jnp.exp(0.5 * moments.log_variance)
    return (moments.mean + std * noise) * self.latent_scale

  def encode(self, params: PyTree, images: RGBImages) -> Latents:
    """The mean, scaled: `posterior_draw` without noise. See `moments`.

    DIFFERS: encode-mean. The published program draws here, too.
    """
    return self.moments(params, images).mean * self.latent_scale

  def decode(self, params: PyTree, latents: Latents) -> RGBImages:
    """Scaled latents to float32 images; values may leave [-1, 1] slightly.

    Args:
      params: of the autoencoder; `encoder` and `to_moments` may be missing.
      latents: [B, rows, columns, C], of any number of rows and columns.

    Raises:
      ValueError: other channels.
    """
    check(
      latents.ndim == 4 and latents.shape[-1] == self.latent_channels,
      f"latents have shape {latents.shape}; expected [B, rows, columns,"
      f" {self.latent_channels}].",
    )
    latents = latents.astype(jnp.float32) / self.latent_scale
    return self.apply("decode", params, latents)

  def module(self) -> "Autoencoder":
    """The network of this shape."""
    return Autoencoder(self)


class Autoencoder(nn.Module):
  """Encoder and decoder with the 1 × 1 convolutions between them."""

  config: KLConfig

  def setup(self):
    c = self.config
    dtype, moments = jnp.dtype(c.dtype), 2 * c.latent_channels
    self.encoder = Encoder(
      c.widths, c.num_blocks, moments, c.has_level_attention, dtype
    )
    self.to_moments = conv(moments, 1, dtype=FLOAT32)
    self.from_latents = conv(c.latent_channels, 1, dtype=FLOAT32)
    self.decoder = Decoder(c.widths, c.num_blocks + 1, CHANNELS, False, dtype)

  def moments(self, images) -> Moments:
    """Images to unscaled moments, float32."""
    features = self.to_moments(self.encoder(images))
    mean, log_variance = jnp.split(features, 2, axis=-1)
    return Moments(mean, jnp.clip(log_variance, *LOG_VARIANCES))

  def decode(self, latents):
    """Unscaled latents to images, float32."""
    return self.decoder(self.from_latents(latents))

  def __call__(self, images):
    return self.decode(self.moments(images).mean)
