"""The diffusion head: Diffusion Loss for training, a sampler for drawing.

    loss    z, target ─▶ t, noise ─▶ x_t ─▶ denoiser ─▶ mse + vlb per token
    sample  z ─▶ embed once ─▶ scan over timesteps ─▶ token

It is usable on its own: any model that gives a vector z per position can train
with `loss(z, target, key=...)` and draw with `sample(z, key=...)`.

    head = DiffusionHead(DiffusionHeadConfig(token_dim=2, width=128, depth=3))
    params = head.init(key, z, target, key=key)
    loss, _ = head.apply(params, z, target, key=key)
    drawn = head.apply(params, z, key=key, method="sample")

Source: arXiv 2406.11838, equations 1 and 2; spec section 4.
"""

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from marjax import schema
from marjax.arguments import checked
from marjax.arrays import Conditions, Scalar, TokenRows
from marjax.head import calls, reverse
from marjax.head import process as diffusion
from marjax.head.denoiser import Denoiser
from marjax.head.noise import (
  KeyedNoise,
  LossDraws,
  Noise,
  draw_for_loss,
  keys_of_rows,
)
from marjax.head.process import Process
from marjax.head.reverse import ReverseSettings, Walk
from marjax.head.timesteps import NUM_TIMESTEPS
from marjax.keys import check_key
from marjax.layers.placed import platform
from marjax.schema import Range, Size

ROWS_AT_ONCE = 16384
"""Rows of one product of modulations, tokens times passes times timesteps."""

Guidance = tuple[Conditions, float | Float[Array, ""]]


class HeadLoss(NamedTuple):
  """Means over the weighted tokens: the loss and its two terms."""

  loss: Scalar
  mse: Scalar
  vlb: Scalar


@schema.config
class DiffusionHeadConfig:
  """Shape of the head.

  Attributes:
    token_dim: D, numbers per token.
    width: of the MLP. depth: residual blocks.
    repeats: R, noise levels drawn per token in the loss.
    dtype: of the matmuls, "float32" or "bfloat16".
  """

  token_dim: Size
  width: Size = 1024
  depth: Annotated[int, Range(1, 256)] = 3
  repeats: Annotated[int, Range(1, 1024)] = 4
  dtype: Literal["float32", "bfloat16"] = "float32"
  kind: Literal["diffusion"] = "diffusion"

  def build(self) -> "DiffusionHead":
    """The linen module of this shape."""
    return DiffusionHead(self)


class DiffusionHead(nn.Module):
  """p(token | z) by diffusion; see the module docstring."""

  config: DiffusionHeadConfig
  is_random: ClassVar[bool] = True

  def setup(self):
    self.net = Denoiser(
      token_dim=self.config.token_dim,
      width=self.config.width,
      depth=self.config.depth,
      dtype=jnp.dtype(self.config.dtype),
    )

  def __call__(self, *args, **kwargs) -> HeadLoss:
    """Same as `loss`; initialises all parameters."""
    return self.loss(*args, **kwargs)

  @checked(
    calls.of_loss,
    key=check_key,
    z=calls.vectors,
    target=calls.tokens,
    weights=calls.token_weights,
    draws=calls.loss_draws,
  )
  def loss(
    self,
    z: Conditions,
    target: TokenRows,
    weights: Float[Array, "*batch"] | None = None,
    *,
    key: Key[Array, "*any"] | None = None,
    draws: LossDraws | None = None,
  ) -> HeadLoss:
    """Diffusion Loss of the targets given z, in float32.

    Args:
      z: [*batch, W] from any model.
      target: [*batch, D], about unit variance.
      weights: [*batch], 0 leaves a token out; None for all 1.
      key: one key, or one per token ([*batch]).
      draws: recorded timesteps and noise instead of a key.

    Returns:
      Weighted means over tokens and repeats: loss = mse + vlb.

    Raises:
      ValueError: one of them, or the parameters, of another type or shape;
        NaN; no key and no draws.
    """
    if draws is None:
      draws = draw_for_loss(
        keys_of_rows(key, target.shape[:-1]),
        self.config.repeats,
        self.config.token_dim,
        NUM_TIMESTEPS,
      )
    terms = self.loss_terms(z, target, draws)
    mse, vlb = (jnp.mean(term, axis=-1) for term in terms)
    if weights is None:
      weights = jnp.ones_like(mse)
    count = jnp.maximum(jnp.sum(weights), 1.0)
    mse, vlb = jnp.sum(weights * mse) / count, jnp.sum(weights * vlb) / count
    return HeadLoss(mse + vlb, mse, vlb)

  def loss_terms(
    self, z: Conditions, target: TokenRows, draws: LossDraws
  ) -> diffusion.LossTerms:
    """Both terms per token and repeat, [*batch, R] each.

    embed(z) is computed once per token and shared by its repeats.
    """
    t = draws.timesteps
    c = diffusion.at_timestep(Process().coefficients(), t)
    x0 = target.astype(jnp.float32)[..., None, :]
    x0 = jnp.broadcast_to(x0, draws.noise.shape)
    xt = diffusion.diffuse(c, x0, draws.noise)
    y = self.net.embed_time(t) + self.net.embed_z(z)[..., None, :]
    output = self.net.denoise(xt, self.net.modulation()(y))
    return diffusion.loss_terms(c, t, x0, draws.noise, output)

  @checked(
    calls.of_sample,
    key=check_key,
    z=calls.vectors,
    settings=calls.reverse_settings,
    noise=calls.noise,
    temperature=calls.temperature,
    guidance=calls.guidance,
  )
  def sample(
    self,
    z: Conditions,
    settings: ReverseSettings | Walk | None = None,
    *,
    key: Key[Array, "*any"] | None = None,
    noise: Noise | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    guidance: Guidance | None = None,
  ) -> TokenRows:
    """Draws one token per z.

    Args:
      z: [*batch, W].
      settings: steps, start and kind of the reverse process, also as arrays.
      key: one key, or one per token ([*batch]); or `noise` instead.
      noise: keyed or recorded noise.
      temperature: >= 0, scales the noise of every step.
      guidance: (z of the unconditional pass [*batch, W], scale): eps =
        eps_uncond + scale · (eps_cond - eps_uncond) from the same x, variance
        from the conditional pass. None for a single pass.

    Returns:
      [*batch, D] float32.

    Raises:
      ValueError: one of them, or the parameters, of another type or shape;
        NaN; no key and no noise.
    """
    walk = (settings or ReverseSettings()).walk()
    if noise is None:
      noise = KeyedNoise(keys_of_rows(key, z.shape[:-1]))
    z_embedded = [self.net.embed_z(z)]
    if guidance is not None:
      z_embedded.append(self.net.embed_z(guidance[0]))
    # The passes share an inner axis: the batch stays the leading one, so a
    # batch that is split over devices is never gathered.
    z_embedded = jnp.stack(z_embedded, axis=-2)
    product = self.net.modulation()

    def modulations(time_embedding):
      """Of several timesteps at once, [C, width]; the batch comes second."""
      shape = (-1, *(1,) * (z_embedded.ndim - 1), time_embedding.shape[-1])
      return product(z_embedded + time_embedding.reshape(shape), before=1)

    timesteps = jnp.asarray(walk.timesteps)
    rows = math.prod(z_embedded.shape[:-1])
    return reverse.sample(
      self._denoise(guidance and guidance[1]),
      noise,
      walk,
      token_dim=self.config.token_dim,
      temperature=temperature,
      per_step=self.net.embed_time(timesteps),
      prepare=modulations,
      steps_at_once=steps_at_once(len(timesteps), rows),
    )

  def _denoise(self, scale):
    """(x, modulations, index) to (eps, v); a scale of None guides nothing."""
    net, variables = self.net.unbind()

    def denoise(x, modulations, index):
      """Conditional and unconditional pass in one call, sharing x."""
      x = x[..., None, :]
      output = net.apply(variables, x, modulations, index, method="denoise")
      eps, v = diffusion.split_output(output)
      with_label = eps[..., 0, :]
      if scale is None:
        return with_label, v[..., 0, :]
      without = eps[..., 1, :]
      return without + scale * (with_label - without), v[..., 0, :]

    return denoise


def steps_at_once(num_steps: int, rows: int) -> int:
  """Timesteps whose modulations are computed by one product: a divisor.

  Few rows would read the weights of that product, 62 % of the network's, again
  at every step and do little with them; `ROWS_AT_ONCE` keep a chip busy. On
  CPUs one step's modulations stay in the cache until they are used.
  """
  if platform() == "cpu":
    return 1
  divisors = [n for n in range(1, num_steps + 1) if num_steps % n == 0]
  return max([n for n in divisors if n * rows <= ROWS_AT_ONCE], default=1)
