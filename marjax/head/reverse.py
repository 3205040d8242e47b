"""The reverse process: from noise to a token, a `lax.scan` over timesteps.

For t = T-1 .. 0 of the visited timesteps, with eps, v = denoise(x, t):

1. guidance, if any, has already mixed eps (see `marjax.head.diffusion`);
2. ancestral: x ← mean + [t > 0] · exp(½ log-variance) · noise · temperature,
   with the learned variance on the respaced betas (arXiv 2006.11239 and
   2102.09672);
3. DDIM: x ← √abar' · x̂₀ + √(1 - abar' - σ²) · eps + [t > 0] · σ · noise ·
   temperature, σ = eta · √((1-abar')/(1-abar)) · √(1 - abar/abar')
   (arXiv 2010.02502, equations 12 and 16);
4. DPM-Solver++ (2M): DDIM's step with eta = 0 to x̂₀ + w · (x̂₀ - x̂₀ of the step
   before), w = h / 2h₋₁, h the change of log √(abar/(1-abar)); 0 in the first
   and the last step (arXiv 2211.01095, algorithm 2). Errors fall with T², for
   as many evaluations.

x_T ~ N(0, I) is not scaled by the temperature, and x̂₀ is never clipped.
DIFFERS: ddim-temperature. The published program's DDIM ignores temperature.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from marjax import schema
from marjax.arrays import Leaf, TokenRows
from marjax.head import process as diffusion
from marjax.head import scan
from marjax.head.process import Coefficients, Process
from marjax.head.timesteps import NUM_TIMESTEPS, spaced
from marjax.protocols import Noise
from marjax.schema import Range, check

Denoise = Callable[
  [TokenRows, Any, Int[Array, ""]], tuple[TokenRows, TokenRows]
]

Steps = Annotated[int, Range(2, NUM_TIMESTEPS)]
"""Of a reverse process, which needs a first and a last one."""


@schema.config
class ReverseSettings:
  """How to walk from noise to a token.

  Attributes:
    num_steps: T >= 2 network evaluations per token.
    start: original index (1 .. 999) of the first one; 999 as published.
    spacing: "even" (published), "stride" or "quadratic", see
      `marjax.head.timesteps`.
    sampler: "ancestral", "ddim" or "dpm-solver++"; the last, and "ddim" with
      ddim_eta 0, have no noise of their own, so no temperature.
    ddim_eta: 0 (deterministic) .. 1; only for "ddim".
    final_num_steps: those of the last AR step's tokens; from the first step to
      the last the number changes evenly, in a few stages; None for the same
      number at every step.
  """

  num_steps: Steps = 100
  start: Annotated[int, Range(1, NUM_TIMESTEPS - 1)] = NUM_TIMESTEPS - 1
  spacing: Literal["even", "stride", "quadratic"] = "even"
  sampler: Literal["ancestral", "ddim", "dpm-solver++"] = "ancestral"
  ddim_eta: Annotated[float, Range(0, 1)] = 0.0
  final_num_steps: Steps | None = None
  kind: Literal["diffusion"] = "diffusion"

  # A tenth of the published evaluations. Measured on the digits model only
  # (`experiments.tradeoff`): far better than 100 steps from 999, a little worse
  # than 100 from 950. Published weights were scored with a start at 999.
  PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
    "quick": {
      "num_steps": 10,
      "start": 950,
      "spacing": "even",
      "sampler": "ancestral",
    }
  }

  def __post_init__(self):
    spaced(self.num_steps, self.start, self.spacing)
    final = self.final_num_steps
    check(
      final is None or final <= self.start + 1,
      f"final_num_steps is {final}; expected 2 to {self.start + 1} for a"
      f" reverse process that starts at {self.start}.",
    )

  @property
  def has_temperature(self) -> bool:
    """Whether the steps add noise that a temperature can scale."""
    is_random_ddim = self.sampler == "ddim" and self.ddim_eta > 0
    return self.sampler == "ancestral" or is_random_ddim

  def process(self) -> Process:
    """The diffusion over the visited timesteps."""
    return Process(spaced(self.num_steps, self.start, self.spacing))

  def walk(self) -> "Walk":
    """The same as arrays."""
    process = self.process()
    return Walk(
      np.asarray(process.timesteps, np.int32),
      process.coefficients(),
      np.asarray(self.ddim_eta, np.float32),
      process.extrapolation().astype(np.float32),
      self.sampler,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Walk:
  """`ReverseSettings` as arrays: other numbers need no other program.

  Attributes:
    timesteps: int32 [T], original indices, ascending. coefficients: [T] each.
    ddim_eta: float32 []. extrapolation: float32 [T], w of DPM-Solver++.
    sampler: is fixed when a program is traced.
  """

  timesteps: Leaf
  coefficients: Leaf
  ddim_eta: Leaf
  extrapolation: Leaf
  sampler: str = field(metadata={"static": True})

  def walk(self) -> "Walk":
    """Itself."""
    return self

  @property
  def num_steps(self) -> int:
    """T."""
    return len(self.timesteps)


def sample(
  denoise: Denoise,
  noise: Noise,
  settings: ReverseSettings | Walk,
  *,
  token_dim: int,
  temperature: float | Float[Array, ""] = 1.0,
  per_step: Any = None,
  prepare: Callable[[Any], Any] | None = None,
  steps_at_once: int = 1,
) -> TokenRows:
  """Draws one token per row.

  Args:
    denoise: (x [*batch, D], entries, index) to (eps, v), each [*batch, D];
      entries[index] is the step's, which it takes as it can do best.
    noise: keyed or recorded draws.
    settings: number, spacing and kind of steps, also as arrays.
    token_dim: D.
    temperature: scales the noise of every step, not the initial noise.
    per_step: pytree with leading axis T, ascending in time, of which `denoise`
      gets C entries at a time, e.g. time embeddings; None for the original
      timesteps themselves.
    prepare: entries [C, ...] to [C, ...], what `denoise` gets instead.
    steps_at_once: C, a divisor of T.

  Returns:
    x_0, [*batch, D] float32.
  """
  walk = settings.walk()

  def step(carry, entries, place, scanned, drawn):
    """x holds the tokens at the noise level of the scanned timestep."""
    x, before = carry
    index, c, w = scanned
    eps, v = denoise(x, entries, place)
    if walk.sampler == "dpm-solver++":
      x0 = diffusion.predict_x0(c, x, eps)
      return toward(c, x, x0 + w * (x0 - before)), x0
    if walk.sampler == "ancestral":
      mean, spread = ancestral_step(c, x, eps, v)
    else:
      mean, spread = ddim_step(c, x, eps, jnp.asarray(walk.ddim_eta))
    amount = jnp.where(index > 0, temperature, 0.0) * spread
    return mean + amount * drawn, None

  x = noise.initial((token_dim,))
  return scan.evaluations(
    step,
    (x, jnp.zeros_like(x) if walk.sampler == "dpm-solver++" else None),
    (jnp.arange(walk.num_steps), walk.coefficients, walk.extrapolation),
    walk.timesteps if per_step is None else per_step,
    noise,
    (token_dim,),
    prepare=prepare,
    at_once=steps_at_once,
  )[0]


def toward(c: Coefficients, x: TokenRows, x0: TokenRows) -> TokenRows:
  """x at the noise level before, if `x0` is what it comes from."""
  eps = (x - c.sqrt_alpha_bar * x0) / c.sqrt_one_minus_alpha_bar
  return jnp.sqrt(c.alpha_bar_prev) * x0 + jnp.sqrt(1 - c.alpha_bar_prev) * eps


def ancestral_step(
  c: Coefficients, x: TokenRows, eps: TokenRows, v: TokenRows
) -> tuple[TokenRows, TokenRows]:
  """Mean and standard deviation of p(x_{t-1} | x_t)."""
  model = diffusion.model_posterior(c, x, eps, v)
  return model.mean, jnp.exp(0.5 * model.log_variance)


def ddim_step(
  c: Coefficients, x: TokenRows, eps: TokenRows, eta: float | Float[Array, ""]
) -> tuple[TokenRows, Float[Array, "..."]]:
  """Mean and standard deviation of the DDIM step."""
  x0 = diffusion.predict_x0(c, x, eps)
  sigma = (
    eta
    * jnp.sqrt((1 - c.alpha_bar_prev) / (1 - c.alpha_bar))
    * jnp.sqrt(1 - c.alpha_bar / c.alpha_bar_prev)
  )
  direction = jnp.sqrt(1 - c.alpha_bar_prev - jnp.square(sigma))
  return x0 * jnp.sqrt(c.alpha_bar_prev) + direction * eps, sigma
