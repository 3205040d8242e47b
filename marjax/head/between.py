"""What lies between the products of two blocks of the denoiser.

    x ← x + gate · h                    end of one block, h of its last product
    u = norm(x) · (1 + gain) + shift    beginning of the next, or the last norm

float32 between roundings of x and u. On NVIDIA GPUs and in bfloat16 it is one
kernel where the modulations are those of several timesteps, as a sampler has
them: a program holds one row of x, so all is one reading and one writing of it,
and takes the step's modulations out itself. XLA would copy those twice and
round in between.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from marjax.arrays import no_gradient
from marjax.linear import by_device, has_kernels
from marjax.norm import normalized


class Modulation(NamedTuple):
  """One layer's.

  Attributes:
    values: [*batch, 3 · W] shift, gain and gate, or [*batch, 2 · W] without a
      gate; with a first axis more if they are those of several timesteps.
    bias: [3 · W] or [2 · W], to be added.
  """

  values: Array
  bias: Array


class Ends(NamedTuple):
  """What one block ends with.

  Attributes:
    h: [*batch, W]. modulation: with its gate.
  """

  h: Array
  modulation: Modulation


class Begins(NamedTuple):
  """What the next one begins with.

  Attributes:
    modulation: with u's shift and gain.
    scale, bias: float32 [W] of the norm, or None.
  """

  modulation: Modulation
  scale: Array | None
  bias: Array | None


def between(x, ends: Ends | None, begins: Begins, dtype, index=None):
  """(x, u) of the module docstring, both [*batch, W], u in the dtype.

  Args:
    x: [*batch, W]. ends: None adds nothing to it. begins: see there.
    index: int32 [], of the timestep, if modulations are those of several.
  """
  width = x.shape[-1]
  is_known = x.dtype == jnp.bfloat16 and width % 128 == 0
  if index is None or not is_known or not has_kernels():
    return _plain(dtype, x, ends, begins, index)
  return _fused(jnp.dtype(dtype), x, ends, begins, index)


def _plain(dtype, x, ends, begins, index):
  def cut(modulation):
    values = modulation.values
    values = values if index is None else values[index]
    return jnp.split(
      values + modulation.bias, values.shape[-1] // x.shape[-1], axis=-1
    )

  if ends is not None:
    x = x + cut(ends.modulation)[2] * ends.h
  shift, gain, *_ = cut(begins.modulation)
  return x, normalized(x, begins.scale, begins.bias, gain, shift, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(dtype, *arrays):
  """`_plain`, by a kernel on NVIDIA GPUs."""

  def kernel(*arrays):
    axes = _axes(*arrays)
    run = by_device(functools.partial(call_kernel, dtype), axes, (axes[0],) * 2)
    return run(*arrays)

  return jax.lax.platform_dependent(
    *arrays, cuda=kernel, default=functools.partial(_plain, dtype)
  )


def _forward(dtype, *arrays):
  return _fused(dtype, *arrays), arrays


def _backward(dtype, arrays, gradients):
  *floats, index = arrays
  _, pull = jax.vjp(lambda *args: _plain(dtype, *args, index), *floats)
  return (*pull(gradients), no_gradient(index))


_fused.defvjp(_forward, _backward)


def _axes(x, ends, begins, index):
  """Logical axes of what a kernel takes, in its form."""
  slots = ("batch", *(None,) * (x.ndim - 1))
  modulation = Modulation((None, *slots), (None,))
  vector = None if begins.scale is None else (None,)
  return (
    slots,
    None if ends is None else Ends(slots, modulation),
    Begins(modulation, vector, vector),
    (None,) * index.ndim,
  )


@functools.partial(jax.jit, static_argnums=(0, 5))
def call_kernel(dtype, x, ends, begins, index, interpret: bool = False):
  """`between` by the kernel; `interpret` runs it on any platform, slowly."""
  width, rows = x.shape[-1], math.prod(x.shape[:-1])

  def by_rows(array):
    lead = array.shape[: array.ndim - x.ndim]
    return array.reshape(*lead, rows, array.shape[-1])

  def flat(modulation):
    return Modulation(by_rows(modulation.values), modulation.bias)

  inputs = (
    jnp.reshape(index, (1,)).astype(jnp.int32),
    by_rows(x),
    None if ends is None else Ends(by_rows(ends.h), flat(ends.modulation)),
    begins._replace(modulation=flat(begins.modulation)),
  )
  refs, structure = jax.tree.flatten(inputs)
  made = pl.pallas_call(
    functools.partial(_kernel, structure),
    name="between",
    grid=(rows,),
    out_shape=[
      jax.ShapeDtypeStruct((rows, width), kind) for kind in (x.dtype, dtype)
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
    interpret=interpret,
  )(*refs)
  return tuple(array.reshape(x.shape) for array in made)


def _kernel(structure, *refs):
  *inputs, new_x, u = refs
  index, x, ends, begins = jax.tree.unflatten(structure, inputs)
  row, step, width = pl.program_id(0), index[0], x.shape[-1]
  # A program's arrays have a power of 2.
  size = pl.next_power_of_2(width)
  features = jnp.arange(size)
  inside = features < width

  def load(ref, *at, first=0):
    at = ref.at[(*at, first + features)]
    return plgpu.load(at, mask=inside, other=0.0).astype(jnp.float32)

  def modulated(one, part):
    first = part * width
    bias = load(one.bias, first=first)
    return load(one.values, step, row, first=first) + bias

  # All is loaded before anything waits for a sum.
  held = load(x, row)
  if ends is not None:
    held += modulated(ends.modulation, 2) * load(ends.h, row)
  shift, gain = (modulated(begins.modulation, part) for part in (0, 1))
  if begins.scale is not None:
    scale, bias = load(begins.scale), load(begins.bias)
  made = held.astype(new_x.dtype)
  held = made.astype(jnp.float32)
  held = jnp.where(inside, held - jnp.sum(held) / width, 0.0)
  held *= jax.lax.rsqrt(jnp.sum(jnp.square(held)) / width + 1e-6)
  if begins.scale is not None:
    held = held * scale + bias
  held = held * (1 + gain) + shift
  plgpu.store(new_x.at[row, features], made, mask=inside)
  plgpu.store(u.at[row, features], held.astype(u.dtype), mask=inside)
