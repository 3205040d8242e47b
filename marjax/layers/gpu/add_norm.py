"""Adding a branch and normalising the sum, as kernels for NVIDIA GPUs.

1. A program of the forward kernel holds one row of x: everything is loaded
   before anything waits for a sum.
2. The backward kernel computes from the rounded sum x, its mean m and inverse
   deviation r, with ȧ the gradient of a:

       y = r · (x - m)      ṅ = u̇ · (1 + gain)      ẏ = ṅ · scale
       ẋ += r · (ẏ - mean(ẏ) - y · mean(ẏ · y))      ḣ = drop(gate · ẋ)

   A program goes over some rows and adds up what vectors get of them.

`marjax.layers.add_norm` says what is computed, and does it without them.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from marjax.layers.dropout import row_hashes, survives
from marjax.layers.gpu.instructions import fma, is_interpreted

_ROWS, _PROGRAMS = 32, 1280
"""Rows of a program of the backward kernel, at least; programs, at most.

Each program writes its sums: with 32 of 118 thousand rows each, a tenth of all
that is written.
"""

_WARPS = 8


class Gradients(NamedTuple):
  """What the backward kernel writes.

  Attributes:
    x, h, gate: [rows, W]. modulation: [rows, 2 · W].
    sums: float32 [programs, vectors, W], of those that `_vectors` names.
  """

  x: Any
  h: Any
  gate: Any
  modulation: Any
  sums: Any


def _vectors(branch, norm) -> list[str]:
  """The vectors that have gradients, in the order of their sums."""
  names = []
  if branch is not None and branch.bias is not None:
    names.append("h")
  if branch is not None and branch.gate is not None:
    names.append("gate")
  if norm.modulation is not None:
    names += ["shift", "gain"]
  if norm.scale is not None:
    names += ["scale", "bias"]
  return names


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(dtype, rate, x, branch, norm, index):
  """(x, u), and mean and inverse deviation of each row, [*batch] float32.

  Args:
    dtype: of u. rate: of dropout.
    x, branch, norm, index: as `add_norm` takes them.
  """
  width, num_rows = x.shape[-1], math.prod(x.shape[:-1])
  if index is not None:
    index = jnp.reshape(index, (1,)).astype(jnp.int32)
  inputs = (*_by_rows(x.ndim, (x, branch, norm)), index)
  refs, structure = jax.tree.flatten(inputs)
  kinds = [dtype] if branch is None else [x.dtype, dtype]
  shapes = [((num_rows, width), kind) for kind in kinds]
  shapes += [((num_rows,), jnp.float32)] * 2
  slots = math.prod(x.shape[1:-1])
  # A single warp waits for no other; where rows are few, several are quicker.
  warps = 4 if num_rows <= 1024 else 1
  outputs = pl.pallas_call(
    functools.partial(_forward_kernel, structure, rate, slots, len(shapes)),
    name="add_norm",
    grid=(num_rows,),
    out_shape=[jax.ShapeDtypeStruct(*shape) for shape in shapes],
    compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
    interpret=is_interpreted(),
  )(*refs)
  *sums, u, mean, inverse = [
    array.reshape(x.shape[: x.ndim - 2 + array.ndim]) for array in outputs
  ]
  return (sums[0] if sums else x, u), (mean, inverse)


@functools.partial(jax.jit, static_argnums=(0,))
def backward(rate, gradients, rows, branch, norm):
  """The gradients of x, branch and norm, in their form; vectors' float32.

  Args:
    gradients: of x and u as `forward` gave them.
    rows: that x, mean and inverse deviation.
    rate, branch, norm: as it had them, without an index; h is not used without
      a gate and may then be None.
  """
  x = rows[0]
  width, num_rows = x.shape[-1], math.prod(x.shape[:-1])
  inputs = _by_rows(x.ndim, (gradients, rows, branch, norm))
  refs, structure = jax.tree.flatten(inputs)
  each = max(_ROWS, pl.cdiv(num_rows, _PROGRAMS))
  programs, vectors = pl.cdiv(num_rows, each), _vectors(branch, norm)
  gate, modulation = branch and branch.gate, norm.modulation

  def like(array):
    return jax.ShapeDtypeStruct((num_rows, array.shape[-1]), array.dtype)

  shapes, structure_of_shapes = jax.tree.flatten(
    Gradients(
      like(x),
      branch and like(x),
      gate and like(x),
      modulation and like(modulation.values),
      jax.ShapeDtypeStruct((programs, len(vectors), width), jnp.float32),
    )
  )
  slots = math.prod(x.shape[1:-1])
  kernel = functools.partial(
    _backward_kernel, structure, structure_of_shapes, rate, slots
  )
  outputs = pl.pallas_call(
    functools.partial(kernel, num_rows, each, vectors),
    name="add_norm_backward",
    grid=(programs,),
    out_shape=shapes,
    compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=is_interpreted(),
  )(*refs)
  to = jax.tree.unflatten(structure_of_shapes, outputs)
  sums = jnp.sum(to.sums, axis=0)
  to = jax.tree.map(
    lambda array: array.reshape(*x.shape[:-1], array.shape[-1]),
    to._replace(sums=None),
  )
  return _in_form(to, dict(zip(vectors, sums, strict=True)), branch, norm)


def _in_form(to: Gradients, of: dict, branch, norm):
  """Gradients, and those of vectors, in the form of what they are of."""
  if branch is not None:
    gate = branch.gate
    if gate is not None:
      gate = gate._replace(values=to.gate, bias=of["gate"])
    branch = branch._replace(h=to.h, bias=of.get("h"), gate=gate, seeds=None)
  modulation = norm.modulation
  if modulation is not None:
    bias = jnp.concatenate([of["shift"], of["gain"]])
    modulation = modulation._replace(values=to.modulation, bias=bias)
  scale, bias = of.get("scale"), of.get("bias")
  return (
    to.x,
    branch,
    norm._replace(scale=scale, bias=bias, modulation=modulation),
  )


def _by_rows(ndim, tree):
  """Arrays [..., *batch, W] as [..., rows, W], their means as [rows]."""

  def by_rows(array):
    if array.ndim >= ndim:
      lead = array.shape[: array.ndim - ndim]
      return array.reshape(*lead, -1, array.shape[-1])
    return array.reshape(-1) if array.ndim == ndim - 1 else array

  return jax.tree.map(by_rows, tree)


class _Row:
  """One row of arrays, in float32, as arrays of a power of 2."""

  def __init__(self, row, width, is_there=True):
    self.row, self.width = row, width
    self.features = jnp.arange(pl.next_power_of_2(width))
    self.of_row = self.features < width
    self.inside = self.of_row & is_there

  def load(self, ref, piece=0, step=()):
    """Of its row of an array, of a step if given, or of a vector.

    Pieces have the row's width. What is not there is 0.
    """
    return self.raw(ref, piece, step).astype(jnp.float32)

  def raw(self, ref, piece=0, step=()):
    """`load`, in the dtype that it is in."""
    is_vector = len(ref.shape) == 1
    at = () if is_vector else (*step, self.row)
    at = ref.at[(*at, piece * self.width + self.features)]
    mask = self.of_row if is_vector else self.inside
    return plgpu.load(at, mask=mask, other=0.0)

  def modulated(self, one, piece, step=()):
    """Shift or gain, pieces 0 and 1, or -1 for a gate, the last piece."""

    def place(array):
      return piece if piece >= 0 else array.shape[-1] // self.width - 1

    values = self.load(one.values, place(one.values), step)
    return values + self.load(one.bias, place(one.bias))

  def store(self, ref, value, piece=0):
    at = ref.at[self.row, piece * self.width + self.features]
    plgpu.store(at, value.astype(ref.dtype), mask=self.inside)

  def mean(self, value):
    """Of a row that is 0 where there are no features."""
    return jnp.sum(value) / self.width

  def drop(self, value, seeds, rate, slots):
    """`dropout.drop`, for entries of so many slots."""
    if seeds is None or not rate:
      return value
    slot = (self.row % slots).astype(jnp.uint32)
    row_hash = row_hashes(seeds[self.row // slots], slot)
    kept = survives(row_hash, self.features.astype(jnp.uint32), rate)
    return jnp.where(kept, value * (1.0 / (1.0 - rate)), 0.0)


def _forward_kernel(structure, rate, slots, num_outputs, *refs):
  inputs, outputs = refs[:-num_outputs], refs[-num_outputs:]
  x, branch, norm, index = jax.tree.unflatten(structure, inputs)
  step = () if index is None else (index[0],)
  row = _Row(pl.program_id(0), x.shape[-1])
  held = row.load(x)
  if branch is not None:
    h = row.load(branch.h)
    if branch.bias is not None:
      h += row.load(branch.bias)
    h = row.drop(h, branch.seeds, rate, slots)
    if branch.gate is not None:
      h *= row.modulated(branch.gate, -1, step)
    held += h
  if norm.modulation is not None:
    shift, gain = (
      row.modulated(norm.modulation, piece, step) for piece in (0, 1)
    )
  if norm.scale is not None:
    scale, bias = row.load(norm.scale), row.load(norm.bias)
  if branch is not None:
    to_x, *outputs = outputs
    row.store(to_x, held)
    held = held.astype(to_x.dtype).astype(jnp.float32)
  mean = row.mean(held)
  held = jnp.where(row.of_row, held - mean, 0.0)
  inverse = jax.lax.rsqrt(row.mean(jnp.square(held)) + 1e-6)
  held *= inverse
  if norm.scale is not None:
    held = fma(held, scale, bias)
  if norm.modulation is not None:
    held = fma(held, 1.0 + gain, shift)
  row.store(outputs[0], held)
  for ref, value in zip(outputs[1:], (mean, inverse), strict=False):
    ref[row.row] = value


def _to_normalised(row, norm, y, to_u, to_modulation):
  """The gradient of y, and by name what vectors get of this row.

  Writes that of the modulation.
  """
  of, to_n = {}, to_u
  if norm.scale is not None:
    scale = row.load(norm.scale)
  if norm.modulation is not None:
    gain = row.modulated(norm.modulation, 1)
    n = y
    if norm.scale is not None:
      n = fma(y, scale, row.load(norm.bias))
    of["shift"], of["gain"] = to_u, to_u * n
    for piece, name in enumerate(("shift", "gain")):
      row.store(to_modulation, of[name], piece)
    to_n = fma(to_u, gain, to_u)
  if norm.scale is None:
    return to_n, of
  of["scale"], of["bias"] = to_n * y, to_n
  return to_n * scale, of


def _backward_kernel(
  structure, made_structure, rate, slots, num_rows, rows, vectors, *refs
):
  count = made_structure.num_leaves
  gradients, made, branch, norm = jax.tree.unflatten(structure, refs[:-count])
  found = jax.tree.unflatten(made_structure, refs[-count:])
  program, width = pl.program_id(0), made[0].shape[-1]
  has_gate = branch is not None and branch.gate is not None

  def step(number, sums):
    place = program * rows + number
    # A row that is not there is the last one, but all its gradients are read as
    # 0, as are those of features that are not there, and nothing is written.
    row = _Row(
      jnp.minimum(place, num_rows - 1), width, is_there=place < num_rows
    )
    # All that is long is loaded before anything waits for a sum.
    to_x = row.raw(gradients[0])
    to_u, x = (row.load(ref) for ref in (gradients[1], made[0]))
    if has_gate:
      h, gate = row.raw(branch.h), row.raw(branch.gate.values)
    mean, inverse = (ref[row.row] for ref in made[1:])
    y = (x - mean) * inverse
    to_y, of = _to_normalised(row, norm, y, to_u, found.modulation)
    along, level = row.mean(to_y * y), row.mean(to_y)
    to_x = to_x.astype(jnp.float32)
    to_x = fma(inverse, fma(y, -along, to_y - level), to_x)
    row.store(found.x, to_x)
    if branch is not None:
      to_h = to_x
      if has_gate:
        h = h.astype(jnp.float32)
        if branch.bias is not None:
          h += row.load(branch.bias)
        of["gate"] = to_x * row.drop(h, branch.seeds, rate, slots)
        row.store(found.gate, of["gate"])
        to_h *= gate.astype(jnp.float32) + row.load(branch.gate.bias)
      to_h = row.drop(to_h, branch.seeds, rate, slots)
      row.store(found.h, to_h)
      of["h"] = to_h
    return tuple(
      total + of[name] for total, name in zip(sums, vectors, strict=True)
    )

  zeros = jnp.zeros((pl.next_power_of_2(width),), jnp.float32)
  sums = jax.lax.fori_loop(0, rows, step, (zeros,) * len(vectors))
  features = jnp.arange(pl.next_power_of_2(width))
  for number, total in enumerate(sums):
    at = found.sums.at[program, number, features]
    plgpu.store(at, total, mask=features < width)
