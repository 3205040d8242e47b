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
from jaxtyping import Array

from marjax.arrays import no_gradient
from marjax.layers.dropout import drop, entry_seeds
from marjax.layers.gpu import add_norm as kernels
from marjax.layers.norm import normalized
from marjax.layers.placed import by_device, has_kernels


class Modulation(NamedTuple):
  """What y says about one block.

  Attributes:
    values: [*batch, 3 · W], shift, gain and gate, or what is wanted of them:
      the first 2 · W for a norm, the last W for a branch. With a first axis
      more if they are those of several timesteps.
    bias: to be added: [3 · W], or [2 · W] without a gate.
  """

  values: Array
  bias: Array


class Branch(NamedTuple):
  """What is added to x.

  Attributes:
    h: [*batch, W]. bias: [W], b, or None. gate: or None.
    seeds: two uint32 of dropout, see there, or None; x is then [B, P, W].
  """

  h: Array
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


def add_norm(x, branch: Branch | None, norm: Norm, dtype, rate=0.0, index=None):
  """(x, u) of the module docstring, both [*batch, W], u in the dtype.

  Args:
    x: [*batch, W]. branch: None adds nothing to it. norm: see there.
    rate: of dropout. index: int32 [], of the timestep, if modulations are those
      of several.
  """
  is_known = x.dtype == jnp.bfloat16 and x.shape[-1] % 128 == 0
  run = _fused if is_known and has_kernels() else _plain
  return run((jnp.dtype(dtype), rate), x, branch, norm, index)


def added(x, branch: Branch | None, rate=0.0, index=None):
  """x of the module docstring, without a norm after it; see `add_norm`."""
  if branch is None:
    return x
  h, _, gate, seeds = branch
  h = h if branch.bias is None else h + branch.bias
  h = h if seeds is None else drop(h, seeds, rate)
  if gate is not None:
    width = x.shape[-1]
    h = (_of_step(gate, index)[..., -width:] + gate.bias[2 * width :]) * h
  return x + h


def _of_step(modulation: Modulation, index):
  return modulation.values if index is None else modulation.values[index]


def _plain(static, x, branch, norm, index):
  dtype, rate = static
  x, ends = added(x, branch, rate, index), 2 * x.shape[-1]
  shift = gain = None
  if norm.modulation is not None:
    values = _of_step(norm.modulation, index)[..., :ends]
    values = values + norm.modulation.bias[:ends]
    shift, gain = jnp.split(values, 2, axis=-1)
  return x, normalized(x, norm.scale, norm.bias, gain, shift, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(static, *arrays):
  """`_plain`, by a kernel on NVIDIA GPUs."""
  return _either(static, *arrays)


def _either(static, *arrays, keeps=False):
  """The results; with `keeps` mean and inverse deviation of each row too."""
  dtype, rate = static

  def kernel(*arrays):
    inputs, axes = _for_kernel(*arrays)
    slots, x, branch, *_ = axes[0], *inputs
    outputs = (slots,) if branch is None else (slots, slots)
    outputs += (slots[:-1], slots[:-1]) if keeps else ()
    run = functools.partial(kernels.forward, dtype, rate, keeps)
    made = by_device(run, axes, outputs)(*inputs)
    return (x, *made) if branch is None else made

  def plain(*arrays):
    made = _plain(static, *arrays)
    # Only the kernel of the backward pass wants them.
    row = jnp.zeros(made[0].shape[:-1], jnp.float32)
    return (*made, row, row) if keeps else made

  return jax.lax.platform_dependent(*arrays, cuda=kernel, default=plain)


def _forward(static, *arrays):
  if arrays[-1] is not None:
    return _either(static, *arrays), (arrays, None)
  x, u, *rows = _either(static, *arrays, keeps=True)
  return (x, u), (arrays, (x, *rows))


def _backward(static, kept, gradients):
  (x, branch, norm, index), made = kept
  seeds = None if branch is None else branch.seeds
  # No argument of the functions below: it has no gradient.
  branch = branch and branch._replace(seeds=None)

  def plain(gradients, x, branch, norm, made):
    del made

    def run(x, branch, norm):
      branch = branch and branch._replace(seeds=seeds)
      return _plain(static, x, branch, norm, index)

    return jax.vjp(run, x, branch, norm)[1](gradients)

  def kernel(gradients, x, branch, norm, made):
    given = branch and branch._replace(
      h=None if branch.gate is None else branch.h, seeds=seeds
    )
    (_, given, *_), (slots, *axes) = _for_kernel(x, given, norm)
    outputs = kernels.Gradients(
      slots,
      None if branch is None else slots,
      None if branch is None or branch.gate is None else slots,
      None if norm.modulation is None else slots,
      ("batch", None, None),
    )
    run = by_device(
      functools.partial(kernels.backward, static[1]),
      ((slots, slots), (slots, slots[:-1], slots[:-1]), *axes[:2]),
      outputs,
    )
    return _assembled(run(gradients, made, given, norm), branch, norm)

  arrays = (gradients, x, branch, norm, made)
  # Nobody trains with modulations of several timesteps.
  if index is not None:
    found = plain(*arrays)
  else:
    found = jax.lax.platform_dependent(*arrays, cuda=kernel, default=plain)
  to_x, to_branch, to_norm = found
  if seeds is not None:
    to_branch = to_branch._replace(seeds=no_gradient(seeds))
  return to_x, to_branch, to_norm, no_gradient(index)


_fused.defvjp(_forward, _backward)


def _assembled(found, branch, norm):
  """The gradients in the form of what they are of."""
  names = kernels.vectors_of(branch, norm)
  sums = dict(zip(names, jnp.sum(found.sums, axis=0), strict=True))

  def placed(like, before, *names):
    made = jnp.concatenate([sums[name] for name in names])
    after = len(like) - before - len(made)
    return jnp.pad(made, (before, after)).astype(like.dtype)

  to_branch = modulation = None
  if branch is not None:
    bias, gate, width = branch.bias, branch.gate, found.h.shape[-1]
    to_branch = Branch(
      found.h,
      None if bias is None else placed(bias, 0, "h"),
      gate and Modulation(found.gate, placed(gate.bias, 2 * width, "gate")),
    )
  if norm.modulation is not None:
    bias = placed(norm.modulation.bias, 0, "shift", "gain")
    modulation = Modulation(found.modulation, bias)
  return (
    found.x,
    to_branch,
    Norm(sums.get("scale"), sums.get("bias"), modulation),
  )


def _for_kernel(x, branch, norm, index=None):
  """What kernels take, and the logical axes of it."""
  slots = ("batch", *(None,) * (x.ndim - 1))
  lead = () if index is None else (None,)

  def modulation(given):
    return given and Modulation((*lead, *slots), (None,))

  axes_of_branch = None
  if branch is not None:
    if branch.seeds is not None:
      branch = branch._replace(seeds=entry_seeds(branch.seeds, x.shape[0]))
    axes_of_branch = Branch(
      None if branch.h is None else slots,
      None if branch.bias is None else (None,),
      modulation(branch.gate),
      None if branch.seeds is None else ("batch",),
    )
  vector = None if norm.scale is None else (None,)
  axes_of_norm = Norm(vector, vector, modulation(norm.modulation))
  axes = (slots, axes_of_branch, axes_of_norm, index if index is None else ())
  return (x, branch, norm, index), axes
