"""log p(token | z) of a flow, by the ODE that carries tokens to noise.

    dx/dt = v(x, t)                  t: 0 noise .. 1 data
    log p(x₁) = log N(x₀; 0, I) - ∫₀¹ tr ∂v/∂x dt

1. x and the integral go from t = 1 back to t = 0 by the classical Runge-Kutta
   method of order 4: a step is four evaluations of v and of its trace.
2. The trace is exact: D products of a unit vector with ∂v/∂x, all of one
   evaluation of v. They are taken backwards, since the network's norm has a
   gradient of its own and so no forward derivative. No row of a batch enters
   the others, so one unit vector serves all rows.

Source: arXiv 1806.07366, equation 8; arXiv 2011.13456, appendix D.2.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from marjax.arrays import TokenRows

Velocity = Callable[[TokenRows, Float[Array, ""]], TokenRows]


def log_likelihood(
  velocity: Velocity, x: TokenRows, num_steps: int
) -> Float[Array, "*batch"]:
  """log p of each row of x [*batch, D], [*batch] float32, in nats.

  Args:
    velocity: (x [*batch, D], t []) to v [*batch, D], row by row.
    num_steps: of four evaluations each, evenly from t = 1 to 0.
  """
  length = -1.0 / num_steps

  def step(carry, index):
    """carry is x at t, and what the trace was summed to from 1 to t."""
    t = 1 + index * length

    def slope(share, of=None):
      moved = carry if of is None else _moved(carry, of, share * length)
      return _slope(velocity, moved[0], t + share * length)

    first = slope(0.0)
    second = slope(0.5, first)
    third = slope(0.5, second)
    last = slope(1.0, third)
    mean = jax.tree.map(
      lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, last
    )
    return _moved(carry, mean, length), None

  start = x.astype(jnp.float32), jnp.zeros(x.shape[:-1])
  (noise, trace), _ = jax.lax.scan(step, start, jnp.arange(num_steps))
  square = jnp.sum(jnp.square(noise), axis=-1)
  # The trace was summed backwards: it is minus the integral already.
  return trace - 0.5 * (square + x.shape[-1] * math.log(2 * math.pi))


def _slope(velocity: Velocity, x, t):
  """v [*batch, D] and tr ∂v/∂x [*batch]."""
  v, pull = jax.vjp(lambda x: velocity(x, t), x)

  def entry(unit):
    """One number of the diagonal of every row."""
    return jnp.sum(pull(jnp.broadcast_to(unit, v.shape))[0] * unit, axis=-1)

  return v, jnp.sum(jax.vmap(entry)(jnp.eye(x.shape[-1])), axis=0)


def _moved(carry, slope, length):
  return jax.tree.map(lambda value, by: value + length * by, carry, slope)
