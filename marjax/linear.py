"""Linear layers and LayerNorm as every part of MAR uses them.

1. Parameters are float32 and carry logical axis names; what the names mean on
   a mesh is decided elsewhere.
2. Matmuls run in the dtype of the config, norms always in float32.
3. Initialisation: xavier-uniform kernels, zero biases, unless told otherwise.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros_init()


def small_normal(key, shape, dtype=jnp.float32):
  """N(0, 0.02), the initialisation of tables and tokens."""
  return nn.initializers.normal(0.02)(key, shape, dtype)


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
  """

  features: tuple[int, ...]
  axes: tuple[str | None, ...]
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = xavier

  @nn.compact
  def __call__(self, x):
    num_inputs = len(self.axes) - len(self.features)
    shape = (*x.shape[-num_inputs:], *self.features)

    def init(key, shape):
      matrix = (math.prod(shape[:num_inputs]), math.prod(self.features))
      return self.kernel_init(key, matrix, jnp.float32).reshape(shape)

    kernel = self.param(
      "kernel", nn.with_logical_partitioning(init, self.axes), shape
    )
    bias = self.param(
      "bias",
      nn.with_logical_partitioning(zeros, self.axes[num_inputs:]),
      self.features,
    )
    # One matrix product: with several batch axes, XLA's CPU backend takes
    # longer over the gradient (118 against 94 ms for a head of width 128).
    inputs = math.prod(shape[:num_inputs])
    batch_shape = x.shape[: x.ndim - num_inputs]
    y = x.astype(self.dtype).reshape(-1, inputs) @ kernel.astype(
      self.dtype
    ).reshape(inputs, -1)
    return y.reshape(*batch_shape, *self.features) + bias.astype(self.dtype)


def linear(
  features: int | tuple[int, ...], axes: tuple[str | None, ...], **kwargs
) -> Linear:
  """A `Linear`; `features` may be a single size."""
  if isinstance(features, int):
    features = (features,)
  return Linear(features, axes, **kwargs)


def layer_norm(axis: str = "embed", *, affine: bool = True) -> nn.LayerNorm:
  """LayerNorm over the last axis, eps 1e-6, computed in float32."""
  return nn.LayerNorm(
    epsilon=1e-6,
    dtype=jnp.float32,
    use_bias=affine,
    use_scale=affine,
    use_fast_variance=False,
    scale_init=nn.with_logical_partitioning(
      nn.initializers.ones_init(), (axis,)
    ),
    bias_init=nn.with_logical_partitioning(zeros, (axis,)),
  )


def constrained(x, axes: tuple[str | None, ...]):
  """On a mesh: x, placed by the logical names of its axes.

  Raises:
    ValueError: two of them go to one mesh axis.
  """
  table = dict(nn.get_logical_axis_rules())
  groups = [table.get(axis) or () for axis in axes]
  used = [
    axis
    for group in groups
    for axis in ((group,) if isinstance(group, str) else group)
  ]
  if len(used) != len(set(used)):
    raise ValueError(
      f"an array has logical axes {axes}, two of which go to one mesh axis;"
      " change the table of rules."
    )
  return nn.with_logical_constraint(x, axes)


def by_batch(x, last: str | None = None):
  """On a mesh: the leading axis split as the batch is, the last as `last` says.

  Said of all that flows between split parameters. Otherwise XLA may gather the
  batch instead of the parameters; and where an axis that parameters split is
  cut up, it has been seen to mix up images on a mesh of three axes.
  """
  if x.ndim == 1:
    return x
  return constrained(x, ("batch", *(None,) * (x.ndim - 2), last))
