"""What autoencoders share that are made of `marjax.latents.blocks`.

    image ─encoder▶ features at 1/stride of the sides ... ─decoder▶ image

1. Widths are a base width times a multiplier for each level; from one level to
   the next the resolution halves, so the stride is 2 to the levels less one.
2. Everything is convolutional, so any image whose sides are multiples of the
   stride will do.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from marjax.arrays import RootKey
from marjax.latents.blocks import NORM_GROUPS
from marjax.latents.patched import Patched
from marjax.schema import check

CHANNELS = 3
MOST_LEVELS = 12

# C is the latents' here, so the images' channels have another name.
RGBImages = Float[Array, "B height width channels"]


class Trunk(Patched):
  """Sizes and parameters, from `base_width`, `multipliers` and `module`."""

  def module(self) -> nn.Module:
    """The network; its `__call__` takes images and uses every parameter."""
    raise NotImplementedError

  def check_trunk(self) -> None:
    """Refuses widths and sizes that do not fit, with a ValueError."""
    check(
      1 <= len(self.multipliers) <= MOST_LEVELS,
      f"codec.multipliers has {len(self.multipliers)} entries; expected one for"
      f" each level, 1 to {MOST_LEVELS}.",
    )
    check(
      self.base_width % NORM_GROUPS == 0,
      f"codec.base_width is {self.base_width}; expected a multiple of"
      f" {NORM_GROUPS}, the groups of its norms.",
    )
    side = self.stride * self.patch
    check(
      self.image_size % side == 0,
      f"codec.image_size is {self.image_size}; expected a multiple of {side}:"
      f" {self.stride} pixels per latent, times codec.patch = {self.patch}.",
    )

  @property
  def widths(self) -> tuple[int, ...]:
    """Of the levels, that of the full resolution first."""
    return tuple(
      self.base_width * multiplier for multiplier in self.multipliers
    )

  @property
  def channels(self) -> int:
    """3: the images are RGB."""
    return CHANNELS

  @property
  def stride(self) -> int:
    """Pixels per side of one latent position."""
    return 2 ** (len(self.multipliers) - 1)

  def init_params(self, key: RootKey) -> PyTree:
    """New float32 parameters as nested dicts; also under `jax.eval_shape`.

    Kernels are xavier-uniform, biases 0, norms the identity; the vectors of
    codes are uniform in [-1, 1].
    """
    smallest = jnp.zeros((1, self.stride, self.stride, CHANNELS))
    shapes = jax.eval_shape(self.module().init, key, smallest)["params"]
    leaves, structure = jax.tree.flatten(shapes)
    # Compiling one draw for each kernel would take ten seconds.
    sizes = [leaf.size * (leaf.ndim > 1) for leaf in leaves]
    drawn = jax.random.uniform(key, (sum(sizes),), minval=-1.0, maxval=1.0)
    parts = jnp.split(drawn, np.cumsum(sizes)[:-1])

    def fresh(path, leaf, uniform):
      if path[-1].key == "kernel":
        height, width, inputs, outputs = leaf.shape
        bound = math.sqrt(6 / (height * width * (inputs + outputs)))
        return bound * uniform.reshape(leaf.shape)
      if path[-1].key == "codes":
        return uniform.reshape(leaf.shape)
      return jnp.full(leaf.shape, 1.0 if path[-1].key == "scale" else 0.0)

    return jax.tree_util.tree_map_with_path(
      fresh, shapes, jax.tree.unflatten(structure, parts)
    )

  def apply(self, method: str, params: PyTree, x: Array) -> PyTree:
    """What a method of the network gives."""
    return self.module().apply({"params": params}, x, method=method)

  def check_images(self, images: Array) -> None:
    """Refuses integers, other channels and other sides, with a ValueError."""
    check(
      jnp.issubdtype(images.dtype, jnp.floating),
      f"images hold {images.dtype}; expected floats in [-1, 1]: divide bytes"
      " by 127.5 and subtract 1.",
    )
    check(
      images.ndim == 4
      and images.shape[-1] == CHANNELS
      and images.shape[1] % self.stride == images.shape[2] % self.stride == 0,
      f"images have shape {images.shape}; expected [B, height, width,"
      f" {CHANNELS}] with sides that are multiples of {self.stride}: crop or"
      " resize them.",
    )
