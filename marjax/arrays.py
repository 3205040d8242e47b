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
    arrays: numpy's or jax's, also spread over devices and processes; integers
      pass. where: whose they are, for the message.

  Raises:
    ValueError: one of them holds a number that is not finite.
  """
  is_finite = jax.device_get(_are_finite(arrays))
  for path, fine in jax.tree_util.tree_leaves_with_path(is_finite):
    if not fine:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"{where} has NaN or infinity in {name or 'its numbers'}; expected"
        " finite numbers: take another copy, or one from before training"
        " failed."
      )


@jax.jit
def _are_finite(arrays: PyTree) -> PyTree:
  return jax.tree.map(lambda array: jnp.isfinite(array).all(), arrays)
