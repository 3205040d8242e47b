"""GELU and the dropout after it as kernels for NVIDIA GPUs.

    y = drop(x · Φ(x))    x = product + bias

XLA takes 37 instructions for each element, a third of them for the exponential,
which last longer than reading and writing the array; here the chip's own
exponential and reciprocal make it 22.

1. A program works on some slots of one image and some features, a part of them
   at a time.
2. The backward kernel computes everything from the product again and sums the
   bias's gradient over its slots.

`marjax.backbone.gelu` computes the same without them.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from marjax.dropout import row_hashes, survives
from marjax.instructions import exp2, fma, reciprocal

P = 0.3275911
A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""Of Abramowitz and Stegun, 7.1.26, see `marjax.backbone.gelu`."""

_ELEMENTS = 1024
_SLOTS = 32
"""Elements of a part; slots of a program."""


class Inputs(NamedTuple):
  """What both passes are given.

  Attributes:
    product: bfloat16 [B, P, F]. bias: [F].
    seeds: uint32 [B], `dropout.entry_seeds`; unused without dropout.
    features: int32 [F], their indices among those of all devices.
  """

  product: Any
  bias: Any
  seeds: Any
  features: Any


@functools.partial(jax.jit, static_argnums=(0, 2))
def forward(rate: float, inputs: Inputs, interpret=False):
  """y [B, P, F] in the dtype of the product.

  Args:
    rate: share that is dropped.
    interpret: run on any platform, slowly.
  """
  outputs = [inputs.product]
  return _call("gelu", _forward_kernel, rate, inputs, (), outputs, interpret)[0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def backward(rate: float, inputs: Inputs, gradient, interpret=False):
  """Gradients of the product, and of the bias in float32, given that of y."""
  batch, slots, width = inputs.product.shape
  sums = jax.ShapeDtypeStruct(
    (batch, pl.cdiv(slots, _SLOTS), width), jnp.float32
  )
  outputs = [inputs.product, sums]
  to_product, sums = _call(
    *("gelu_backward", _backward_kernel, rate, inputs, (gradient,)),
    *(outputs, interpret),
  )
  return to_product, jnp.sum(sums, axis=(0, 1))


def _call(name, kernel, rate, inputs, more, outputs, interpret):
  batch, slots, width = inputs.product.shape

  def body(*refs):
    own = _Program(rate, Inputs(*refs[: len(inputs)]))
    kernel(own, *refs[len(inputs) :])

  return pl.pallas_call(
    body,
    name=name,
    grid=(width // _columns(width), pl.cdiv(slots, _SLOTS), batch),
    out_shape=[
      jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
    interpret=interpret,
  )(*inputs, *more)


def _columns(width: int) -> int:
  return math.gcd(width, 512)


class _Program:
  """Which part of the arrays a program works on."""

  def __init__(self, rate, inputs: Inputs):
    self.product, bias, seeds, features = inputs
    column, self.block, self.image = (pl.program_id(axis) for axis in range(3))
    size = _columns(self.product.shape[-1])
    self.columns = pl.ds(column * size, size)
    self.rows = min(_SLOTS, _ELEMENTS // size)
    self.num_slots = self.product.shape[1]
    self.bias = plgpu.load(bias.at[self.columns]).astype(jnp.float32)
    self.rate = rate
    if rate:
      self.seed = seeds[self.image]
      self.features = plgpu.load(features.at[self.columns]).astype(jnp.uint32)

  @property
  def num_parts(self) -> int:
    return _SLOTS // self.rows

  def place(self, ref, part):
    """Where a part is in an array [B, P, F], and which of its rows exist."""
    first = self.block * _SLOTS + part * self.rows
    inside = (first + jnp.arange(self.rows) < self.num_slots)[:, None]
    rows = pl.ds(first, self.rows)
    return ref.at[self.image, rows, self.columns], inside

  def load(self, ref, part):
    at, inside = self.place(ref, part)
    return plgpu.load(at, mask=inside, other=0.0).astype(jnp.float32)

  def store(self, ref, part, value):
    at, inside = self.place(ref, part)
    plgpu.store(at, value.astype(ref.dtype), mask=inside)

  def drop(self, part, value):
    if not self.rate:
      return value
    first = self.block * _SLOTS + part * self.rows
    slots = (first + jnp.arange(self.rows)).astype(jnp.uint32)[:, None]
    rows = row_hashes(self.seed, slots)
    kept = survives(rows, self.features[None, :], self.rate)
    return jnp.where(kept, value * (1.0 / (1.0 - self.rate)), 0.0)


def _forward_kernel(own, made):
  def step(part, carry):
    x = own.load(own.product, part) + own.bias[None, :]
    tail, _ = _tail(x)
    y = fma(-jnp.abs(x), tail, jnp.maximum(x, 0.0))
    own.store(made, part, own.drop(part, y))
    return carry

  jax.lax.fori_loop(0, own.num_parts, step, 0)


def _backward_kernel(own, gradient, to_product, sums):
  def step(part, total):
    x = own.load(own.product, part) + own.bias[None, :]
    tail, exponential = _tail(x)
    cdf = jnp.where(x < 0.0, tail, 1.0 - tail)
    slope = fma(x, exponential * (1.0 / math.sqrt(2.0 * math.pi)), cdf)
    to_y = own.drop(part, own.load(gradient, part))
    to_x = (to_y * slope).astype(to_product.dtype)
    own.store(to_product, part, to_x)
    # Beyond the slots the gradient was loaded as 0.
    return total + to_x.astype(jnp.float32)

  total = jnp.zeros((own.rows, own.bias.shape[0]), jnp.float32)
  total = jax.lax.fori_loop(0, own.num_parts, step, total)
  total = jnp.sum(total, axis=0)
  plgpu.store(sums.at[own.image, own.block, own.columns], total)


def _tail(x):
  """1 - Φ(|x|), and the exponential in it, as in `marjax.backbone.gelu`."""
  exponential = exp2((x * (-0.5 * math.log2(math.e))) * x)
  t = reciprocal(fma(jnp.abs(x), P / math.sqrt(2.0), 1.0))
  series = 0.5 * A[-1]
  for coefficient in reversed(A[:-1]):
    series = fma(series, t, 0.5 * coefficient)
  return series * t * exponential, exponential
