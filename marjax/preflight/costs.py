"""What one call of a compiled program moves and multiplies, per chip.

1. `collectives`: every exchange between chips, how often it runs, and the bytes
   that a chip sends for it over rings of n chips: (n-1)/n of the whole array to
   gather or scatter it, twice that to reduce it. Asynchronous halves count
   once; so do the pieces of one exchange that are spread over several fusions.
2. `products`: FLOPs in dots, in convolutions, of which XLA makes most dots on
   TPUs, and in cuBLAS's calls, of which it makes most on GPUs; taps that fall
   on padding or between dilated elements do not count.
3. `transfers`: bytes between the chip and its main memory, by operands and
   results of what is not fused; of arrays that are sliced, inside a fusion of a
   fusion too or by a kernel that is told which entry, only the slices.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

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
  exchanges, seen = [], set()
  for run in module.runs():
    kind = run.instruction.op.removesuffix("-start")
    if kind not in KINDS:
      continue
    # What the pieces of one spread-out exchange have in common.
    chain, channel = map(run.instruction.attribute, ("chain_id", "channel_id"))
    if not chain or (kind, chain, channel) not in seen:
      exchanges.append(_collective(kind, run, module.scope(run)))
    seen.add((kind, chain, channel))
  return exchanges


def _collective(kind: str, run: Run, scope: str) -> Collective:
  instruction = run.instruction
  group = group_size(instruction.rest)
  results = instruction.arrays
  is_started = instruction.op.endswith("-start") and len(results) > 1
  if is_started and kind != "all-reduce":
    # Operands, then results, then perhaps what signals the end.
    count = len(instruction.operands)
    results = results[count : 2 * count]
  num_bytes = sum(array.num_bytes for array in results)
  if kind == "reduce-scatter":
    num_bytes *= group
  if kind == "all-reduce" and "all-reduce-scatter" in run.computation.name:
    kind = "reduce-scatter"
  largest = max(results, key=lambda array: array.num_bytes)
  shape, dtype = largest.shape, largest.dtype
  return Collective(kind, shape, dtype, num_bytes, group, run.times, scope)


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


def products(module: Module) -> Iterator[tuple[Run, float]]:
  """Every matrix product and convolution, with its FLOPs over all its runs."""
  for run in module.runs():
    is_product = run.instruction.op in ("dot", "convolution")
    if is_product or _is_cublas(run.instruction):
      yield run, float(run.times * _flops(run.instruction, run.computation))


def _flops(instruction: Instruction, computation: Computation) -> int:
  lhs, rhs, *_ = (
    computation.instructions[name].arrays[0].shape
    for name in instruction.operands
  )
  output = instruction.arrays[0].shape
  if instruction.op == "convolution":
    return _convolution_flops(instruction.rest, lhs, rhs, output)
  axes = re.search(
    r"lhs_contracting_dim(?:s=\{|ensions\":\[)([\d,\"]*)[\]}]",
    instruction.rest,
  )
  contracted = [lhs[int(axis)] for axis in re.findall(r"\d+", axes[1])]
  return 2 * math.prod(output) * math.prod(contracted)


def _is_cublas(instruction: Instruction) -> bool:
  """Whether it calls cuBLAS for a product; its second result is workspace."""
  target = instruction.attribute("custom_call_target")
  return instruction.op == "custom-call" and target.startswith("__cublas")


def _convolution_flops(text: str, lhs, rhs, output) -> int:
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
  image, kernel, out = labels.groups()
  inside = re.search(r"window=\{([^}]*)\}", text)
  window = dict(re.findall(r"(\w+)=(\S+)", inside[1] if inside else ""))
  # The kernel's input features are those of one group already.
  count = output[out.index("b")] * output[out.index("f")]
  count *= rhs[kernel.index("i")]
  for axis in range(sum(map(str.isdigit, kernel))):
    # Of a padding "1_2" what comes before.
    options = {
      name: int(value.split("x")[axis].split("_")[0])
      for name, value in window.items()
      if name in ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")
    }
    place = str(axis)
    sizes = lhs[image.index(place)], output[out.index(place)]
    count *= _taps(*sizes, **options)
  return 2 * count


def _taps(
  num_in, num_out, size=1, stride=1, pad=0, lhs_dilate=1, rhs_dilate=1
) -> int:
  """Pairs of output place and kernel element that meet an input element."""
  places = np.arange(num_out)[:, None] * stride - pad
  at = places + np.arange(size) * rhs_dilate
  is_inside = (at >= 0) & (at <= (num_in - 1) * lhs_dilate)
  return int(np.sum(is_inside & (at % lhs_dilate == 0)))


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
    results = instruction.arrays[first : first + len(operands)]
    copied = sum(array.num_bytes for array in results)
    return min(read, copied) + _main_bytes(results)
  inner = module.computations.get(instruction.attribute("calls"))
  if op == "fusion" and inner:
    return sum(_fusion_traffic(module, inner, instruction, operands))
  if op == "dynamic-slice":
    return 2 * _main_bytes(instruction.arrays)
  if op == "dynamic-update-slice":
    return 2 * _main_bytes(operands[1])
  results = instruction.arrays[: 1 if _is_cublas(instruction) else None]
  if "triton" in instruction.attribute("custom_call_target"):
    return _main_bytes(results) + sum(_kernel_reads(operands))
  return _main_bytes(results) + sum(map(_main_bytes, operands))


def _kernel_reads(operands: list[tuple[Array, ...]]) -> Iterator[float]:
  """Of each operand; kernels with an index read one entry of their stacks.

  A stack has an axis more than the first operand, and comes first: layers of
  caches, evaluations of modulations.
  """
  arrays = [each[0] for each in operands]
  has_index = any(a.dtype == "s32" and math.prod(a.shape) < 3 for a in arrays)
  for array in arrays:
    is_stack = has_index and len(array.shape) > len(arrays[0].shape)
    yield _main_bytes((array,)) / (array.shape[0] if is_stack else 1)


def _fusion_traffic(
  module: Module,
  inner: Computation,
  fusion: Instruction,
  operands: list[tuple[Array, ...]],
) -> Iterator[float]:
  """Of each operand, then of the result, what is really touched."""
  for index, arrays in enumerate(operands):
    touched = _touched(module, inner, inner.parameter(index).name)
    yield min(_main_bytes(arrays), touched)
  root = inner.root
  parts = root.operands if root.op == "tuple" else (root.name,)
  for array, part in zip(fusion.arrays, parts, strict=False):
    origin = inner.source(part)
    if origin.op == "dynamic-update-slice" and array.is_main:
      yield inner.instructions[origin.operands[1]].num_bytes
    else:
      yield _main_bytes((array,))


def _touched(module: Module, inner: Computation, name: str) -> float:
  """Bytes that a fusion touches of an array; infinitely many for all."""
  touched = 0.0
  for user in inner.users(name):
    is_first = user.operands[0] == name
    if user.op in ("dynamic-slice", "slice", "gather"):
      touched += user.num_bytes if is_first else 0.0
    elif user.op == "bitcast":
      touched += _touched(module, inner, user.name)
    elif user.op == "fusion":
      nested = module.computations[user.attribute("calls")]
      for index, operand in enumerate(user.operands):
        if operand == name:
          part = nested.parameter(index).name
          touched += _touched(module, nested, part)
    elif user.op != "dynamic-update-slice" or not is_first:
      # Of what is updated in place only the slice is written, none is read.
      return math.inf
  return touched


def _main_bytes(arrays: tuple[Array, ...]) -> float:
  return sum((a.num_bytes for a in arrays if a.is_main), 0.0)
