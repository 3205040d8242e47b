"""Where the random numbers of a head come from: addressed keys, or a recording.

1. `KeyedNoise` holds one key per token; step t's noise is drawn from that key
   and t alone, so a token's sample does not depend on its neighbours.
2. `RecordedNoise` holds the draws themselves, to replay a run exactly.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from marjax import keys
from marjax.arrays import Leaf, TokenRows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyedNoise:
  """Noise drawn from one key per token.

  Attributes:
    row_keys: typed keys [*batch].
  """

  row_keys: Leaf

  def initial(self, token_dim: int) -> TokenRows:
    """x_T of every token, [*batch, D]."""
    return keys.normal(keys.at(self.row_keys, 0), (token_dim,))

  def at_steps(self, indices, token_dim: int) -> Float[Array, "C *batch D"]:
    """Noise added when leaving the respaced timesteps `indices` [C]."""
    addresses = jnp.broadcast_to(
      indices + 1, (*self.row_keys.shape, indices.shape[0])
    )
    drawn = keys.normal(keys.at(self.row_keys, addresses), (token_dim,))
    return jnp.moveaxis(drawn, -2, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RecordedNoise:
  """Noise recorded earlier.

  Attributes:
    start: x_T, [*batch, D].
    steps: [T, *batch, D]; entry k is used at respaced timestep T - 1 - k.
  """

  start: Leaf
  steps: Leaf

  def initial(self, token_dim: int) -> TokenRows:
    """x_T of every token, [*batch, D]."""
    return self.start[..., :token_dim]

  def at_steps(self, indices, token_dim: int) -> Float[Array, "C *batch D"]:
    """Noise added when leaving the respaced timesteps `indices` [C]."""
    return self.steps[self.steps.shape[0] - 1 - indices][..., :token_dim]


Noise = KeyedNoise | RecordedNoise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossDraws:
  """The random numbers of one loss evaluation.

  Attributes:
    timesteps: int [*batch, R] in 0 .. 999. noise: float [*batch, R, D].
  """

  timesteps: Leaf
  noise: Leaf


def keys_of_rows(key: Key[Array, "*any"], shape: tuple[int, ...]):
  """One key per row: `key` itself if it has that shape, else split."""
  if key.shape == shape:
    return key
  return jax.random.split(key, shape)


def draw_for_loss(row_keys, repeats: int, token_dim: int, num_timesteps: int):
  """Uniform timesteps and normal noise for each row, `repeats` of each."""
  return LossDraws(
    keys.integers(keys.at(row_keys, 0), (repeats,), num_timesteps),
    keys.normal(keys.at(row_keys, 1), (repeats, token_dim)),
  )
