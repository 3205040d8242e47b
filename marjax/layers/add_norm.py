"""What a residual branch ends with and the next one begins with.

    x ← x + gate · drop(h + b)              end of a branch, b its last bias
    u = norm(x) · (1 + gain) + shift        beginning of the next

A transformer block has no gate, gain and shift, the denoiser no dropout; any of
them may be missing. float32 between roundings of x and u.

On NVIDIA GPUs and in bfloat16 each direction is one kernel, which reads and
writes every array once; XLA's code reads x three times forward, and more often
backward, where columns are summed apart. The kernels are also for a sampler
that has the modulations of several timesteps: they take the step's out
themselves, which XLA would copy.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from marjax.layers.dropout import drop
from marjax.layers.fused import fused
from marjax.layers.gpu import add_norm as kernels
from marjax.layers.norm import normalized


class Modulation(NamedTuple):
  """What y says about the beginning or the end of a block.

  Attributes:
    values: [*batch, 2 · W], shift and gain of a norm, or [*batch, W], the gate
      of a branch, or [*batch, 3 · W], of which each takes its part; with an
      axis [C] in front if they are those of several timesteps.
    bias: to be added: [2 · W], [W] or [3 · W].
  """

  values: Array
  bias: Array


class Branch(NamedTuple):
  """What is added to x.

  Attributes:
    h: [*batch, W]. bias: [W], b, or None. gate: or None.
    seeds: uint32 [B], of dropout's entries, or None.
  """

  h: Array | None
  bias: Array | None = None
  gate: Modulation | None = None
  seeds: Array | None = None


class Norm(NamedTuple):
  """How the sum is normalised.

  Attributes:
    scale, bias: float32 [W], or both None. modulation: shift and gain, or None.
  """

  scale: Array | None
  bias: Array | None
  modulation: Modulation | None = None


def add_norm(
  x: Float[Array, "*batch W"],
  branch: Branch | None,
  norm: Norm,
  dtype,
  rate: float = 0.0,
  index: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "*batch W"], Float[Array, "*batch W"]]:
  """(x, u) of the module docstring, u in the dtype.

  Args:
    x: the residual stream. branch: None adds nothing to it. norm: see there.
    rate: of dropout.
    index: of the timestep, if modulations are those of several.
  """

  def backward(arrays, results, rows, gradients):
    _, branch, norm, index = arrays
    if branch is not None and branch.gate is None:
      # Nothing needs it: it is not to wait for this.
      branch = branch._replace(h=None)
    rows = (results[0], *rows)
    return *kernels.backward(rate, gradients, rows, branch, norm), index

  dtype, arrays = jnp.dtype(dtype), (x, branch, norm, index)
  slots = _axes(x, x)
  return fused(
    functools.partial(_plain, dtype, rate),
    functools.partial(kernels.forward, dtype, rate),
    # Nobody trains with modulations of several timesteps.
    backward if index is None else None,
    arrays,
    (_axes(x, arrays), (slots, slots), (slots[:-1], slots[:-1])),
    fits=x.dtype == jnp.bfloat16 and x.shape[-1] % 128 == 0,
  )


def added(
  x: Float[Array, "*batch W"],
  branch: Branch | None,
  rate: float = 0.0,
  index: Int[Array | np.ndarray, ""] | None = None,
) -> Float[Array, "*batch W"]:
  """x of the module docstring, without a norm after it; see `add_norm`."""
  if branch is None:
    return x
  h, _, gate, seeds = branch
  h = h if branch.bias is None else h + branch.bias
  h = drop(h, seeds, rate)
  if gate is not None:
    width = x.shape[-1]
    h = (_of_step(gate, index)[..., -width:] + gate.bias[-width:]) * h
  return x + h


def _of_step(modulation: Modulation, index):
  return modulation.values if index is None else modulation.values[index]


def _plain(dtype, rate, x, branch, norm, index):
  x, shift, gain = added(x, branch, rate, index), None, None
  if norm.modulation is not None:
    values, ends = _of_step(norm.modulation, index), 2 * x.shape[-1]
    values = values[..., :ends] + norm.modulation.bias[:ends]
    shift, gain = jnp.split(values, 2, axis=-1)
  return x, normalized(x, norm.scale, norm.bias, gain, shift, dtype)


def _axes(x, arrays):
  """Logical axes: slots and seeds are split by images, vectors are not."""

  def of(array):
    if array.dtype == jnp.uint32:
      return ("batch",)
    before = array.ndim - x.ndim
    if before < 0:
      return (None,) * array.ndim
    return (*(None,) * before, "batch", *(None,) * (x.ndim - 1))

  return jax.tree.map(of, arrays)
