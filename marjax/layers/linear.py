"""Linear layers as every part of MAR uses them.

1. Parameters are float32 and carry logical axis names; what the names mean on
   a mesh is decided elsewhere.
2. Matmuls run in the dtype of the config. What is float32 by rule asks for full
   precision too: accelerators would otherwise round the factors of its products
   (to 10 bits on GPUs, to 8 on TPUs).
3. Initialisation: xavier-uniform kernels, zero biases, unless told otherwise.
"""

import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from marjax.layers.placed import platform

xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros_init()


def small_normal(key, shape, dtype=jnp.float32):
  """N(0, 0.02), the initialisation of tables and tokens."""
  return nn.initializers.normal(0.02)(key, shape, dtype)


def parameter(module: nn.Module, name: str, initializer, shape):
  """`module.param`, quickly where there is one of that shape.

  Linen runs the initializer abstractly each time, to compare shapes: an eighth
  of the time to trace a generation.
  """
  if module.has_variable("params", name):
    found = nn.unbox(module.get_variable("params", name))
    if found.shape == shape:
      return found
  return module.param(name, initializer, shape)


class Linear(nn.Module):
  """A biased linear layer over one or several axes.

  It is `nn.DenseGeneral`, but initialised outside the box that carries the
  axis names: linen's own constrains the flattened kernel to the axes of the
  unflattened one, which fails under a mesh.

  Attributes:
    features: output sizes.
    axes: logical names of the kernel's axes, inputs first; the bias takes
      those of the outputs.
    dtype: of the matmul and its result; parameters are float32.
    kernel_init: initializer of the kernel, which sees it as one matrix.
    precision: of the matmul; None leaves it to jax's settings.
    out_dtype: of its sums, its result and the bias; None for dtype.
  """

  features: tuple[int, ...]
  axes: tuple[str | None, ...]
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = xavier
  precision: Literal["highest"] | None = None
  out_dtype: jnp.dtype | None = None

  @nn.compact
  def weights(self, inputs: tuple[int, ...]):
    """Kernel [*inputs, *features] and bias [*features], in their dtypes."""
    num_inputs = len(inputs)
    shape = (*inputs, *self.features)

    def init(key, shape):
      matrix = (math.prod(shape[:num_inputs]), math.prod(self.features))
      return self.kernel_init(key, matrix, jnp.float32).reshape(shape)

    kernel = parameter(
      self, "kernel", nn.with_logical_partitioning(init, self.axes), shape
    )
    bias = parameter(
      self,
      "bias",
      nn.with_logical_partitioning(zeros, self.axes[num_inputs:]),
      self.features,
    )
    out_dtype = self.dtype if self.out_dtype is None else self.out_dtype
    return kernel.astype(self.dtype), bias.astype(out_dtype)

  def __call__(self, x):
    num_inputs = len(self.axes) - len(self.features)
    kernel, bias = self.weights(x.shape[-num_inputs:])
    return product(x, kernel, bias, self.precision, self.out_dtype)


def product(x, kernel, bias=None, precision=None, out_dtype=None):
  """x [*batch, *inputs] times a kernel [*inputs, *features], plus a bias.

  The bias is [*features]; without one, features are one axis. It is summed in
  `out_dtype`, which the result has; None for that of the kernel. All batch axes
  are one: otherwise XLA's CPU backend takes longer over the gradient (118
  against 94 ms for a head of width 128).

  The bias is added before the outputs get their axes where cuBLAS can then do
  it, and after that elsewhere: on TPUs outputs of two axes would be moved to
  get their own, which doubled the traffic of a generation.
  """
  features = kernel.shape[-1 if bias is None else -bias.ndim :]
  batch_shape = x.shape[: x.ndim + len(features) - kernel.ndim]
  kernel = kernel.reshape(-1, math.prod(features))
  rows = x.astype(kernel.dtype).reshape(-1, kernel.shape[0])
  made = jnp.dot(
    rows, kernel, precision=precision, preferred_element_type=out_dtype
  )
  if bias is not None and platform() == "gpu":
    made, bias = made + bias.reshape(-1), None
  made = made.reshape(*batch_shape, *features)
  return made if bias is None else made + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def shared(x, count: int):
  """x, so many times, for products whose gradients cuBLAS is to add up.

  XLA has a product take what is added to it if the product stands on the left
  and takes nothing yet. jax puts the sum there, of which XLA looks at the last
  product: every second sum was a kernel. The sums are the same.
  """
  return (x,) * count


def _shared_forward(x, count):
  return (x,) * count, None


def _shared_backward(count, kept, gradients):
  del count, kept
  *others, total = gradients
  for gradient in reversed(others):
    total = gradient + total
  return (total,)


shared.defvjp(_shared_forward, _shared_backward)


def linear(
  features: int | tuple[int, ...], axes: tuple[str | None, ...], **kwargs
) -> Linear:
  """A `Linear`; `features` may be a single size."""
  if isinstance(features, int):
    features = (features,)
  return Linear(features, axes, **kwargs)
