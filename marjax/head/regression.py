"""The control: one MLP output per token, trained with a plain L2 loss.

It has the width and depth of the diffusion head but models only the mean of a
token, so it draws blurred tokens (paper, section 5.1: FID above 100). Kept to
show what Diffusion Loss brings; it has the same `loss` and `sample`.
"""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from marjax import schema
from marjax.arguments import checked
from marjax.arrays import Conditions, TokenRows
from marjax.head import calls
from marjax.head.denoiser import Denoiser
from marjax.head.diffusion import Guidance, HeadLoss
from marjax.head.process import split_output
from marjax.head.reverse import ReverseSettings, Walk
from marjax.schema import Range, Size


@schema.config
class RegressionHeadConfig:
  """Shape of the control head, as `DiffusionHeadConfig`."""

  token_dim: Size
  width: Size = 1024
  depth: Annotated[int, Range(1, 256)] = 3
  repeats: Annotated[int, Range(1, 1024)] = 1
  dtype: Literal["float32", "bfloat16"] = "float32"
  kind: Literal["regression"] = "regression"

  def build(self) -> "RegressionHead":
    """The linen module of this shape."""
    return RegressionHead(self)


class RegressionHead(nn.Module):
  """E[token | z] by regression; the arguments are those of DiffusionHead."""

  config: RegressionHeadConfig
  is_random: ClassVar[bool] = False

  def setup(self):
    self.net = Denoiser(
      token_dim=self.config.token_dim,
      width=self.config.width,
      depth=self.config.depth,
      dtype=jnp.dtype(self.config.dtype),
    )

  def _predict(self, z: Conditions) -> TokenRows:
    # A constant input, not 0: the zero-initialised last layers get a gradient
    # only if there is something to modulate.
    ones = jnp.ones((*z.shape[:-1], self.config.token_dim))
    t = jnp.zeros(z.shape[:-1], jnp.int32)
    return split_output(self.net(ones, t, z))[0]

  @checked(z=calls.vectors, target=calls.tokens, weights=calls.token_weights)
  def loss(
    self,
    z: Conditions,
    target: TokenRows,
    weights: Float[Array, "*batch"] | None = None,
    *,
    key=None,
    draws=None,
  ) -> HeadLoss:
    """Mean squared error over the weighted tokens; vlb is 0."""
    error = jnp.mean(jnp.square(self._predict(z) - target), axis=-1)
    if weights is None:
      weights = jnp.ones_like(error)
    mse = jnp.sum(weights * error) / jnp.maximum(jnp.sum(weights), 1.0)
    return HeadLoss(mse, mse, jnp.zeros_like(mse))

  @checked(calls.of_sample, z=calls.vectors, guidance=calls.guidance)
  def sample(
    self,
    z: Conditions,
    settings: ReverseSettings | Walk | None = None,
    *,
    key=None,
    noise=None,
    temperature=1.0,
    guidance: Guidance | None = None,
  ) -> TokenRows:
    """The predicted mean; guidance extrapolates between two means."""
    mean = self._predict(z)
    if guidance is None:
      return mean
    z_uncond, scale = guidance
    mean_uncond = self._predict(z_uncond)
    return mean_uncond + scale * (mean - mean_uncond)
