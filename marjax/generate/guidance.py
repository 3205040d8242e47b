"""Classifier-free guidance scale of each autoregressive step (spec section 5).

linear    s_n = 1 + (s - 1) · (L - m_n) / L, with the m_n unknown after step n
constant  s_n = s

The schedule's m_n is 1, not 0, after the last step, so "linear" never starts
at 1 and never reaches s.
"""

import numpy as np

from marjax.generate.plan import Plan


def is_guided(scale: float) -> bool:
  """Whether an unconditional pass is needed at all."""
  return scale != 1.0


def scales(plan: Plan, scale: float, schedule: str) -> np.ndarray:
  """Guidance scale of every step, float32 [S]."""
  if schedule == "constant":
    return np.full(plan.num_ar_steps, scale, np.float32)
  revealed = plan.num_tokens - np.asarray(plan.unknown_after, np.float64)
  return np.float32(1.0 + (scale - 1.0) * revealed / plan.num_tokens)
