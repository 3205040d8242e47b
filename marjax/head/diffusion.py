"""The diffusion head: Diffusion Loss for training, a sampler for drawing.

    loss    z, target ─▶ t, noise ─▶ x_t ─▶ denoiser ─▶ mse + vlb per token
    sample  z ─▶ embed once ─▶ scan over timesteps ─▶ token

It is usable on its own: any model that gives a vector z per position can train
with `loss(z, target, key=...)` and draw with `sample(z, key=...)`.

    head = DiffusionHead(DiffusionHeadConfig(token_dim=2, width=128, depth=3))
    params = head.init(key, z, target, key=key)
    loss = head.apply(params, z, target, key=key)["loss"]
    drawn = head.apply(params, z, key=key, method="sample")

Source: arXiv 2406.11838, equations 1 and 2; spec section 4.
"""

from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from marjax import keys, schema
from marjax.arrays import Conditions, TokenRows
from marjax.head import process as diffusion
from marjax.head import reverse
from marjax.head.mlp import MLPConfig, MLPHead, Passes, guided, steps_at_once
from marjax.head.noise import LossDraws
from marjax.head.process import Process
from marjax.head.reverse import ReverseSettings, Walk
from marjax.head.timesteps import NUM_TIMESTEPS
from marjax.protocols import Noise


@schema.config
class DiffusionHeadConfig(MLPConfig):
  """Shape of the head, see `MLPConfig`; R noise levels are drawn per token."""

  kind: Literal["diffusion"] = "diffusion"
  Settings: ClassVar[type] = ReverseSettings

  def build(self) -> "DiffusionHead":
    """The linen module of this shape."""
    return DiffusionHead(self)

  def draw_times(self, row_keys: Key[Array, "*any"]) -> Int[Array, "*any R"]:
    """Uniform timesteps for each row."""
    return keys.integers(row_keys, (self.repeats,), NUM_TIMESTEPS)


class DiffusionHead(MLPHead):
  """p(token | z) by diffusion; see the module docstring.

  The loss is the sum of "mse" and "vlb". Guidance mixes eps; the variance is
  that of the conditional pass. Temperature scales the noise of every step.
  """

  config: DiffusionHeadConfig

  def loss_terms(
    self, z: Conditions, target: TokenRows, draws: LossDraws
  ) -> dict[str, Float[Array, "*batch R"]]:
    """Both terms per token and repeat.

    embed(z) is computed once per token and shared by its repeats.
    """
    t = draws.timesteps
    c = diffusion.at_timestep(Process().coefficients(), t)
    x0 = jnp.broadcast_to(target[..., None, :], draws.noise.shape)
    xt = diffusion.diffuse(c, x0, draws.noise)
    y = self.net.embed_time(t) + self.net.embed_z(z)[..., None, :]
    output = self.net.denoise(xt, self.net.modulation()(y))
    return diffusion.loss_terms(c, t, x0, draws.noise, output)._asdict()

  def walk_through(
    self, walk: Walk, noise: Noise, temperature, both: Passes, scale
  ) -> TokenRows:
    """Tokens [*batch, D] at the end of the reverse process."""

    def denoise(x, modulations, index):
      eps, v = diffusion.split_output(both.evaluate(x, modulations, index))
      return guided(eps, scale), v[..., 0, :]

    return reverse.sample(
      denoise,
      noise,
      walk,
      token_dim=self.config.token_dim,
      temperature=temperature,
      per_step=self.net.embed_time(jnp.asarray(walk.timesteps)),
      prepare=both.prepare,
      steps_at_once=steps_at_once(len(walk.timesteps), both.rows),
    )
