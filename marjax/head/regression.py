"""The control: one MLP output per token, trained with a plain L2 loss.

It has the width and depth of the diffusion head but models only the mean of a
token, so it draws blurred tokens (paper, section 5.1: FID above 100). Kept to
show what Diffusion Loss brings; it has the same `loss` and `sample`.
"""

from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from marjax import schema
from marjax.arrays import Conditions, TokenRows
from marjax.head.mlp import MLPConfig, MLPHead, Passes, guided
from marjax.head.process import split_output
from marjax.schema import Range


@schema.config
class RegressionSettings:
  """How the control draws: in one evaluation, with nothing to choose."""

  num_steps: Literal[1] = 1
  final_num_steps: None = None
  kind: Literal["regression"] = "regression"
  has_temperature: ClassVar[bool] = False
  PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

  def walk(self) -> tuple:
    """No numbers."""
    return ()


@schema.config
class RegressionHeadConfig(MLPConfig):
  """Shape of the control head, see `MLPConfig`."""

  repeats: Annotated[int, Range(1, 1024)] = 1
  kind: Literal["regression"] = "regression"
  Settings: ClassVar[type] = RegressionSettings

  def build(self) -> "RegressionHead":
    """The linen module of this shape."""
    return RegressionHead(self)

  def draw(self, row_keys) -> tuple:
    """Nothing."""
    del row_keys
    return ()


class RegressionHead(MLPHead):
  """E[token | z] by regression; guidance extrapolates between two means.

  The network's input is constant, and not 0: its zero-initialised last layers
  get a gradient only if there is something to modulate.
  """

  config: RegressionHeadConfig
  has_random_loss: ClassVar[bool] = False
  has_random_samples: ClassVar[bool] = False

  def loss_terms(
    self, z: Conditions, target: TokenRows, draws
  ) -> dict[str, Float[Array, "*batch 1"]]:
    """The mean squared error of each token, "mse"."""
    del draws
    x, t = jnp.ones_like(target), jnp.zeros(z.shape[:-1], jnp.int32)
    mean = split_output(self.net(x, t, z))[0]
    return {"mse": jnp.mean(jnp.square(mean - target), axis=-1, keepdims=True)}

  def walk_through(
    self, walk, noise, temperature, both: Passes, scale
  ) -> TokenRows:
    """The predicted mean [*batch, D]."""
    del walk, noise, temperature
    x = jnp.ones((*both.batch, self.config.token_dim))
    modulations = both.prepare(self.net.embed_time(jnp.zeros(1, jnp.int32)))
    return guided(
      split_output(both.evaluate(x, modulations, jnp.int32(0)))[0], scale
    )
