"""Which part of the model the work of a generation belongs to.

1. linen and `jax.named_scope` put names on every product. Those of the
   encoder's and decoder's blocks and of the head are the names of their
   parameters; all else, embeddings and writing tokens, is "rest":

       while/body/MarModel.z/backbone/backbone.decode/decoder/while/../fc1
                                                      decoder

2. XLA leaves none on what it makes itself, such as fetching a weight before it
   is needed. That belongs to whatever first uses the result; the search follows
   copies, and the places of a loop's tuple into its body and its next round.
3. `padding` counts in the plan alone what it makes the encoder and the head
   work on, and what of it is needed; nothing is compiled for it.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from marjax.generate.plan import Plan, Segment
from marjax.parallel.chips import Chip
from marjax.preflight import costs
from marjax.preflight.bounds import Bound, bound
from marjax.preflight.hlo import Computation, Instruction, Module, Run

PARTS = ("encoder", "decoder", "head", "rest")

_NAMES = {"encoder_norm": "encoder", "decoder_norm": "decoder"}
_NAMES |= {name: name for name in PARTS if name != "rest"}


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

  All parts together are what `costs` counts, to the last byte.

  Args:
    modules: the programs. useful: part → FLOPs of one chip without padding.
    chip: whose peaks bound the time.
  """
  products, transfers, sent = Counter(), Counter(), Counter()
  for module in modules:
    owners = _Owners(module)
    for run, number in costs.products(module):
      products[owners.of(run)] += number
    for run, number in costs.transfers(module):
      transfers[owners.of(run)] += number
    for exchange in costs.collectives(module):
      sent[part_of(exchange.op_name)] += exchange.sent_bytes
  found = {
    part: [float(n[part]) for n in (Counter(useful), products, transfers, sent)]
    for part in PARTS
  }
  return {
    part: Work(*numbers, chip and bound(chip, *numbers))
    for part, numbers in found.items()
  }


class _Owners:
  """The part of each instruction of a module."""

  def __init__(self, module: Module):
    self._module = module
    self._known = {}
    self._bodies = {
      _body(instruction)
      for computation in module.computations.values()
      for instruction in computation.instructions.values()
      if instruction.op == "while"
    }

  def of(self, run: Run) -> str:
    """The part that a run's scope, or else the use of its result, tells."""
    at = (run.computation.name, run.instruction.name)
    if at not in self._known:
      scopes = self._scopes(run.computation, run.instruction)
      self._known[at] = part_of(next(scopes, run.outer))
    return self._known[at]

  def _scopes(
    self, here: Computation, instruction: Instruction
  ) -> Iterator[str]:
    """Its own scope, what it is made of, who uses it, and so on; near first."""
    queue, seen = deque([(here, instruction)]), set()
    while queue:
      here, found = queue.popleft()
      if (here.name, found.name) in seen:
        continue
      seen.add((here.name, found.name))
      for each in (found, *self._inside(found)):
        if each.op_name:
          yield each.op_name
      queue.extend(self._users(here, found))

  def _inside(self, instruction: Instruction) -> Iterator[Instruction]:
    called = re.search(r"calls=%?([\w.\-]+)", instruction.rest)
    if instruction.op == "fusion" and called:
      inner = self._module.computations.get(called[1], Computation(""))
      yield from reversed(inner.instructions.values())

  def _users(
    self, here: Computation, instruction: Instruction
  ) -> Iterator[tuple[Computation, Instruction]]:
    for user in here.users(instruction.name):
      if user.op == "tuple":
        yield from self._in_tuple(here, user, instruction.name)
      else:
        yield here, user

  def _in_tuple(
    self, here: Computation, made: Instruction, name: str
  ) -> Iterator[tuple[Computation, Instruction]]:
    """Where loops read what one place of their tuple holds."""
    bodies = [_body(u) for u in here.users(made.name) if u.op == "while"]
    if made.is_root and here.name in self._bodies:
      bodies.append(here.name)
    place = made.operands.index(name)
    for body in bodies:
      inner = self._module.computations[body]
      for found in inner.instructions.values():
        if (
          found.op == "get-tuple-element"
          and inner.instructions[found.operands[0]].op == "parameter"
          and inner.place(found.name) == place
        ):
          yield inner, found


def _body(loop: Instruction) -> str:
  return re.search(r"body=%?([\w.\-]+)", loop.rest)[1]


@dataclass(frozen=True)
class Padding:
  """What a segment works on for each image, and what of it is needed.

  Attributes:
    first_step, last_step: of the plan. encoder_length, head_width: padded.
    encoder_slots, needed_slots: the buffer's included, over its steps.
    head_rows, needed_rows: tokens times diffusion steps, over its steps.
  """

  first_step: int
  last_step: int
  encoder_length: int
  head_width: int
  encoder_slots: int
  needed_slots: int
  head_rows: int
  needed_rows: int


def padding(plan: Plan, num_buffer: int) -> tuple[Padding, ...]:
  """Of each segment of a plan, for an encoder with that many buffer slots."""
  return tuple(_padding(segment, num_buffer) for segment in plan.segments)


def _padding(segment: Segment, num_buffer: int) -> Padding:
  steps = len(segment.num_known)
  rows = segment.num_diffusion_steps
  return Padding(
    segment.first_step,
    segment.end - 1,
    segment.encoder_length,
    segment.head_width,
    steps * (num_buffer + segment.encoder_length),
    steps * num_buffer + sum(segment.num_known),
    steps * segment.head_width * rows,
    sum(segment.num_revealed) * rows,
  )
