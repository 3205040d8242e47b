"""How many tokens are revealed at each autoregressive step (spec: cosine).

After step n of S (from 0), with L tokens,

    m_n = max(1, min(m_{n-1} - 1, floor(L · cos(π/2 · (n + 1) / S))))

tokens are still unknown, and none after the last step. The counts depend on
the step only, never on the image, so every shape is known before tracing.
"""

import math


def num_unknown_after(num_tokens: int, num_ar_steps: int) -> tuple[int, ...]:
  """m_n of the formula for every step; the last entry is 1, not 0.

  Raises:
    ValueError: fewer than one step, or more steps than tokens.
  """
  if not 1 <= num_ar_steps <= num_tokens:
    raise ValueError(
      f"num_ar_steps is {num_ar_steps}; expected 1 to {num_tokens}, because"
      f" each step reveals at least one of the image's {num_tokens} tokens."
    )
  counts, previous = [], num_tokens
  for n in range(num_ar_steps):
    share = math.cos(math.pi / 2 * (n + 1) / num_ar_steps)
    previous = max(1, min(previous - 1, math.floor(num_tokens * share)))
    counts.append(previous)
  return tuple(counts)


def num_known_before(num_tokens: int, num_ar_steps: int) -> tuple[int, ...]:
  """Known tokens when each step starts, then num_tokens: S + 1 entries."""
  unknown = num_unknown_after(num_tokens, num_ar_steps)[:-1]
  return (0, *(num_tokens - count for count in unknown), num_tokens)
