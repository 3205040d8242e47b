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

from marjax import keys
from marjax.arguments import numbers, shown
from marjax.arrays import ImageIds, Leaf, Order, RootKey
from marjax.head.noise import KeyedNoise, Noise, RecordedNoise
from marjax.schema import check
from marjax.tokens.order import random_orders, to_order_space


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Draws:
  """Everything random about a batch of images; pass it again to replay them.

  Attributes:
    order: generation order [B, L].
    noise: KeyedNoise with keys [B, L], or RecordedNoise with start [B, L, D]
      and steps [T, B, L, D]; indexed by raster position.
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
  known = KeyedNoise | RecordedNoise
  is_draws = isinstance(draws, Draws) and isinstance(draws.noise, known)
  check(
    draws is None or is_draws,
    f"{name} is {shown(draws)}; expected `Draws`, as pipe.draws(seed,"
    " num_images) makes.",
  )
  return draws


def check_draws(
  draws: Draws, num_images: int, num_tokens: int, token_dim: int, num_steps: int
) -> None:
  """Refuses what are no draws of these images by this model.

  Args:
    draws: to be used. num_images: that they are for.
    num_tokens, token_dim: L and D of the model.
    num_steps: the most diffusion steps of a token.

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
  noise = draws.noise
  if isinstance(noise, KeyedNoise):
    parts = {"row_keys": (noise.row_keys, shape)}
    is_key = jax.dtypes.issubdtype(noise.row_keys.dtype, jax.dtypes.prng_key)
    check(is_key, "draws.noise has no typed keys; pipe.draws makes some.")
  else:
    whole = (*shape, token_dim)
    parts = {"start": (noise.start, whole)}
    parts["steps"] = (noise.steps, (num_steps, *whole))
  for name, (array, expected) in parts.items():
    check(
      np.shape(array) == expected,
      f"draws.noise.{name} has shape {np.shape(array)}; expected {expected} of"
      " this model with these settings.",
    )
    if name != "row_keys":
      numbers(array, f"draws.noise.{name}", "floats")


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
