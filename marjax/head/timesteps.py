"""Diffusion timesteps: which of the 1000 a sampler visits, and their embedding.

1. "even": T indices from 0 to `start`, round-half-even(i · start/(T-1));
   start = 999 is the published spacing.
2. "stride": every (start + 1)/T-th index from 0, the linear spacing of the DDIM
   paper (arXiv 2010.02502, appendix D.2).
3. "quadratic": start · (i/(T-1))², rounded, each at least one more than the
   last; that paper's spacing for CIFAR-10. Details of little variance appear in
   the last steps, so raw pixels need more of those.
4. `embed`: a sinusoid of 256 numbers, cosine half first (spec section 4).
5. `rows_at`: rows of a table that has one for each timestep.

    start = 999, T = 5   0 ── 250 ── 500 ── 749 ── 999
    start = 950, T = 5   0 ── 238 ── 475 ── 712 ── 950     first step is milder
    quadratic            0 ─ 59 ─ 238 ──── 534 ─── 950     last steps are, too
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from marjax.arrays import Timesteps, no_gradient

NUM_TIMESTEPS = 1000
EMBEDDING_SIZE = 256


def spaced(
  num_steps: int, start: int = NUM_TIMESTEPS - 1, spacing: str = "even"
) -> tuple[int, ...]:
  """Indices the reverse process visits, ascending; see the module's figure.

  Args:
    num_steps: T, at least 2.
    start: the noisiest index allowed, T - 1 to 999.
    spacing: "even", "stride" or "quadratic".

  Raises:
    ValueError: too few or too many steps, start out of range, bad spacing.
  """
  if not 2 <= num_steps <= NUM_TIMESTEPS:
    raise ValueError(
      f"num_steps is {num_steps}; expected 2 to {NUM_TIMESTEPS}:"
      " the reverse process needs a first and a last step."
    )
  if not num_steps - 1 <= start < NUM_TIMESTEPS:
    raise ValueError(
      f"start is {start}; expected {num_steps - 1} to"
      f" {NUM_TIMESTEPS - 1} for {num_steps} diffusion steps."
    )
  if spacing == "even":
    stride = start / (num_steps - 1)
    return tuple(round(i * stride) for i in range(num_steps))
  if spacing == "stride":
    stride = (start + 1) // num_steps
    return tuple(i * stride for i in range(num_steps))
  if spacing == "quadratic":
    share = (np.arange(num_steps) / (num_steps - 1)) ** 2
    beyond = np.rint(start * share).astype(int) - np.arange(num_steps)
    visited = np.maximum.accumulate(beyond) + np.arange(num_steps)
    return tuple(visited.tolist())
  raise ValueError(
    f"spacing is {spacing!r}; expected 'even', 'stride' or 'quadratic'."
  )


def embed(
  timesteps: Timesteps | Float[Array, "*batch"],
) -> Float[Array, "*batch 256"]:
  """Sinusoid of the original 0 .. 999 indices, float32, cosine half first."""
  half = EMBEDDING_SIZE // 2
  exponent = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32)
  frequencies = np.exp(exponent / np.float32(half), dtype=np.float32)
  angles = timesteps[..., None].astype(jnp.float32) * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@jax.custom_vjp
def rows_at(table, timesteps):
  """Rows of a float32 table [1000, W], to [*batch, W].

  The gradient is a product with ones and zeros, so always the same number:
  adding row after row would take any order on a GPU.
  """
  return jnp.take(table, timesteps, axis=0)


def _forward(table, timesteps):
  return rows_at(table, timesteps), timesteps


def _backward(timesteps, gradient):
  flat = timesteps.reshape(-1)
  is_row = jnp.arange(NUM_TIMESTEPS)[:, None] == flat
  rows = gradient.reshape(flat.size, -1)
  to_table = jnp.dot(is_row.astype(gradient.dtype), rows)
  return to_table, no_gradient(timesteps)


rows_at.defvjp(_forward, _backward)
