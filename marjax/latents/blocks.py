"""Encoder and decoder of the autoencoders, and their blocks: [B, H, W, C].

1. Norm: GroupNorm over 32 groups, eps 1e-6, in float32 whatever the dtype.
2. Residual block: x + conv(swish(norm(conv(swish(norm(x)))))), where x passes a
   1 × 1 convolution if the width changes.
3. Attention: one head over all positions, 1 × 1 convolutions for query, key,
   value and output, scale C^-0.5; logits and softmax are float32.
4. Down: 3 × 3 convolution of stride 2, padded on the right and below only.

       pixels   0 1 2 3 4 5 ·      outputs   (0 1 2) (2 3 4) (4 5 ·)

5. Up: each pixel becomes 2 × 2 equal ones, then a 3 × 3 convolution.
6. Encoder: convolution, levels, middle; decoder: convolution, middle, levels;
   both end with norm, swish and a convolution.

Parameters and the last convolution are float32; the others, and what flows
between them, have the given dtype. Source: arXiv 2112.10752, appendix G; spec
section 1.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

NORM_GROUPS = 32
FLOAT32 = jnp.dtype("float32")


norm = functools.partial(
  nn.GroupNorm,
  NORM_GROUPS,
  epsilon=1e-6,
  dtype=FLOAT32,
  use_fast_variance=False,
)
"""float32 in its statistics and result."""


def conv(features: int, size: int = 3, **options) -> nn.Conv:
  """A biased size × size convolution; zero padding keeps the image's size."""
  return nn.Conv(features, (size, size), **options)


class ResidualBlock(nn.Module):
  """Two convolutions beside the identity; `features` is the output's width."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    h = nn.swish(norm(name="norm1")(x))
    h = conv(self.features, dtype=self.dtype, name="conv1")(h)
    h = nn.swish(norm(name="norm2")(h))
    h = conv(self.features, dtype=self.dtype, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = conv(self.features, 1, dtype=self.dtype, name="shortcut")(x)
    return x + h


class Attention(nn.Module):
  """Every position looks at every other, beside the identity."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1]

    def project(name, h):
      return conv(channels, 1, dtype=self.dtype, name=name)(h)

    h = norm(name="norm")(x)
    query, key, value = (
      project(name, h).reshape(len(x), -1, channels)
      for name in ("query", "key", "value")
    )
    logits = jnp.einsum(
      "bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(logits * channels**-0.5, axis=-1)
    mixed = jnp.einsum("bqk,bkc->bqc", weights.astype(self.dtype), value)
    return x + project("projection", mixed.reshape(x.shape))


class Middle(nn.Module):
  """Residual block, attention, residual block, all of one width."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    x = ResidualBlock(x.shape[-1], self.dtype, name="block1")(x)
    x = Attention(self.dtype, name="attention")(x)
    return ResidualBlock(x.shape[-1], self.dtype, name="block2")(x)


class Level(nn.Module):
  """What happens at one resolution, then the way to the next.

  Attributes:
    features: width of the level's output.
    num_blocks: residual blocks.
    has_attention: attention after each block.
    resampling: halve or double the image's sides at the end, or neither.
    dtype: of the convolutions and of what flows between them.
  """

  features: int
  num_blocks: int
  has_attention: bool
  resampling: Literal["down", "up", "none"]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    for i in range(self.num_blocks):
      x = ResidualBlock(self.features, self.dtype, name=f"blocks_{i}")(x)
      if self.has_attention:
        x = Attention(self.dtype, name=f"attentions_{i}")(x)
    convolve = functools.partial(conv, self.features, dtype=self.dtype)
    if self.resampling == "down":
      sides = ((0, 1), (0, 1))
      return convolve(strides=2, padding=sides, name="down")(x)
    if self.resampling == "up":
      return convolve(name="up")(x.repeat(2, axis=1).repeat(2, axis=2))
    return x


class Encoder(nn.Module):
  """Images to features: each level but the last halves the sides.

  Attributes:
    widths: of the levels, that of the full resolution first.
    num_blocks: residual blocks of a level.
    features: width of the result, float32.
    has_level_attention: attention after each block of the last level.
    dtype: of the convolutions and of what flows between them.
  """

  widths: tuple[int, ...]
  num_blocks: int
  features: int
  has_level_attention: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    last = len(self.widths) - 1
    x = conv(self.widths[0], dtype=self.dtype, name="conv_in")(x)
    for i, width in enumerate(self.widths):
      x = Level(
        width,
        self.num_blocks,
        has_attention=self.has_level_attention and i == last,
        resampling="none" if i == last else "down",
        dtype=self.dtype,
        name=f"levels_{i}",
      )(x)
    x = nn.swish(norm(name="norm_out")(Middle(self.dtype, name="middle")(x)))
    return conv(self.features, dtype=FLOAT32, name="conv_out")(x)


class Decoder(nn.Module):
  """Features to images: each level but level 0, the last, doubles the sides.

  Attributes: as of the `Encoder`; the last level is its first.
  """

  widths: tuple[int, ...]
  num_blocks: int
  features: int
  has_level_attention: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    last = len(self.widths) - 1
    x = conv(self.widths[-1], dtype=self.dtype, name="conv_in")(x)
    x = Middle(self.dtype, name="middle")(x)
    for i, width in reversed(list(enumerate(self.widths))):
      x = Level(
        width,
        self.num_blocks,
        has_attention=self.has_level_attention and i == last,
        resampling="up" if i else "none",
        dtype=self.dtype,
        name=f"levels_{i}",
      )(x)
    x = nn.swish(norm(name="norm_out")(x))
    return conv(self.features, dtype=FLOAT32, name="conv_out")(x)
