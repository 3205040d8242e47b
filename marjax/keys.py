"""Every random number has an address, so nothing depends on batch layout.

1. `stream(root, name)` folds a stable hash of the purpose into the root key.
2. `at(key, i, j, ...)` folds integers (step, image id, position) one by one;
   arrays of integers give arrays of keys.
3. A draw made from `stream ⊕ step ⊕ image id ⊕ position` is therefore the same
   on any batch size, device count, padding or bucket plan.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marjax.arrays import ImageKeys, RootKey, as_int, checked, shown
from marjax.schema import check


def check_seed(seed: Any, name: str = "seed") -> int:
  """The integer in 0 .. 2**32 - 1 that a seed is.

  Raises:
    ValueError: it is none.
  """
  number = as_int(seed)
  check(
    number is not None and 0 <= number < 2**32,
    f"{name} is {shown(seed)}; expected an integer in 0 .. 2**32 - 1.",
  )
  return number


@checked(seed=check_seed)
def root(seed: int) -> RootKey:
  """The key all streams of one run hang from. `seed`: 0 .. 2**32 - 1."""
  return jax.random.key(np.uint32(seed))


def check_key(key: Any, name: str = "key") -> Any:
  """One typed key, several, or None.

  Raises:
    ValueError: a key of the old style, or none at all.
  """
  if key is None or is_keys(key):
    return key
  is_old = getattr(key, "dtype", None) == jnp.uint32
  raise ValueError(
    f"{name} is {shown(key)}{', of the old style' if is_old else ''}; expected"
    " a typed key, as jax.random.key(0) makes"
    f"{', or jax.random.wrap_key_data(key)' if is_old else ''}."
  )


def stream(key: RootKey, name: str) -> RootKey:
  """The key of one purpose, e.g. "order" or "initial noise"."""
  return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def each(keys: ImageKeys, name: str) -> ImageKeys:
  """`stream` of each of several keys [B]."""
  return jax.vmap(lambda key: stream(key, name))(keys)


def is_keys(value: Any) -> bool:
  """Whether it is an array of typed keys."""
  dtype = getattr(value, "dtype", None)
  return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def at(key, *addresses):
  """Folds integers into a key; an integer array [B] turns one key into B keys.

  Each address is a scalar, or an array whose shape extends that of the keys so
  far: at(key, ids [B], positions [B, L]) has shape [B, L].
  """
  for address in addresses:
    address = jnp.asarray(address, jnp.uint32)
    key = jnp.broadcast_to(
      key.reshape(key.shape + (1,) * (address.ndim - key.ndim)),
      jnp.broadcast_shapes(
        key.shape + (1,) * (address.ndim - key.ndim), address.shape
      ),
    )
    fold = jax.random.fold_in
    for _ in range(key.ndim):
      fold = jax.vmap(fold)
    key = fold(key, jnp.broadcast_to(address, key.shape))
  return key


def normal(keys, shape: tuple[int, ...]):
  """Standard normal draws [*keys.shape, *shape], float32, one key each."""
  return _vmapped(lambda key: jax.random.normal(key, shape), keys)


def uniform(keys, shape: tuple[int, ...] = ()):
  """Uniform draws in [0, 1) of shape [*keys.shape, *shape], float32."""
  return _vmapped(lambda key: jax.random.uniform(key, shape), keys)


def integers(keys, shape: tuple[int, ...], maximum: int):
  """Uniform integers in 0 .. maximum - 1, [*keys.shape, *shape], int32."""
  return _vmapped(lambda key: jax.random.randint(key, shape, 0, maximum), keys)


def permutations(keys, length: int):
  """One random permutation of 0 .. length - 1 per key, int32."""
  return _vmapped(lambda key: jax.random.permutation(key, length), keys)


def _vmapped(draw, keys):
  """One `vmap` over all keys: nested ones make the partitioner gather keys."""
  drawn = jax.vmap(draw)(keys.reshape(-1))
  return drawn.reshape(*keys.shape, *drawn.shape[1:])
