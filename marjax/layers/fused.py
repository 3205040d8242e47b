"""What kernels compute on NVIDIA GPUs, and plain code everywhere else.

    traced for    NVIDIA GPUs   others
    value         forward       plain
    gradients     backward      plain, differentiated

XLA chooses when it lowers a program for a platform. On a mesh each device runs
kernels on its own parts, as XLA cannot split them; what a device finds for an
array that is not split by images, a vector of weights, is summed over devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import PyTree

from marjax.arrays import no_gradient
from marjax.layers.placed import by_device, has_kernels, is_axes


def fused(
  plain: Callable,
  forward: Callable,
  backward: Callable | None,
  arrays: tuple,
  axes: Any = None,
  *,
  fits: bool = True,
  name: str = "fused",
) -> PyTree:
  """plain(*arrays), by kernels on NVIDIA GPUs; arrays may be trees of them.

  Args:
    plain: arrays to results; its own gradients are right.
    forward: arrays to results, and what `backward` needs besides.
    backward: (arrays, results, needed, gradients of results) to the gradients
      of arrays, in their form but of any dtype and without those of integers.
      None if a program with gradients is to be the plain one.
    arrays: what they are computed of.
    axes: logical axes of arrays, results and what is needed, see `by_device`;
      None if XLA can split `forward` by itself.
    fits: whether kernels are for such arrays.
    name: what checkpoint policies call results and what is needed.
  """
  if not (fits and has_kernels()):
    return plain(*arrays)
  if axes is not None:
    forward = by_device(forward, axes[0], axes[1:])

  @jax.custom_vjp
  def run(*arrays):
    return choose(lambda *arrays: forward(*arrays)[0], plain, *arrays)

  def run_forward(*arrays):
    def plain_too(*arrays):
      needed = jax.eval_shape(forward, *arrays)[1]
      return plain(*arrays), jax.tree.map(jnp.zeros_like, needed)

    both = choose(forward, plain_too, *arrays)
    results, needed = checkpoint_name(both, name)
    return results, (arrays, results, needed)

  def run_backward(residuals, gradients):
    return _pulled(plain, backward, axes, *residuals, gradients)

  if backward is None:
    run.defvjp(
      lambda *arrays: jax.vjp(plain, *arrays), lambda pull, to: pull(to)
    )
  else:
    run.defvjp(run_forward, run_backward)
  return run(*arrays)


def choose(kernel: Callable, plain: Callable, *arrays) -> PyTree:
  """kernel(*arrays) in programs for NVIDIA GPUs, plain(*arrays) in others."""
  return jax.lax.platform_dependent(*arrays, cuda=kernel, default=plain)


def _pulled(plain, backward, axes, *inputs):
  """The gradients of arrays, in their form and dtypes."""
  # A choice cannot give the gradients that jax has for integers.
  places = jax.tree.map(
    lambda at, leaf: at if _is_real(leaf) else None,
    axes[0],
    inputs[0],
    is_leaf=is_axes,
  )

  def each(function, *trees):
    return jax.tree.map(function, places, *trees, is_leaf=is_axes)

  def on_device(*inputs):
    parts = backward(*inputs)
    return each(lambda at, one: one if "batch" in at else one[None], parts)

  def by_kernel(*inputs):
    outputs = each(lambda at: at if "batch" in at else ("batch", *at))
    parts = by_device(on_device, (*axes, axes[1]), outputs)(*inputs)

    def whole(at, one, real):
      one = one if "batch" in at else jnp.sum(one, axis=0)
      return one.astype(real.dtype)

    return each(whole, parts, _split(inputs[0])[0])

  def by_plain(arrays, results, needed, gradients):
    del results, needed
    reals, integers = _split(arrays)
    pull = jax.vjp(lambda reals: plain(*_merged(reals, integers)), reals)[1]
    return pull(gradients)[0]

  of_reals = choose(by_kernel, by_plain, *inputs)
  return _merged(of_reals, no_gradient(_split(inputs[0])[1]))


def _is_real(leaf) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def _split(tree):
  """The tree's real numbers, and its integers, with None in place of others."""
  return (
    jax.tree.map(lambda leaf: leaf if _is_real(leaf) else None, tree),
    jax.tree.map(lambda leaf: None if _is_real(leaf) else leaf, tree),
  )


def _merged(reals, integers):
  return jax.tree.map(
    lambda real, integer: integer if real is None else real,
    reals,
    integers,
    is_leaf=lambda leaf: leaf is None,
  )
