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

5. XLA leaves no scope on what it makes itself, such as fetching a weight
   before it is needed. `Module.scope` takes that of whatever first uses the
   result; the search follows copies, and the places of a loop's tuple into its
   body and its next round.
"""

import functools
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
# What a reduction applies to pairs of numbers is not worth a walk, and the end
# of an asynchronous operation names again what its start has run.
_CALLERS = ("fusion", "while", "call", "async-start", "custom-call")
_CALLERS += ("conditional",)
_CALLED = re.compile(
  r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Array:
  """One array of a result: element type, sizes, and whether it is in main
  memory (HBM) rather than in a smaller one on the chip."""

  dtype: str
  shape: tuple[int, ...]
  is_main: bool

  @property
  def num_bytes(self) -> float:
    """Bytes without padding."""
    digits = re.search(r"\d+", self.dtype.replace("pred", "pred8"))
    bits = int(digits[0]) if digits else 0
    return math.prod(self.shape) * bits / 8


@dataclass(frozen=True)
class Instruction:
  """One line; `rest` is the text after the operands."""

  name: str
  arrays: tuple[Array, ...]
  op: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  def attribute(self, name: str) -> str:
    """The value that `rest` has for a name; "" for none."""
    value = re.search(rf'\b{name}=(?:"([^"]*)"|%?([\w.\->]+))', self.rest)
    return (value[1] or value[2] or "") if value else ""

  @property
  def op_name(self) -> str:
    """The JAX scope that it came from."""
    return self.attribute("op_name")

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
    wanted = ("parameter", (str(index),))
    each = self.instructions.values()
    return next(i for i in each if (i.op, i.operands) == wanted)

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
    is_taken = found and found.op == "get-tuple-element"
    return int(found.attribute("index")) if is_taken else None


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


@dataclass
class Module:
  """All computations; the entry is where a call starts."""

  computations: dict[str, Computation]
  entry: str

  def runs(
    self, name: str = "", times: int = 1, is_fused=False, outer: str = ""
  ) -> Iterator[Run]:
    """Every instruction that runs, in fusions and loops too.

    Args:
      name: of a computation, "" for the entry; the others: of what calls it.

    Raises:
      ValueError: a loop whose trip count cannot be told.
    """
    computation = self.computations[name or self.entry]
    for instruction in computation.instructions.values():
      yield Run(instruction, computation, times, is_fused, outer)
      inner = times
      if instruction.op == "while":
        inner *= self.trip_count(instruction, computation)
      is_inside = is_fused or instruction.op == "fusion"
      scope = instruction.op_name or outer
      for called in self._called(instruction):
        yield from self.runs(called, inner, is_inside, scope)

  def scope(self, run: Run) -> str:
    """Its JAX scope; where XLA left none, that of the nearest use."""
    queue, seen = deque([(run.computation, run.instruction)]), set()
    while queue:
      here, each = queue.popleft()
      if (here.name, each.name) in seen:
        continue
      seen.add((here.name, each.name))
      inner = self.computations.get(each.attribute("calls"), Computation(""))
      inside = (
        reversed(inner.instructions.values()) if each.op == "fusion" else ()
      )
      for one in (each, *inside):
        if one.op_name:
          return one.op_name
      for user in here.users(each.name):
        if user.op == "tuple":
          queue.extend(self._in_tuple(here, user, each.name))
        else:
          queue.append((here, user))
    return run.outer

  @functools.cached_property
  def _bodies(self) -> set[str]:
    return {
      instruction.attribute("body")
      for computation in self.computations.values()
      for instruction in computation.instructions.values()
      if instruction.op == "while"
    }

  def _in_tuple(
    self, here: Computation, whole: Instruction, name: str
  ) -> Iterator[tuple[Computation, Instruction]]:
    """Where loops read what one place of their tuple has."""
    users = here.users(whole.name)
    bodies = [user.attribute("body") for user in users if user.op == "while"]
    if whole.is_root and here.name in self._bodies:
      bodies.append(here.name)
    place = whole.operands.index(name)
    for inner in map(self.computations.get, bodies):
      for each in inner.instructions.values():
        if (
          each.op == "get-tuple-element"
          and inner.instructions[each.operands[0]].op == "parameter"
          and inner.place(each.name) == place
        ):
          yield inner, each

  def _called(self, instruction: Instruction) -> list[str]:
    if instruction.op not in _CALLERS:
      return []
    names = _CALLED.findall(instruction.rest)
    for branches in _BRANCHES.findall(instruction.rest):
      names += re.findall(r"[\w.\-]+", branches)
    return [name for name in names if name in self.computations]

  def trip_count(self, loop: Instruction, around: Computation) -> int:
    """How often the body of a `while` runs that stands in `around`."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    trips = int(noted[1]) if noted else self._counted(loop, around)
    if trips is None:
      raise ValueError(
        f"the trip count of loop {loop.name} ({loop.op_name}) cannot be told;"
        " expected a loop of known length: write it as a scan."
      )
    return trips

  def _counted(self, loop: Instruction, around: Computation) -> int | None:
    """Trips as the counter tells them; None where it does not."""
    test, body = (
      self.computations[loop.attribute(name)] for name in ("condition", "body")
    )
    init, root = around.source(loop.operands[0]), test.root
    forms = (root.op, root.attribute("direction"), body.root.op)
    if forms != ("compare", "LT", "tuple") or not init or init.op != "tuple":
      return None
    compared, limit = root.operands
    counter, limit = test.place(compared), test.constant(limit)
    if counter is None or limit is None:
      return None
    start = around.constant(init.operands[counter])
    added = body.source(body.root.operands[counter])
    if start is None or not added or added.op != "add":
      return None
    steps = [body.constant(name) for name in added.operands]
    places = [body.place(name) for name in added.operands]
    step = next(filter(None, steps), None)
    is_counted = counter in places and step is not None
    return max(0, -((start - limit) // step)) if is_counted else None


def parse(text: str) -> Module:
  """A compiled module, from `compiled.as_text()`."""
  computations, current, entry = {}, None, ""
  for line in text.splitlines():
    header, start = _HEADER.match(line), _LINE.match(line)
    if header:
      current = computations[header[2]] = Computation(header[2])
      entry = current.name if header[1] else entry
    elif current is not None and start:
      is_root, name = bool(start[1]), start[2]
      one = _instruction(name, line[start.end() :], is_root)
      current.instructions[name] = one
  return Module(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
  result, rest = text.split(" ", 1)
  if result.startswith("("):
    result, rest = _split_brackets(text)
  op, _, rest = rest.partition("(")
  inside, rest = _split_brackets("(" + rest)
  names = _OPERAND.findall(inside)
  # A parameter's number, or the text of a constant.
  operands = tuple(names) if names else (inside[1:-1],)
  arrays = []
  for dtype, sizes, layout in _ARRAY.findall(result):
    shape = tuple(map(int, re.findall(r"\d+", sizes)))
    arrays.append(Array(dtype, shape, not re.search(r"S\(\d+\)", layout)))
  return Instruction(name, tuple(arrays), op.strip(), operands, rest, is_root)


def _split_brackets(text: str) -> tuple[str, str]:
  """A text that starts with a bracket, cut after the one that closes it."""
  depth = 0
  for bracket in re.finditer(r"[()]", text):
    depth += 1 if bracket[0] == "(" else -1
    if depth == 0:
      return text[: bracket.end()], text[bracket.end() :]
  return text, ""
