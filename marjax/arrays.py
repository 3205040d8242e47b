"""Axis glossary, and the array types used at every boundary.

One letter per axis, the same in types, einsum strings and prose:

    B  images of a batch            L  tokens of an image
    K  known tokens (a prefix, in order space)
    U  tokens to predict            P  slots = buffer slots + tokens
    D  numbers of one token         W  width of the transformer (of z)
    N  heads                        H  numbers of one head
    R  repeats of a token in the loss
    T  diffusion steps              S  autoregressive steps

Order space: the tokens of each image permuted by its generation order, so that
known tokens are a prefix and the tokens to predict come right after it.

    order space   0 1 2 3 | 4 5 | 6 7 8 9 10 11 12 13 14 15
                  known     next  unknown, not yet asked for
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

Images = Float[Array, "B height width C"]
Latents = Float[Array, "B rows columns C"]
Tokens = Float[Array, "B L D"]
Order = Int[Array, "B L"]
Labels = Int[Array, " B"]
Counts = Int[Array, " B"]
ImageIds = Int[Array, " B"]
Conditions = Float[Array, "*batch W"]
TokenRows = Float[Array, "*batch D"]
Timesteps = Int[Array, "*batch"]
Scalar = Float[Array, ""]
RootKey = Key[Array, ""]
ImageKeys = Key[Array, " B"]
TokenKeys = Key[Array, "B L"]

Leaf = Any
"""A field of a pytree: an array, or what JAX rebuilds the pytree with."""

NO_LABEL = -1
"""The label that means "no class": the backbone uses its `fake_latent`."""


def no_gradient(integers):
  """What a backward pass gives for arrays, or trees, of integers."""
  return jax.tree.map(
    lambda array: np.zeros(array.shape, jax.dtypes.float0), integers
  )


def check_finite(arrays: PyTree, where: str) -> None:
  """Refuses NaN and infinity, naming the array.

  Args:
    arrays: see `not_finite`. where: whose they are, for the message.

  Raises:
    ValueError: one of them holds a number that is not finite.
  """
  if name := not_finite(arrays):
    raise ValueError(
      f"{where} has NaN or infinity in {name}; expected finite numbers: take"
      " another copy, or one from before training failed."
    )


def not_finite(arrays: PyTree) -> str | None:
  """The name of the first array with NaN or infinity, None if all are finite.

  `arrays`: numpy's or jax's, also spread over devices and processes; integers
  pass.
  """
  named = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
  }
  # A program for accelerators takes seconds to compile; numpy needs none.
  elsewhere = {n: leaf for n, leaf in named.items() if not _is_on_host(leaf)}
  is_finite = jax.device_get(_are_finite(elsewhere)) if elsewhere else {}
  for name, leaf in named.items():
    fine = is_finite[name] if name in is_finite else _is_finite(leaf)
    if not fine:
      return name or "its numbers"
  return None


def _is_on_host(array: Any) -> bool:
  if not isinstance(array, jax.Array):
    return True
  is_cpu = all(device.platform == "cpu" for device in array.devices())
  return is_cpu and array.is_fully_addressable


def _is_finite(array: Any) -> bool:
  parts = [array]
  if isinstance(array, jax.Array):
    shards = array.addressable_shards
    parts = [shard.data for shard in shards if shard.replica_id == 0]
  return all(np.isfinite(np.asarray(part)).all() for part in parts)


def shapes_of(arrays: PyTree) -> dict[str, tuple[int, ...]]:
  """The shape of every array by its name, such as "head/net/blocks_0"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
  }


def check_shapes(
  arrays: PyTree, expected: dict[str, tuple[int, ...]], where: str
) -> None:
  """Refuses arrays that are missing, too many, or of other shapes.

  Args:
    arrays: a tree of them. expected: what `shapes_of` should say of it.
    where: whose they should be, for the message.

  Raises:
    ValueError: names the first difference.
  """
  shapes = shapes_of(arrays)
  for name in sorted(expected.keys() | shapes.keys()):
    ours, theirs = expected.get(name), shapes.get(name)
    if ours != theirs:
      raise ValueError(
        f"the parameters are not those of {where}: {name} is"
        f" {'not there' if theirs is None else f'of shape {theirs}'}; expected"
        f" {'no such array' if ours is None else f'shape {ours}'}: give those"
        " that were made for this configuration."
      )


@jax.jit
def _are_finite(arrays: PyTree) -> PyTree:
  return jax.tree.map(lambda array: jnp.isfinite(array).all(), arrays)
