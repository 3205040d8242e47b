"""The flow-matching head: a straight path from noise to a token.

    x_t = (1 - t) · eps + t · x        t: 0 noise .. 1 data
    loss    mean of (v(x_t, t, z) - (x - eps))², t = sigmoid(normal)
    sample  from eps at t = 0 to t = 1 by num_steps evaluations of v

1. "euler": x += v · dt. "midpoint": a second v, halfway, gives dx.
2. "euler-maruyama": up to t = 0.96 x += (v + (t·v - x)) · dt + √(2 (1-t) dt) ·
   noise, where t·v - x is (1 - t) times the score; then one step of Euler. It
   keeps the data's variance at few steps, where Euler loses some of it.

Temperature scales all noise. Source: arXiv 2209.03003 and 2403.03206; spec 4.1.
"""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from marjax import keys, schema
from marjax.arrays import Conditions, TokenRows
from marjax.head import calls, likelihood
from marjax.head.mlp import MLPConfig, MLPHead, Passes, guided
from marjax.head.noise import LossDraws
from marjax.head.reverse import Steps
from marjax.protocols import Noise
from marjax.schema import Range, Share, check

LAST = 0.96  # Beyond, the score is of the order 1 / (1 - t).


class Walk(NamedTuple):
  """Of evaluations [T], by how many are left: t, how far x goes from where its
  step began, and whether there is noise, the step ends, guidance applies."""

  time: Any
  length: Any
  is_noisy: Any
  is_end: Any
  is_guided: Any


@schema.config
class FlowSettings:
  """How to walk from noise to a token.

  Attributes:
    num_steps: evaluations of the network per token.
    sampler: "euler-maruyama", "euler" or "midpoint", of an even number.
    shift: s of t ← s·t / (1 + (s-1)·t); below 1 more steps are near noise.
    guidance_start: guidance applies to times from there on.
    final_num_steps: those of the last AR step's tokens, see `ReverseSettings`.
  """

  num_steps: Steps = 25
  sampler: Literal["euler-maruyama", "euler", "midpoint"] = "euler-maruyama"
  shift: Annotated[float, Range(0, 100, is_open=True)] = 1.0
  guidance_start: Share = 0.0
  final_num_steps: Steps | None = None
  kind: Literal["flow"] = "flow"
  has_temperature: ClassVar[bool] = True
  PRESETS: ClassVar[dict] = {"quick": {"num_steps": 10}}

  def __post_init__(self):
    check(
      self.sampler != "midpoint"
      or (self.num_steps % 2 == 0 and self.final_num_steps is None),
      f"num_steps is {self.num_steps}; expected an even number with sampler"
      ' "midpoint", of two evaluations a step, and no final_num_steps.',
    )

  def walk(self) -> Walk:
    """The same as arrays."""
    n, parts = self.num_steps, 2 if self.sampler == "midpoint" else 1
    is_noisy = self.sampler == "euler-maruyama"
    ends = np.linspace(0.0, 1.0, n // parts + 1)
    ends = np.append(np.linspace(0.0, LAST, n), 1.0) if is_noisy else ends
    ends = self.shift * ends / (1 + (self.shift - 1) * ends)
    start, length = np.repeat([ends[:-1], np.diff(ends)], parts, axis=1)
    part = np.arange(n) % parts
    time = start + part * length / 2
    noisy = is_noisy & (np.arange(n) < n - 1)
    rows = [time, length * (1 + part) / parts, noisy, part == parts - 1]
    return Walk(*np.float32([*rows, time >= self.guidance_start])[:, ::-1])


@schema.config
class FlowHeadConfig(MLPConfig):
  """Shape of the head, see `MLPConfig`; R times are drawn per token.

  Attributes:
    time_scale: of t's sinusoid; 1 keeps ∂v/∂t small, as a flow map needs.
    time_mean, time_std: of the normal whose sigmoid t is; a larger mean trains
      more on fine detail.
  """

  time_scale: Annotated[float, Range(0, 1e4, is_open=True)] = 1000.0
  time_mean: Annotated[float, Range(-10, 10)] = 0.0
  time_std: Annotated[float, Range(0, 10, is_open=True)] = 1.0
  kind: Literal["flow"] = "flow"
  Settings: ClassVar[type] = FlowSettings

  def build(self) -> "FlowHead":
    """The linen module of this shape."""
    return FlowHead(self)

  def draw_times(self, row_keys: Key[Array, "*any"]) -> Float[Array, "*any R"]:
    """Logit-normal times for each row."""
    normal = keys.normal(row_keys, (self.repeats,))
    return jax.nn.sigmoid(self.time_mean + self.time_std * normal)


class FlowHead(MLPHead):
  """p(token | z) by flow matching; see the module docstring."""

  config: FlowHeadConfig

  def setup(self):
    c = self.config
    self.net = c.net(out_features=c.token_dim, time_scale=c.time_scale)

  def loss_terms(
    self, z: Conditions, target: TokenRows, draws: LossDraws
  ) -> dict[str, Float[Array, "*batch R"]]:
    """Squared error of the velocity per token and repeat, "mse"."""
    t, x = draws.timesteps[..., None], target[..., None, :]
    y = self.net.embed_time(t[..., 0]) + self.net.embed_z(z)[..., None, :]
    xt = (1 - t) * draws.noise + t * x
    v = self.net.denoise(xt, self.net.modulation()(y))
    return {"mse": jnp.mean(jnp.square(v - (x - draws.noise)), axis=-1)}

  def walk_through(
    self, walk: Walk, noise: Noise, temperature, both: Passes, scale
  ) -> TokenRows:
    """Tokens [*batch, D] at t = 1."""

    def velocity(x, modulations, index, now):
      factor = None if scale is None else 1 + now.is_guided * (scale - 1)
      return guided(both.evaluate(x, modulations, index), factor)

    start = temperature * noise.initial(self.config.noise_shape)
    step = integrator(velocity, temperature)
    return self.evaluations(step, (start,) * 2, walk, walk.time, noise, both)[1]

  @calls.likelihood
  def log_likelihood(
    self, z: Conditions, target: TokenRows, num_steps: int = 32
  ) -> Float[Array, "*batch"]:
    """log p(target | z) without guidance, [*batch] float32, in nats.

    That of the tokens which the head draws at temperature 1 by "euler" or
    "midpoint" with many steps. The trace of ∂v/∂x is exact, so the cost is that
    of 4 · num_steps evaluations of v and D gradients of each.

    Args:
      z: [*batch, W]. target: [*batch, D]; where targets were standardised,
        subtract `Standard.log_volume` from the result.
      num_steps: of order 4; twice as many leave a sixteenth of the error.

    Raises:
      ValueError: one of them, or the parameters, of another type or shape; NaN.
    """
    net, variables = self.net.unbind()
    z = z[..., None, :]  # The network takes batches, also of a single z.

    def velocity(x, t):
      return net.apply(variables, x, jnp.full(z.shape[:-1], t), z)

    x = target[..., None, :]
    return likelihood.log_likelihood(velocity, x, num_steps)[..., 0]


def integrator(velocity, temperature=1.0):
  """A step for `scan.evaluations`; velocity: (x, entries, index, now) to v."""

  def step(carry, entries, index, now, drawn):
    """carry is x where the step began, and where v is evaluated."""
    begin, x = carry
    v = velocity(x, entries, index, now)
    spread = temperature * jnp.sqrt(2 * (1 - now.time) * now.length)
    noisy = now.is_noisy * ((now.time * v - x) * now.length + spread * drawn)
    x = begin + v * now.length + noisy
    return jnp.where(now.is_end > 0, x, begin), x

  return step
