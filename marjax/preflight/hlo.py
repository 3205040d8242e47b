"""XLA's compiled text, read into instructions that know how often they run.

1. A module's text is computations, each a list of instructions:

       %body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
         %x = f32[8,4]{1,0:T(8,128)S(1)} fusion(%p), kind=kLoop, calls=%f, ...
         ROOT %t = (s32[], f32[8,4]) tuple(%i, %x)
       }

2. `parse` keeps of each: name, shapes of the result, operation, operands,
   attributes. S(n) in a layout is a memory other than the chip's main one.
3. `Module.runs` walks from the entry: a loop's body runs its trip count times
   what encloses it, and every branch of a conditional is taken to run.
4. The trip count is XLA's own note of it. The TPU compiler leaves none, and it
   unrolls loops; so it is told from the counter, one place of the loop's tuple:

       init    tuple(.., start, ..)      body    tuple(.., counter + step, ..)
       cond    counter < limit           trips   ⌈(limit - start) / step⌉
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s64": 8, "u64": 8, "f64": 8}
BYTES |= {"c64": 8, "c128": 16, "token": 0}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(
  r"branch_computations=\{([^}]*)\}"
  r"|(?:true|false)_computation=%?([\w.\-]+)"
)


@dataclass(frozen=True)
class Array:
  """One array of a result: element type, sizes, and whether it is in main
  memory (HBM) rather than in a smaller one on the chip."""

  dtype: str
  shape: tuple[int, ...]
  is_main: bool = True

  @property
  def num_bytes(self) -> float:
    """Bytes without padding."""
    digits = re.search(r"\d+", self.dtype)
    size = BYTES.get(self.dtype) or (int(digits[0]) / 8 if digits else 0)
    return float(math.prod(self.shape) * size)


@dataclass(frozen=True)
class Instruction:
  """One line; `rest` is the text after the operands."""

  name: str
  arrays: tuple[Array, ...]
  op: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool = False

  @property
  def op_name(self) -> str:
    """The JAX scope that it came from."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""

  @property
  def num_bytes(self) -> float:
    """Of all arrays of the result."""
    return float(sum(array.num_bytes for array in self.arrays))


@dataclass
class Computation:
  """Instructions by name, in order."""

  name: str
  instructions: dict[str, Instruction] = field(default_factory=dict)

  @property
  def root(self) -> Instruction:
    """The one whose value is the computation's."""
    return next(i for i in self.instructions.values() if i.is_root)

  def parameter(self, index: int) -> Instruction:
    """Parameter number `index`."""
    return next(
      i
      for i in self.instructions.values()
      if i.op == "parameter" and i.operands == (str(index),)
    )

  def users(self, name: str) -> Iterator[Instruction]:
    """The instructions that take another's result."""
    return (i for i in self.instructions.values() if name in i.operands)

  def source(self, name: str) -> Instruction | None:
    """Where a value comes from, copies left aside."""
    found = self.instructions.get(name)
    while found and found.op in ("copy", "bitcast"):
      found = self.instructions.get(found.operands[0])
    return found

  def constant(self, name: str) -> int | None:
    """The integer that a value is, if it is one."""
    found = self.source(name)
    is_known = found and found.op == "constant" and found.operands[0].isdigit()
    return int(found.operands[0]) if is_known else None

  def place(self, name: str) -> int | None:
    """The place in its parameter's tuple that a value is taken from."""
    found = self.source(name)
    if not found or found.op != "get-tuple-element":
      return None
    return int(re.search(r"index=(\d+)", found.rest)[1])


@dataclass(frozen=True)
class Run:
  """An instruction, where it stands, and how often it runs in one call.

  Attributes:
    is_fused: whether it is part of a fusion.
    outer: JAX scope of the call, fusion or loop that it is in.
  """

  instruction: Instruction
  computation: Computation
  times: int
  is_fused: bool
  outer: str = ""

  @property
  def scope(self) -> str:
    """Its JAX scope; where XLA left none, that of a user, or of the outer."""
    near = self.computation.users(self.instruction.name)
    scopes = (i.op_name for i in (self.instruction, *near) if i.op_name)
    return next(scopes, self.outer)


@dataclass
class Module:
  """All computations; the entry is where a call starts."""

  computations: dict[str, Computation]
  entry: str

  def runs(self) -> Iterator[Run]:
    """Every instruction that runs, in fusions and loops too.

    Raises:
      ValueError: a loop whose trip count cannot be told.
    """
    yield from self._runs(self.entry, 1, False, "")

  def _runs(
    self, name: str, times: int, is_fused: bool, outer: str
  ) -> Iterator[Run]:
    computation = self.computations[name]
    for instruction in computation.instructions.values():
      yield Run(instruction, computation, times, is_fused, outer)
      inner = times
      if instruction.op == "while":
        inner *= self.trip_count(instruction, computation)
      is_inside = is_fused or instruction.op == "fusion"
      for called in self._called(instruction):
        scope = instruction.op_name or outer
        yield from self._runs(called, inner, is_inside, scope)

  def _called(self, instruction: Instruction) -> list[str]:
    # What a reduction applies to pairs of numbers is not worth a walk, and the
    # end of an asynchronous operation names again what its start has run.
    op = instruction.op
    if op in ("fusion", "while", "call", "async-start", "custom-call"):
      return [
        name
        for name in _CALLED.findall(instruction.rest)
        if name in self.computations
      ]
    if op == "conditional":
      found = _BRANCHES.findall(instruction.rest)
      names = [
        name for pair in found for name in re.split(r", *", "".join(pair))
      ]
      return [name.lstrip("%") for name in names]
    return []

  def trip_count(self, loop: Instruction, around: Computation) -> int:
    """How often the body of a `while` runs that stands in `around`."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if noted:
      return int(noted[1])
    parts = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.rest))
    test = self.computations[parts["condition"]]
    counter, limit = self._compared(test)
    begun, body = (
      around.source(loop.operands[0]),
      self.computations[parts["body"]],
    )
    start = step = None
    if counter is not None and begun and begun.op == "tuple":
      start = around.constant(begun.operands[counter])
      step = _step(body, counter)
    if None in (limit, start, step):
      raise ValueError(
        f"the trip count of loop {loop.name} ({loop.op_name}) cannot be told;"
        " expected a loop of known length: write it as a scan."
      )
    return max(0, -((start - limit) // step))

  def _compared(self, test: Computation) -> tuple[int | None, int | None]:
    """The place of the counter, and what it must be less than."""
    root = test.root
    if root.op != "compare" or "direction=LT" not in root.rest:
      return None, None
    counter, limit = root.operands
    return test.place(counter), test.constant(limit)


def _step(body: Computation, counter: int) -> int | None:
  """What a loop's body adds to its counter."""
  if body.root.op != "tuple":
    return None
  made = body.source(body.root.operands[counter])
  if not made or made.op != "add":
    return None
  places = [body.place(name) for name in made.operands]
  steps = [body.constant(name) for name in made.operands]
  known = [step for step in steps if step is not None]
  return known[0] if counter in places and known else None


def parse(text: str) -> Module:
  """A compiled module, from `compiled.as_text()`."""
  computations, current, entry = {}, None, ""
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = Computation(header[2])
      computations[current.name] = current
      entry = current.name if header[1] else entry
    elif current is not None and _LINE.match(line):
      instruction = _instruction(line)
      current.instructions[instruction.name] = instruction
  return Module(computations, entry)


def _instruction(line: str) -> Instruction:
  start = _LINE.match(line)
  result, rest = _split_result(line[start.end() :])
  op, _, rest = rest.partition("(")
  inside, rest = _split_brackets("(" + rest)
  names = _OPERAND.findall(inside)
  # A parameter's number, or the text of a constant.
  operands = tuple(names) if names else (inside[1:-1],)
  arrays = tuple(
    Array(dtype, _sizes(sizes), not re.search(r"S\(\d+\)", layout or ""))
    for dtype, sizes, layout in _ARRAY.findall(result)
  )
  return Instruction(
    start[2], arrays, op.strip(), operands, rest, bool(start[1])
  )


def _split_result(text: str) -> tuple[str, str]:
  """The result's type, and what follows it."""
  if text.startswith("("):
    return _split_brackets(text)
  result, _, rest = text.partition(" ")
  return result, rest


def _split_brackets(text: str) -> tuple[str, str]:
  """A text that starts with a bracket, cut after the one that closes it."""
  depth = 0
  for bracket in re.finditer(r"[()]", text):
    depth += 1 if bracket[0] == "(" else -1
    if depth == 0:
      return text[: bracket.end()], text[bracket.end() :]
  return text, ""


def _sizes(text: str) -> tuple[int, ...]:
  return tuple(int(size) for size in re.findall(r"\d+", text))
