"""The Gaussian diffusion of one token: forward process, posterior, loss terms.

1. abar(u) = cos²((u + 0.008)/1.008 · π/2) gives 1000 betas, capped at 0.999.
2. A subset of timesteps keeps its abar; its betas are recomputed from them.
3. q(x_t | x_0), the posterior q(x_{t-1} | x_t, x_0), and the model's Gaussian
   with learned-range variance follow from the tables.
4. Loss = mean((eps - eps_hat)²) + variational bound in bits per dimension.

Tables are float64 on the host, arithmetic is float32 on the device.
Source: arXiv 2006.11239 and 2102.09672; spec section 4.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from marjax.arrays import Timesteps, TokenRows
from marjax.head.timesteps import NUM_TIMESTEPS


class Coefficients(NamedTuple):
  """Float32 numbers of each visited timestep, one array entry per timestep."""

  sqrt_alpha_bar: Array
  sqrt_one_minus_alpha_bar: Array
  sqrt_recip_alpha_bar: Array
  sqrt_recip_minus_one: Array
  posterior_mean_x0: Array
  posterior_mean_xt: Array
  min_log_variance: Array
  max_log_variance: Array
  alpha_bar: Array
  alpha_bar_prev: Array


@dataclass(frozen=True)
class Process:
  """A diffusion over a subset of the 1000 timesteps, hashable.

  Attributes:
    timesteps: original indices kept, ascending; all 1000 for training.
  """

  timesteps: tuple[int, ...] = tuple(range(NUM_TIMESTEPS))

  def tables(self) -> dict[str, np.ndarray]:
    """All tables as float64, keyed as in `Coefficients` plus `beta`."""
    return _tables(self.timesteps)

  def coefficients(self) -> Coefficients:
    """The float32 tables, [T] each."""
    tables = self.tables()
    return Coefficients(
      *(np.float32(tables[name]) for name in Coefficients._fields)
    )

  def extrapolation(self) -> np.ndarray:
    """w of DPM-Solver++ [T], float64; 0 in the first and the last step."""
    alpha_bar = self.tables()["alpha_bar"]
    steps = -np.diff(np.log(alpha_bar / (1 - alpha_bar)) / 2)
    return np.concatenate([[0.0], steps[:-1] / steps[1:] / 2, [0.0]])


@functools.cache
def cosine_alpha_bar() -> np.ndarray:
  """abar of the 1000 training timesteps, float64."""

  def alpha_bar(u):
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

  steps = NUM_TIMESTEPS
  betas = [
    min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999)
    for i in range(steps)
  ]
  return np.cumprod(1 - np.array(betas))


@functools.lru_cache(maxsize=32)
def _tables(timesteps: tuple[int, ...]) -> dict[str, np.ndarray]:
  kept = cosine_alpha_bar()[list(timesteps)]
  beta = 1 - kept / np.append(1.0, kept[:-1])
  alpha_bar = np.cumprod(1 - beta)
  prev = np.append(1.0, alpha_bar[:-1])
  variance = beta * (1 - prev) / (1 - alpha_bar)
  return {
    "beta": beta,
    "alpha_bar": alpha_bar,
    "alpha_bar_prev": prev,
    "sqrt_alpha_bar": np.sqrt(alpha_bar),
    "sqrt_one_minus_alpha_bar": np.sqrt(1 - alpha_bar),
    "sqrt_recip_alpha_bar": np.sqrt(1 / alpha_bar),
    "sqrt_recip_minus_one": np.sqrt(1 / alpha_bar - 1),
    "posterior_variance": variance,
    "posterior_mean_x0": beta * np.sqrt(prev) / (1 - alpha_bar),
    "posterior_mean_xt": (1 - prev) * np.sqrt(1 - beta) / (1 - alpha_bar),
    # The posterior variance is 0 at the first index: use the second's.
    "min_log_variance": np.log(np.append(variance[1], variance[1:])),
    "max_log_variance": np.log(beta),
  }


class Gaussian(NamedTuple):
  """A diagonal Gaussian; mean and log-variance have equal shapes."""

  mean: Array
  log_variance: Array


def at_timestep(coefficients: Coefficients, t: Timesteps) -> Coefficients:
  """Rows of the tables, with a last axis of 1 to broadcast over D."""
  return Coefficients(*(jnp.asarray(c)[t][..., None] for c in coefficients))


def diffuse(c: Coefficients, x0: TokenRows, noise: TokenRows) -> TokenRows:
  """A draw of q(x_t | x_0)."""
  return c.sqrt_alpha_bar * x0 + c.sqrt_one_minus_alpha_bar * noise


def predict_x0(c: Coefficients, xt: TokenRows, eps: TokenRows) -> TokenRows:
  """x_0 implied by a prediction of the noise; never clipped."""
  return c.sqrt_recip_alpha_bar * xt - c.sqrt_recip_minus_one * eps


def posterior(c: Coefficients, x0: TokenRows, xt: TokenRows) -> Gaussian:
  """q(x_{t-1} | x_t, x_0)."""
  mean = c.posterior_mean_x0 * x0 + c.posterior_mean_xt * xt
  return Gaussian(mean, jnp.broadcast_to(c.min_log_variance, mean.shape))


def model_posterior(
  c: Coefficients, xt: TokenRows, eps: TokenRows, v: TokenRows
) -> Gaussian:
  """p(x_{t-1} | x_t): v in [-1, 1] picks the log-variance in its range."""
  fraction = (v + 1) / 2
  log_variance = (
    fraction * c.max_log_variance + (1 - fraction) * c.min_log_variance
  )
  mean = posterior(c, predict_x0(c, xt, eps), xt).mean
  return Gaussian(mean, log_variance)


def split_output(output: Float[Array, "*batch D2"]):
  """The network's 2·D outputs as (eps, v)."""
  return jnp.split(output, 2, axis=-1)


class LossTerms(NamedTuple):
  """Per row: squared error of eps, and the bound in bits per dimension."""

  mse: Array
  vlb: Array


def loss_terms(
  c: Coefficients,
  t: Timesteps,
  x0: TokenRows,
  noise: TokenRows,
  output: Float[Array, "*batch D2"],
) -> LossTerms:
  """Both terms of the Diffusion Loss, each [*batch], unscaled.

  Args:
    c: coefficients at t (see `at_timestep`).
    t: original timestep of each row; the bound differs at t = 0.
    x0: clean tokens. noise: the noise that made x_t. output: (eps, v) of the
      network at x_t; eps gets no gradient from the bound.
  """
  eps, v = split_output(output)
  xt = diffuse(c, x0, noise)
  truth = posterior(c, x0, xt)
  model = model_posterior(c, xt, jax.lax.stop_gradient(eps), v)
  kl = jnp.mean(kl_divergence(truth, model), axis=-1)
  nll = jnp.mean(-discretised_log_likelihood(x0, model), axis=-1)
  mse = jnp.mean(jnp.square(noise - eps), axis=-1)
  return LossTerms(mse, jnp.where(t == 0, nll, kl) / math.log(2.0))


def kl_divergence(p: Gaussian, q: Gaussian) -> TokenRows:
  """KL(p ‖ q) in nats, elementwise."""
  return 0.5 * (
    -1.0
    + q.log_variance
    - p.log_variance
    + jnp.exp(p.log_variance - q.log_variance)
    + jnp.square(p.mean - q.mean) * jnp.exp(-q.log_variance)
  )


def discretised_log_likelihood(x: TokenRows, model: Gaussian) -> TokenRows:
  """log of the model's mass in a bin of half-width 1/255 around x, in nats."""
  inverse_std = jnp.exp(-0.5 * model.log_variance)
  centred = x - model.mean
  upper = _approximate_cdf(inverse_std * (centred + 1.0 / 255.0))
  lower = _approximate_cdf(inverse_std * (centred - 1.0 / 255.0))
  mass = jnp.where(
    x < -0.999, upper, jnp.where(x > 0.999, 1.0 - lower, upper - lower)
  )
  return jnp.log(jnp.maximum(mass, 1e-12))


def _approximate_cdf(x):
  inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
  return 0.5 * (1.0 + jnp.tanh(inner))
