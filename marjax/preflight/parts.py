"""Which part of the model the work of a generation belongs to.

1. linen and `jax.named_scope` put names on every product. Those of a backbone's
   stacks of blocks and of the head are the names of their parameters; all else,
   embeddings and writing tokens, is "rest":

       while/body/MarModel.z/backbone/backbone.decode/decoder/while/../fc1
                                                      decoder

   A masked model has an encoder and a decoder, a causal one blocks, a guided
   one memory and queries.

2. What XLA makes itself belongs to what uses it: `marjax.preflight.hlo`.
3. `padding` counts in the plan alone what it makes the backbone and the head
   work on, and what of it is needed; nothing is compiled for it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from marjax.generate.plan import Plan
from marjax.parallel.chips import Chip
from marjax.preflight import costs
from marjax.preflight.bounds import Bound, bound
from marjax.preflight.hlo import Module

STACKS = ("encoder", "decoder", "blocks", "memory", "queries")
PARTS = (*STACKS, "head", "rest")

_NAMES = {name: name for name in PARTS if name != "rest"}
_NAMES |= {f"{name}_norm": name for name in STACKS}
_NAMES |= {"stacks_0": "blocks", "stacks_1": "blocks"}
_NAMES |= {"to_keys": "memory", "to_values": "memory"}


@dataclass(frozen=True)
class Work:
  """What one chip does of a part in one call.

  Attributes:
    useful_flops, program_flops: without and with padding.
    memory_traffic: bytes. sent_bytes: to other chips.
    bound: seconds, None where the chip is not known.
  """

  useful_flops: float
  program_flops: float
  memory_traffic: float
  sent_bytes: float
  bound: Bound | None = None

  @property
  def intensity(self) -> float:
    """FLOPs for each byte of memory traffic."""
    traffic = self.memory_traffic
    return self.program_flops / traffic if traffic else 0.0


def part_of(scope: str) -> str:
  """One of PARTS, from the scope of a product or an instruction."""
  for name in re.split(r"\W+", scope):
    if name in _NAMES:
      return _NAMES[name]
  return "rest"


def by_part(
  modules: list[Module], useful: Mapping[str, float], chip: Chip | None
) -> dict[str, Work]:
  """The work of compiled programs that run one after another, by part.

  All parts together are what `costs` counts, to the last byte; stacks that the
  model does not have are left out.

  Args:
    modules: the programs. useful: part → FLOPs of one chip without padding.
    chip: whose peaks bound the time.
  """
  work = {part: [float(useful.get(part, 0)), 0.0, 0.0, 0.0] for part in PARTS}
  for module in modules:
    for place, count in ((1, costs.products), (2, costs.transfers)):
      for run, number in count(module):
        work[part_of(module.scope(run))][place] += number
    for exchange in costs.collectives(module):
      work[part_of(exchange.op_name)][3] += exchange.sent_bytes
  return {
    part: Work(*numbers, chip and bound(chip, *numbers))
    for part, numbers in work.items()
    if any(numbers) or part not in STACKS
  }


@dataclass(frozen=True)
class Padding:
  """What a segment works on for each image, and what of it is needed.

  Attributes:
    first_step, last_step: of the plan. encoder_length, head_width: padded.
    backbone_work, needed_work: multiplications, over its steps.
    head_rows, needed_rows: tokens times diffusion steps, over its steps.
  """

  first_step: int
  last_step: int
  encoder_length: int
  head_width: int
  backbone_work: float
  needed_work: float
  head_rows: int
  needed_rows: int


def padding(
  plan: Plan, step_cost: Callable[[int], float]
) -> tuple[Padding, ...]:
  """Of each segment of a plan; step_cost is the backbone's."""
  return tuple(
    Padding(
      segment.first_step,
      segment.end - 1,
      segment.encoder_length,
      segment.head_width,
      step_cost(segment.encoder_length) * len(segment.num_known),
      sum(map(step_cost, segment.num_known)),
      segment.head_width * len(segment.num_known) * segment.num_head_steps,
      sum(segment.num_revealed) * segment.num_head_steps,
    )
    for segment in plan.segments
  )
