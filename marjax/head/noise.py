"""Where a head's random numbers come from: addressed keys, or a recording.

1. `KeyedNoise` holds one key per token; an evaluation's noise is drawn from
   that key and the evaluation's number alone, so a token's sample does not
   depend on its neighbours.
2. `RecordedNoise` holds the draws themselves, to replay a run exactly.

Evaluations are numbered by how many are left: the last is 0. The batch's axes
come first in every leaf, so noise is cut, permuted and placed by `tree.map`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from marjax import keys
from marjax.arrays import Leaf
from marjax.keys import check_key
from marjax.schema import check


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyedNoise:
  """Noise drawn from one key per token.

  Attributes:
    row_keys: typed keys [*batch].
  """

  row_keys: Leaf

  def initial(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """What every token starts from, [*batch, *shape]."""
    return keys.normal(keys.at(self.row_keys, 0), shape)

  def at_steps(self, indices, shape: tuple[int, ...]) -> Float[Array, "C ..."]:
    """Noise of the evaluations `indices` [C], [C, *batch, *shape]."""
    addresses = jnp.broadcast_to(
      indices + 1, (*self.row_keys.shape, indices.shape[0])
    )
    drawn = keys.normal(keys.at(self.row_keys, addresses), shape)
    return jnp.moveaxis(drawn, self.row_keys.ndim, 0)

  def check(
    self, batch: tuple, shape: tuple, num_steps: int, name: str
  ) -> None:
    """Refuses noise of other tokens with a ValueError that calls it `name`."""
    del shape, num_steps
    check_key(self.row_keys, f"{name}.row_keys")
    check_shape(self.row_keys, f"{name}.row_keys", batch)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RecordedNoise:
  """Noise recorded earlier.

  Attributes:
    start: what tokens start from, [*batch, *token].
    steps: of T evaluations, [*batch, T, *token]; the first is used first. None
      for a head that takes noise once, as a categorical one does.
  """

  start: Leaf
  steps: Leaf = None

  def initial(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """What every token starts from, [*batch, *shape]."""
    del shape
    return self.start

  def at_steps(self, indices, shape: tuple[int, ...]) -> Float[Array, "C ..."]:
    """Noise of the evaluations `indices` [C], [C, *batch, *shape].

    Raises:
      ValueError: only the start was recorded.
    """
    check(
      self.steps is not None,
      "the noise was recorded without steps, and this head takes noise at each"
      f" evaluation; expected steps [*batch, T, {', '.join(map(str, shape))}]:"
      " record them too.",
    )
    steps = jnp.moveaxis(self.steps, -1 - len(shape), 0)
    return steps[len(steps) - 1 - indices]

  def check(
    self, batch: tuple, shape: tuple, num_steps: int, name: str
  ) -> None:
    """Refuses noise of other tokens with a ValueError that calls it `name`."""
    check_shape(self.start, f"{name}.start", (*batch, *shape))
    if self.steps is None:
      return
    most = np.shape(self.steps)[len(batch)] if np.ndim(self.steps) else 0
    check_shape(self.steps, f"{name}.steps", (*batch, most, *shape))
    check(
      most >= num_steps,
      f"{name} was recorded for {most} steps; expected {num_steps}, as the"
      " settings ask for.",
    )


def check_shape(value, name: str, shape: tuple) -> None:
  """Refuses an array of another shape with a ValueError that names it."""
  check(
    np.shape(value) == shape,
    f"{name} has shape {np.shape(value)}; expected {shape} for these tokens.",
  )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossDraws:
  """The random numbers of one loss evaluation.

  Attributes:
    timesteps: [*batch, R], integers in 0 .. 999 for diffusion, floats in 0 .. 1
      for flow. noise: float [*batch, R, D].
  """

  timesteps: Leaf
  noise: Leaf


def keys_of_rows(key: Key[Array, "*any"], shape: tuple[int, ...]):
  """One key per row: `key` itself if it has that shape, else split."""
  if key.shape == shape:
    return key
  return jax.random.split(key, shape)
