"""What one call of a compiled program moves and multiplies, per chip.

1. `collectives`: every exchange between chips, how often it runs, and the bytes
   that a chip sends for it over rings of n chips: (n-1)/n of the whole array to
   gather or scatter it, twice that to reduce it. Asynchronous halves count
   once; so do the pieces of one exchange that are spread over several fusions.
2. `flops`: products in dots, in convolutions, of which XLA makes most dots on
   TPUs, and in cuBLAS's calls, of which it makes most on GPUs; taps that fall
   on padding or between dilated elements do not count.
3. `memory_traffic`: bytes between the chip and its main memory, by operands and
   results of what is not fused; of arrays that are sliced only the slices.

`products` and `transfers` give the same one instruction at a time.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from marjax.preflight.hlo import Array, Computation, Instruction, Module, Run

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

# They name arrays that are there already, or only pass them on.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
_FREE += ("while", "conditional", "call", "after-all", "partition-id", "iota")


@dataclass(frozen=True)
class Collective:
  """One exchange between chips.

  Attributes:
    kind: one of KINDS. shape, dtype: of its largest result; where XLA scatters
      after it reduced, of what it reduces.
    num_bytes: of all its arrays, whole. group: chips that take part together.
    times: how often it runs. op_name: the JAX scope it came from, or is near.
  """

  kind: str
  shape: tuple[int, ...]
  dtype: str
  num_bytes: float
  group: int
  times: int
  op_name: str

  @property
  def sent_bytes(self) -> float:
    """Bytes that each chip sends, over all its runs."""
    share = (self.group - 1) / self.group if self.group else 1.0
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0}
    return self.times * self.num_bytes * factor.get(self.kind, share)


def collectives(module: Module) -> list[Collective]:
  """All exchanges of one call."""
  found, seen = [], set()
  for run in module.runs():
    kind = run.instruction.op.removesuffix("-start")
    if kind not in KINDS:
      continue
    piece = _piece(run.instruction)
    if piece and (kind, piece) in seen:
      continue
    seen.add((kind, piece))
    found.append(_collective(kind, run))
  return found


def _piece(instruction: Instruction) -> tuple[str, str] | None:
  """What the pieces of one spread-out exchange have in common."""
  chain = re.search(r'chain_id="(\d+)"', instruction.rest)
  channel = re.search(r"channel_id=(\d+)", instruction.rest)
  return (chain[1], channel[1] if channel else "") if chain else None


def _collective(kind: str, run: Run) -> Collective:
  instruction = run.instruction
  group = group_size(instruction.rest)
  results = instruction.arrays
  if instruction.op.endswith("-start") and len(results) > 1:
    # Operands, then results, then perhaps what signals the end.
    given = len(instruction.operands)
    results = results[given : 2 * given]
    if kind in ("all-reduce",):
      results = instruction.arrays
  num_bytes = sum(array.num_bytes for array in results)
  if kind == "reduce-scatter":
    num_bytes *= group
  if kind == "all-reduce" and "all-reduce-scatter" in run.computation.name:
    kind = "reduce-scatter"
  largest = max(results, key=lambda array: array.num_bytes)
  return Collective(
    kind,
    largest.shape,
    largest.dtype,
    num_bytes,
    group,
    run.times,
    run.scope,
  )


def group_size(text: str) -> int:
  """Chips of one replica group, from an instruction's attributes."""
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", text)
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[n]) for n in re.findall(r"'(\w+)'", mesh[2]))
  iota = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
  if iota:
    return int(iota[1])
  listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
  return len(listed[1].split(",")) if listed else 2


def flops(module: Module) -> float:
  """Twice the multiplications of dots and convolutions in one call."""
  return sum((number for _, number in products(module)), 0.0)


def products(module: Module) -> Iterator[tuple[Run, float]]:
  """Every matrix product and convolution, with its FLOPs over all its runs."""
  for run in module.runs():
    is_product = run.instruction.op in ("dot", "convolution")
    if is_product or _is_cublas(run.instruction):
      yield run, float(run.times * _flops(run.instruction, run.computation))


def _flops(instruction: Instruction, computation: Computation) -> int:
  inputs = [
    computation.instructions[name].arrays[0].shape
    for name in instruction.operands
  ]
  output = instruction.arrays[0].shape
  if instruction.op != "convolution":
    axes = re.search(
      r"lhs_contracting_dim(?:s=\{|ensions\":\[)([\d,\"]*)[\]}]",
      instruction.rest,
    )
    contracted = [inputs[0][int(axis)] for axis in re.findall(r"\d+", axes[1])]
    return 2 * math.prod(output) * math.prod(contracted)
  return _convolution_flops(instruction.rest, *inputs, output)


def _is_cublas(instruction: Instruction) -> bool:
  """Whether it calls cuBLAS for a product; its second result is workspace."""
  return instruction.op == "custom-call" and bool(
    re.search(r'custom_call_target="__cublas', instruction.rest)
  )


def _convolution_flops(text: str, lhs, rhs, output) -> int:
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
  _, kernel, out = labels.groups()
  window = _window(text, sum(label.isdigit() for label in kernel))
  taps = [
    _taps(
      lhs[labels[1].index(str(axis))], output[out.index(str(axis))], **options
    )
    for axis, options in enumerate(window)
  ]
  # The kernel's input features are those of one group already.
  per_tap = rhs[kernel.index("i")] * output[out.index("f")]
  return 2 * output[out.index("b")] * per_tap * math.prod(taps)


def _window(text: str, rank: int) -> list[dict[str, int]]:
  """For each spatial axis: size, stride, pad before, both dilations."""
  inside = re.search(r"window=\{([^}]*)\}", text)
  given = dict(re.findall(r"(\w+)=(\S+)", inside[1])) if inside else {}

  def numbers(name: str, default: str) -> list[int]:
    parts = given[name].split("x") if name in given else [default] * rank
    return [int(part.split("_")[0]) for part in parts]

  names = {"size": "1", "stride": "1", "pad": "0"}
  names |= {"lhs_dilate": "1", "rhs_dilate": "1"}
  columns = {name: numbers(name, default) for name, default in names.items()}
  return [{name: columns[name][axis] for name in names} for axis in range(rank)]


def _taps(num_in, num_out, size, stride, pad, lhs_dilate, rhs_dilate) -> int:
  """Pairs of output place and kernel element that meet an input element."""
  last = (num_in - 1) * lhs_dilate
  count = 0
  for element in range(size):
    offset = element * rhs_dilate - pad
    for place in range(num_out):
      at = place * stride + offset
      count += 0 <= at <= last and at % lhs_dilate == 0
  return count


def memory_traffic(module: Module) -> float:
  """Bytes read from and written to main memory in one call."""
  return sum((number for _, number in transfers(module)), 0.0)


def transfers(module: Module) -> Iterator[tuple[Run, float]]:
  """What is not fused and touches main memory, with its bytes over all runs."""
  for run in module.runs():
    number = 0.0 if run.is_fused else run.times * _traffic(module, run)
    if number:
      yield run, number


def _traffic(module: Module, run: Run) -> float:
  instruction, here = run.instruction, run.computation
  op = instruction.op
  if op in _FREE or op.endswith("-done"):
    return 0.0
  operands = [
    here.instructions[name].arrays
    for name in instruction.operands
    if name in here.instructions
  ]
  if op.endswith("-start"):
    read = sum(map(_main_bytes, operands), 0.0)
    # A copy's tuple begins with where it goes, any other's with where it comes
    # from; of what is sliced only the slice is read.
    first = 0 if op == "copy-start" else len(operands)
    made = instruction.arrays[first : first + len(operands)]
    return min(read, sum(a.num_bytes for a in made)) + _main_bytes(made)
  if op == "fusion":
    called = re.search(r"calls=%?([\w.\-]+)", instruction.rest)
    if called and called[1] in module.computations:
      return sum(
        _fusion_traffic(module.computations[called[1]], instruction, operands)
      )
  if op == "dynamic-slice":
    return 2 * _main_bytes(instruction.arrays)
  if op == "dynamic-update-slice":
    return 2 * _main_bytes(operands[1])
  made = instruction.arrays[: 1 if _is_cublas(instruction) else None]
  return _main_bytes(made) + sum(map(_main_bytes, operands))


def _fusion_traffic(
  inner: Computation, fusion: Instruction, operands: list[tuple[Array, ...]]
) -> Iterator[float]:
  """Of each operand, then of the result, what is really touched."""
  for index, arrays in enumerate(operands):
    touched = _touched(inner, inner.parameter(index).name)
    whole = _main_bytes(arrays)
    yield whole if touched is None else min(whole, touched)
  root = inner.root
  parts = root.operands if root.op == "tuple" else (root.name,)
  for array, part in zip(fusion.arrays, parts, strict=False):
    made = inner.source(part)
    if made.op == "dynamic-update-slice" and array.is_main:
      yield inner.instructions[made.operands[1]].num_bytes
    else:
      yield array.num_bytes if array.is_main else 0.0


def _touched(inner: Computation, name: str) -> float | None:
  """Bytes that a fusion touches of an array; None for all of it."""
  touched = 0.0
  for user in inner.users(name):
    if user.op in ("dynamic-slice", "slice", "gather"):
      part = user.num_bytes if user.operands[0] == name else 0.0
    elif user.op == "dynamic-update-slice" and user.operands[0] == name:
      part = 0.0  # The slice is written, and nothing is read.
    elif user.op == "bitcast":
      part = _touched(inner, user.name)
    else:
      return None
    if part is None:
      return None
    touched += part
  return touched


def _main_bytes(arrays: tuple[Array, ...]) -> float:
  return sum((a.num_bytes for a in arrays if a.is_main), 0.0)
