"""Targets of mean 0 and deviation 1, as heads expect them.

A `Standard` is fitted once, to the targets of training, and belongs to the
parameters: it is a tuple of two arrays, so whatever saves those saves it too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from marjax.arrays import checked, numbers
from marjax.head import calls
from marjax.schema import check


def _of_fit(given: dict[str, Any]) -> None:
  """Weights are of the targets, and some of them count."""
  targets, weights = given["targets"], given["weights"]
  numbers(targets, "targets", calls.TARGETS)
  check(
    targets.ndim >= 2 and targets.size > 0,
    f"targets has shape {targets.shape}; expected [*batch, D], all targets of"
    " training at once.",
  )
  if weights is not None:
    calls.check_shape(weights, "weights", targets.shape[:-1])
    check(
      bool(np.all(np.asarray(weights) >= 0) and np.any(weights)),
      "weights are negative or all 0; expected 0 or more, for some targets"
      " more.",
    )


class Standard(NamedTuple):
  """What targets are shifted and divided by, float32 [D] each.

  Attributes:
    mean: of the targets. std: their deviation; 1 where they are all equal.
  """

  mean: jax.Array
  std: jax.Array

  def standardised(self, x: Any) -> Any:
    """What a head is trained on, (x - mean) / std, of x [*batch, D]."""
    return (x - self.mean) / self.std

  def restored(self, y: Any) -> Any:
    """Targets of what a head draws, y · std + mean, of y [*batch, D]."""
    return y * self.std + self.mean

  @property
  def log_volume(self) -> Float[Array, ""]:
    """log p(y) - log p(x), in nats: the sum of log std."""
    return jnp.sum(jnp.log(self.std))


@checked(_of_fit, targets=calls.tokens, weights=calls.token_weights)
def fit_standard(targets: Any, weights: Any = None) -> Standard:
  """The `Standard` of targets, computed on the host in float64.

  Args:
    targets: [*batch, D], all those of training. weights: [*batch], 0 leaves one
      out, such as padding; None for all 1.

  Raises:
    ValueError: one of them of another type or shape; NaN; nothing counts.
  """
  rows = np.asarray(targets, np.float64).reshape(-1, targets.shape[-1])
  share = None if weights is None else np.asarray(weights, np.float64).ravel()
  mean = np.average(rows, axis=0, weights=share)
  std = np.sqrt(np.average(np.square(rows - mean), axis=0, weights=share))
  # Of equal numbers rounding alone is left.
  is_flat = std <= 1e-7 * np.abs(mean)
  return Standard(
    jnp.asarray(mean, jnp.float32),
    jnp.asarray(np.where(is_flat, 1.0, std), jnp.float32),
  )
