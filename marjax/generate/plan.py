"""The plan of a generation: every shape, known before anything is traced.

1. The schedule says how many tokens are known before each step.
2. Steps are cut into segments; within one, the encoder is padded to its longest
   prefix and the head to its widest step, so one `lax.scan` serves it.
3. The cuts minimise the padded work over all ways to make at most `num_buckets`
   segments (dynamic programming over the steps).
4. Where tokens are given from the start, an image may know more than the step
   says, up to what is known after it, so each segment's prefix is longer. The
   plan does not depend on how many are given: one serves every mask.

    256 tokens, 64 steps, 4 segments:

    steps      0 ...... 19 | 20 ..... 35 | 36 ...... 49 | 50 ...... 63
    encoder    64 + 28     | 64 + 89     | 64 + 164     | 64 + 250
    head       3           | 5           | 6            | 7
"""

import itertools
from dataclasses import dataclass

from marjax.tokens.schedule import num_known_before, num_unknown_after


@dataclass(frozen=True)
class Segment:
  """Consecutive autoregressive steps that share their static shapes.

  Attributes:
    first_step: index of the first step.
    num_known: known tokens when each step starts.
    num_revealed: tokens each step reveals.
    is_edit: whether some tokens are given from the start.
  """

  first_step: int
  num_known: tuple[int, ...]
  num_revealed: tuple[int, ...]
  is_edit: bool = False

  @property
  def end(self) -> int:
    """Index of the step after the last."""
    return self.first_step + len(self.num_known)

  @property
  def known_after(self) -> int:
    """Known tokens after the last step."""
    return self.num_known[-1] + self.num_revealed[-1]

  @property
  def encoder_length(self) -> int:
    """Token slots of the encoder: the longest known prefix."""
    return self.known_after if self.is_edit else self.num_known[-1]

  @property
  def head_width(self) -> int:
    """Tokens the head predicts at each step: the widest step."""
    return max(self.num_revealed)


@dataclass(frozen=True)
class Plan:
  """All segments of a generation; `print(plan)` shows them.

  Attributes:
    num_tokens: L. num_ar_steps: S.
    segments: in order, covering every step once.
    unknown_after: the schedule's count that guidance uses, per step.
  """

  num_tokens: int
  num_ar_steps: int
  segments: tuple[Segment, ...]
  unknown_after: tuple[int, ...]

  @property
  def widest(self) -> int:
    """Largest head width, by which the carry is padded."""
    return max(segment.head_width for segment in self.segments)

  def first_segment(self, num_given: int) -> int:
    """The first segment that reveals anything, with that many tokens given."""
    return next(
      index
      for index, segment in enumerate(self.segments)
      if segment.known_after > num_given
    )

  @property
  def known_after(self) -> tuple[int, ...]:
    """Known tokens after each step, S integers."""
    before = [n for segment in self.segments for n in segment.num_known]
    return (*before[1:], self.num_tokens)

  def __str__(self) -> str:
    lines = [
      f"{self.num_tokens} tokens in {self.num_ar_steps} steps,"
      f" {len(self.segments)} segments",
      f"{'steps':>11}  {'encoder tokens':>14}  {'head tokens':>11}",
    ]
    for segment in self.segments:
      lines.append(
        f"{segment.first_step:>4} .. {segment.end - 1:<4}"
        f"  {segment.encoder_length:>13}  {segment.head_width:>11}"
      )
    return "\n".join(lines)


def make_plan(
  num_tokens: int,
  num_ar_steps: int,
  num_buckets: int = 8,
  num_buffer: int = 64,
  head_share: float = 1.0,
  is_edit: bool = False,
) -> Plan:
  """The cheapest plan of at most num_buckets segments.

  Args:
    num_tokens: L. num_ar_steps: S, at most L.
    num_buckets: segments allowed.
    num_buffer: buffer slots of the encoder, part of its cost.
    head_share: cost of one head token relative to one encoder slot.
    is_edit: whether images come with tokens that are given.

  Raises:
    ValueError: more steps than tokens, or fewer than one bucket.
  """
  if num_buckets < 1:
    raise ValueError(f"num_buckets is {num_buckets}; expected 1 or more.")
  known = num_known_before(num_tokens, num_ar_steps)
  revealed = tuple(b - a for a, b in itertools.pairwise(known))

  def segment(first: int, end: int) -> Segment:
    return Segment(first, known[first:end], revealed[first:end], is_edit)

  def cost(first: int, end: int) -> float:
    part = segment(first, end)
    slots = num_buffer + part.encoder_length
    return (end - first) * (slots + head_share * part.head_width)

  cuts = _cheapest_cuts(num_ar_steps, min(num_buckets, num_ar_steps), cost)
  return Plan(
    num_tokens,
    num_ar_steps,
    tuple(segment(a, b) for a, b in itertools.pairwise(cuts)),
    num_unknown_after(num_tokens, num_ar_steps),
  )


def _cheapest_cuts(num_steps: int, num_parts: int, cost) -> list[int]:
  """Cut points 0 .. num_steps of the cheapest partition into <= num_parts."""
  best = {0: (0.0, [0])}
  for _ in range(num_parts):
    longer = dict(best)
    for first, (spent, cuts) in best.items():
      for end in range(first + 1, num_steps + 1):
        total = spent + cost(first, end)
        if end not in longer or total < longer[end][0]:
          longer[end] = (total, [*cuts, end])
    best = longer
  return best[num_steps][1]
