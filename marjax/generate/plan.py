"""The plan of a generation: every shape, known before anything is traced.

1. The schedule says how many tokens are known before each step.
2. Steps are cut into segments; within one, the encoder is padded to its longest
   prefix and the head to its widest step, so one loop serves it.
3. The cuts minimise the padded work over all ways to make at most `num_buckets`
   segments (dynamic programming over the steps).
4. The head's evaluations of a token may change from the first step to the last.
   They do so in at most `MAX_STAGES` equal parts of the steps, whatever the
   cuts, so the cuts change no image. A cut falls on every change.
5. Where tokens are given from the start, an image may know more than the step
   says, up to what is known after it, so each segment's prefix is longer. The
   plan does not depend on how many are given: one serves every mask.

    256 tokens, 64 steps, 4 segments:

    steps      0 ...... 19 | 20 ..... 35 | 36 ...... 49 | 50 ...... 63
    encoder    64 + 28     | 64 + 89     | 64 + 164     | 64 + 250
    head       3           | 5           | 6            | 7
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from marjax.schema import counted
from marjax.tokens.schedule import num_known_before, num_unknown_after

MAX_BUCKETS = 16
"""Segments of a plan unless it is said how many, at most."""

# Of 64 steps 1 segment pads the encoder's work × 2.02 and the head's × 1.75, 8
# × 1.09 and × 1.05; 16 would pad × 1.05 and × 1.02, in twice as many programs.
MAX_WASTE = 0.03
"""Padded work that is put up with to compile fewer programs, as a share."""

MAX_STAGES = 8
"""Numbers of head steps in one generation; each is compiled by itself."""


@dataclass(frozen=True)
class Segment:
  """Consecutive autoregressive steps that share their static shapes.

  Attributes:
    first_step: index of the first step.
    num_known: known tokens when each step starts.
    num_revealed: tokens each step reveals.
    num_new: the most tokens that became known in the step before one of these.
    num_head_steps: evaluations per token, the same at each step.
    is_edit: whether some tokens are given from the start.
  """

  first_step: int
  num_known: tuple[int, ...]
  num_revealed: tuple[int, ...]
  num_new: int
  num_head_steps: int
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


@dataclass(frozen=True, repr=False)
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

  def __repr__(self) -> str:
    return f"Plan({str(self).splitlines()[0]})"

  def __str__(self) -> str:
    varies = len({part.num_head_steps for part in self.segments}) > 1
    heading = f"{'steps':>11}  {'encoder tokens':>14}  {'head tokens':>11}"
    lines = [
      f"{counted(self.num_tokens, 'tokens')} in"
      f" {counted(self.num_ar_steps, 'steps')},"
      f" {counted(len(self.segments), 'segments')}",
      heading + ("  head steps" if varies else ""),
    ]
    for segment in self.segments:
      line = (
        f"{segment.first_step:>4} .. {segment.end - 1:<4}"
        f"  {segment.encoder_length:>13}  {segment.head_width:>11}"
      )
      last = f"  {segment.num_head_steps:>10}" if varies else ""
      lines.append(line + last)
    return "\n".join(lines)


def head_steps(
  num_ar_steps: int, first: int, final: int | None = None
) -> tuple[int, ...]:
  """Evaluations per token of each autoregressive step, S integers.

  Step n of S is in stage k = ⌊n · K / S⌋ of K = min(S, MAX_STAGES), and has
  first + (final - first) · k / (K - 1) of them, rounded; see the
  module's figure. A single stage has `first`; so has every step where `final`
  is None.
  """
  if final is None or num_ar_steps == 1:
    return (first,) * num_ar_steps
  stages = min(num_ar_steps, MAX_STAGES)
  return tuple(
    round(first + (final - first) * (n * stages // num_ar_steps) / (stages - 1))
    for n in range(num_ar_steps)
  )


@functools.lru_cache(maxsize=256)
def make_plan(
  num_tokens: int,
  num_ar_steps: int,
  num_buckets: int | None = None,
  *,
  step_cost: Callable[[int], float],
  row_cost: float,
  num_head_steps: int = 1,
  final_head_steps: int | None = None,
  is_edit: bool = False,
) -> Plan:
  """The cheapest plan of at most num_buckets segments, each a program.

  Untold, as few as pad the work by at most MAX_WASTE. Where the head's steps
  change more often than that, there is one segment
  for each number of them.

  Args:
    num_tokens: L. num_ar_steps: S, at most L.
    num_buckets: segments allowed; None leaves it to the cost.
    step_cost: what the backbone takes for a step, by the tokens that it knows.
    row_cost: what the head takes for one token, at num_head_steps.
    num_head_steps, final_head_steps: see `head_steps`.
    is_edit: whether images come with tokens that are given.

  Raises:
    ValueError: more steps than tokens, or fewer than one bucket.
  """
  if num_buckets is not None and num_buckets < 1:
    raise ValueError(f"num_buckets is {num_buckets}; expected 1 or more.")
  known = num_known_before(num_tokens, num_ar_steps)
  revealed = tuple(b - a for a, b in itertools.pairwise(known))
  numbers = head_steps(num_ar_steps, num_head_steps, final_head_steps)

  counts, changes = np.array(revealed), np.array(numbers)
  longest = known[1:] if is_edit else known[:-1]
  backbone = np.array([step_cost(number) for number in longest])

  def costs(first: int) -> np.ndarray:
    """Of the segments from `first` to first + 1, first + 2, ... the end."""
    per_row = row_cost * numbers[first] / num_head_steps
    widths = np.maximum.accumulate(counts[first:])
    work = np.arange(1, len(widths) + 1) * (backbone[first:] + per_row * widths)
    # A segment has one number of the head's steps.
    is_one = np.logical_and.accumulate(changes[first:] == numbers[first])
    return np.where(is_one, work, math.inf)

  rows = [costs(first) for first in range(num_ar_steps)]
  cuts = _cuts(num_buckets, rows, len(set(numbers)))
  segments = tuple(
    _segment(known, a, b, numbers[a], is_edit)
    for a, b in itertools.pairwise(cuts)
  )
  unknown = num_unknown_after(num_tokens, num_ar_steps)
  return Plan(num_tokens, num_ar_steps, segments, unknown)


def _segment(
  known: tuple[int, ...], first: int, end: int, num_head_steps: int, is_edit
) -> Segment:
  """Steps first .. end - 1 of a schedule that knows so many tokens, S + 1."""
  revealed = tuple(b - a for a, b in itertools.pairwise(known))
  return Segment(
    first,
    known[first:end],
    revealed[first:end],
    max((0, *revealed)[first:end]),
    num_head_steps,
    is_edit,
  )


def _cuts(
  num_buckets: int | None, rows: list[np.ndarray], fewest: int
) -> list[int]:
  """The cheapest cuts for that many parts, or the first that waste little."""
  most = min(max(num_buckets or MAX_BUCKETS, fewest), len(rows))
  spent, origins = _cheapest_cuts(rows, most)
  count = most
  if num_buckets is None:
    alone = sum(float(row[0]) for row in rows)
    enough = (1 + MAX_WASTE) * alone
    count = next((n for n, work in enumerate(spent, 1) if work <= enough), most)
  cuts = [len(rows)]
  for origin in reversed(origins[:count]):
    first = int(origin[cuts[0]])
    cuts = [first, *cuts] if first < cuts[0] else cuts
  return cuts


def _cheapest_cuts(
  rows: list[np.ndarray], num_parts: int
) -> tuple[list[float], list[np.ndarray]]:
  """The cheapest partitions of all steps into at most 1, 2, ... num_parts.

  Args:
    rows: of each step, the cost of the parts that start with it.

  Returns:
    The whole's cost for each number of parts. For each, too, where the last
    part starts in the cheapest partition of the first n steps, at n; n itself
    where one part fewer is as cheap.
  """
  best = np.full(len(rows) + 1, math.inf)
  best[0] = 0.0
  spent, origins = [], []
  for _ in range(num_parts):
    least, origin = best.copy(), np.arange(len(best))
    for first, row in enumerate(rows):
      total = best[first] + row
      is_less = total < least[first + 1 :]
      least[first + 1 :][is_less] = total[is_less]
      origin[first + 1 :][is_less] = first
    best = least
    spent.append(float(best[-1]))
    origins.append(origin)
  return spent, origins
