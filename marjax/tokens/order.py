"""Order space: permute tokens once by generation order, then only slice.

1. `order[b, j]` is the raster position that image b generates j-th.
2. `to_order_space` lays tokens out so that the first n are the first n
   generated: known tokens are a prefix, no mask array is needed.
3. `to_raster` is the inverse permutation, applied once at the end.

DIFFERS: reveal-order. The published program stores the reverse: the first
entries of its order stay masked longest. Flip the last axis to convert.
"""

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from marjax import keys
from marjax.arrays import ImageKeys, Order


def random_orders(image_keys: ImageKeys, length: int) -> Order:
  """One uniformly random generation order per image, [B, L] int32."""
  return keys.permutations(image_keys, length)


def to_order_space(
  values: Shaped[Array, "B L *rest"], order: Order
) -> Shaped[Array, "B L *rest"]:
  """Values per raster position to values per generation index."""
  index = order.reshape(order.shape + (1,) * (values.ndim - 2))
  return jnp.take_along_axis(values, index, axis=1)


def to_raster(
  values: Shaped[Array, "B L *rest"], order: Order
) -> Shaped[Array, "B L *rest"]:
  """Values per generation index to values per raster position."""
  return to_order_space(values, jnp.argsort(order, axis=1))
