"""Everything random about a batch of images, addressed by token.

1. An image's order and noise depend on (key, image id, position, purpose) only,
   not on the batch that it is in.
2. Noise is indexed by raster position; `noise_in_order` permutes it as the
   tokens are, after which a step takes a slice of it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from marjax import keys
from marjax.arrays import ImageIds, Leaf, Order, RootKey
from marjax.head.noise import KeyedNoise, Noise, RecordedNoise
from marjax.tokens.order import random_orders, to_order_space


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draws:
  """Everything random about a batch of images; pass it again to replay them.

  Attributes:
    order: generation order [B, L].
    noise: KeyedNoise with keys [B, L], or RecordedNoise with start [B, L, D]
      and steps [T, B, L, D]; indexed by raster position.
  """

  order: Leaf
  noise: Leaf


def draw_batch(key: RootKey, image_ids: ImageIds, num_tokens: int) -> Draws:
  """Draws addressed by (key, image id, position, purpose) only."""
  order_keys = keys.at(keys.stream(key, "order"), image_ids)
  noise_keys = keys.at(keys.stream(key, "noise"), image_ids)
  positions = jnp.broadcast_to(
    jnp.arange(num_tokens), (image_ids.shape[0], num_tokens)
  )
  return Draws(
    random_orders(order_keys, num_tokens),
    KeyedNoise(keys.at(noise_keys, positions)),
  )


def noise_in_order(noise: Noise, order: Order) -> Noise:
  """Noise per raster position to noise per generation index."""
  if isinstance(noise, KeyedNoise):
    return KeyedNoise(jax.vmap(lambda k, o: k[o])(noise.row_keys, order))
  steps = jax.vmap(to_order_space, (0, None))(noise.steps, order)
  return RecordedNoise(to_order_space(noise.start, order), steps)


def pad(values, amount: int):
  """Repeats the last token `amount` times, so no slice runs off the end."""

  def extend(array, axis):
    last = jax.lax.slice_in_dim(array, -1, None, axis=axis)
    return jnp.concatenate([array, *[last] * amount], axis=axis)

  if isinstance(values, KeyedNoise | RecordedNoise):
    return _token_axis(values, extend)
  return extend(values, 1)


def cut(noise: Noise, start, width: int) -> Noise:
  """The noise of `width` tokens from generation index `start` on."""

  def part(array, axis):
    return jax.lax.dynamic_slice_in_dim(array, start, width, axis)

  return _token_axis(noise, part)


def _token_axis(noise: Noise, function) -> Noise:
  """Applies function(array, axis) along the token axis of every array."""
  if isinstance(noise, KeyedNoise):
    return KeyedNoise(function(noise.row_keys, 1))
  return RecordedNoise(function(noise.start, 1), function(noise.steps, 2))
