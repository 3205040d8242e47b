"""The state of a run: one plain pytree.

Randomness is not part of it: every draw is addressed by seed, step and image
id, so a run resumes from (state, step) alone.
"""

from dataclasses import dataclass

import jax

from marjax.arrays import Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
  """What a training step maps to its successor.

  Attributes:
    step: int32 scalar, optimizer steps done.
    params: float32 parameters.
    ema_params: their exponential moving average, used for evaluation.
    opt_state: of the optax optimizer.
  """

  step: Leaf
  params: Leaf
  ema_params: Leaf
  opt_state: Leaf
