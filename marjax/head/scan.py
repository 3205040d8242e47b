"""The loop of a sampler: evaluations of a network, some prepared at once.

What does not depend on x, noise and whatever `prepare` makes, is computed for
several evaluations at once, by an outer scan; that changes no number.

    left    T-1 ........ T-C | ... | C-1 ........ 0
    outer   prepare C of them, draw their noise
    inner   one network evaluation each
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from marjax.layers.placed import platform
from marjax.protocols import Noise

FEW = 16
"""Evaluations that compile about as soon without a loop as with one."""


def evaluations(
  step: Callable[[PyTree, Any, Any, PyTree, Any], PyTree],
  start: PyTree,
  scanned: PyTree,
  entries: Any,
  noise: Noise,
  shape: tuple[int, ...],
  *,
  prepare: Callable[[Any], Any] | None = None,
  at_once: int = 1,
) -> PyTree:
  """What `start` becomes by T steps, T - 1 of which are left after the first.

  Args:
    step: (x, entries, place, scanned, noise [*batch, *shape]) to x; its own
      entry is entries[place], which it takes as it can do best.
    start: x before the first step.
    scanned: pytree with leading axis T, by the number of steps that are left.
    entries: the same, of which `step` gets `at_once` at a time.
    noise: keyed or recorded draws. shape: of one token.
    prepare: entries [C, ...] to [C, ...], what `step` gets instead.
    at_once: C, a divisor of T.
  """
  num_steps = jax.tree.leaves(scanned)[0].shape[0]
  # On GPUs a loop in a loop is launched piece by piece. Without the inner one a
  # step of causal L, 64 images, 10 evaluations, is one graph of kernels: with
  # one product for queries, keys and values 1.03 → 0.89 s on an H200.
  unroll = platform() == "gpu" and num_steps <= FEW

  def one(entries, x, scanned):
    """x is that before the step with so many left."""
    place, values, drawn = scanned
    return step(x, entries, place, values, drawn), None

  def several(x, scanned):
    """x is that before the first of these steps."""
    left, values, entries = scanned
    if prepare is not None:
      entries = prepare(entries)
    drawn = noise.at_steps(left, shape)
    scanned = (jnp.arange(at_once), values, drawn)
    return jax.lax.scan(
      functools.partial(one, entries), x, scanned, reverse=True, unroll=unroll
    )

  grouped = jax.tree.map(
    lambda array: jnp.reshape(array, (-1, at_once, *jnp.shape(array)[1:])),
    (jnp.arange(num_steps), scanned, entries),
  )
  with jax.named_scope("reverse"):
    return jax.lax.scan(several, start, grouped, reverse=True)[0]
