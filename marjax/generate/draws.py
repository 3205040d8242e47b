"""Everything random about a batch of images, addressed by token.

1. An image's order and noise depend on (key, image id, position, purpose) only,
   not on the batch that it is in.
2. Noise is indexed by raster position; `noise_in_order` permutes it as the
   tokens are, after which a step takes a slice of it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from marjax import keys
from marjax.arrays import ImageIds, Leaf, Order, RootKey, numbers, shown
from marjax.head.noise import KeyedNoise
from marjax.protocols import BackboneConfig, Noise
from marjax.schema import check


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Draws:
  """Everything random about a batch of images; pass it again to replay them.

  Attributes:
    order: generation order [B, L].
    noise: KeyedNoise with keys [B, L], or RecordedNoise with start [B, L, D]
      and, unless the head takes noise once, steps [B, L, T, D], where D stands
      for the head's noise_shape; indexed by raster position.
  """

  order: Leaf
  noise: Leaf

  def __repr__(self) -> str:
    kind = type(self.noise).__name__
    return f"Draws(order {shown(self.order)}, {kind})"


def as_draws(draws: Any, name: str = "draws") -> Draws | None:
  """Draws, or None.

  Raises:
    ValueError: something else.
  """
  is_draws = isinstance(draws, Draws) and isinstance(draws.noise, Noise)
  check(
    draws is None or is_draws,
    f"{name} is {shown(draws)}; expected `Draws`, as pipe.draws(seed,"
    " num_images) makes.",
  )
  return draws


def check_draws(
  draws: Draws,
  num_images: int,
  num_tokens: int,
  noise_shape: tuple[int, ...],
  num_steps: int,
) -> None:
  """Refuses what are no draws of these images by this model.

  Args:
    draws: to be used. num_images: that they are for.
    num_tokens: L. noise_shape: of one token, as the model's head says.
    num_steps: the most evaluations of the head for a token.

  Raises:
    ValueError: other shapes, orders that leave out tokens,
      or recorded noise of other steps or with NaN.
  """
  order = numbers(draws.order, "draws.order", "integers [N, L]")
  check(
    order.shape[:1] == (num_images,),
    f"draws were recorded for {len(np.atleast_1d(order))} images; expected"
    f" {num_images}, one for each label.",
  )
  shape = (num_images, num_tokens)
  is_order = order.shape == shape and order.dtype.kind in "iu"
  check(
    is_order and bool((np.sort(order) == np.arange(num_tokens)).all()),
    f"draws.order is {shown(order)}; expected {list(shape)} with each of 0 .."
    f" {num_tokens - 1} once for each image: draws are of one model.",
  )
  draws.noise.check(shape, noise_shape, num_steps, "draws.noise")
  for path, leaf in jax.tree_util.tree_leaves_with_path(draws.noise):
    if not keys.is_keys(leaf):
      name = jax.tree_util.keystr(path)
      numbers(leaf, f"draws.noise{name}", "floats")


def draw_batch(
  key: RootKey, image_ids: ImageIds, backbone: BackboneConfig
) -> Draws:
  """Draws addressed by (key, image id, position, purpose) only."""
  num_tokens = backbone.num_tokens
  order_keys = keys.at(keys.stream(key, "order"), image_ids)
  noise_keys = keys.at(keys.stream(key, "noise"), image_ids)
  positions = jnp.broadcast_to(
    jnp.arange(num_tokens), (image_ids.shape[0], num_tokens)
  )
  return Draws(
    backbone.orders(order_keys),
    KeyedNoise(keys.at(noise_keys, positions)),
  )


def noise_in_order(noise: Noise, order: Order) -> Noise:
  """Noise per raster position to noise per generation index."""
  each = jax.vmap(lambda values, places: values[places])
  return jax.tree.map(lambda leaf: each(leaf, order), noise)


def pad(values: PyTree, amount: int) -> PyTree:
  """Repeats the last token `amount` times, so no slice runs off the end."""
  return jax.tree.map(
    lambda leaf: jnp.concatenate([leaf, *[leaf[:, -1:]] * amount], axis=1),
    values,
  )


def cut(noise: Noise, start, width: int) -> Noise:
  """The noise of `width` tokens from generation index `start` on."""
  return jax.tree.map(
    lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, width, 1), noise
  )
