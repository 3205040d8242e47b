"""Linear layers and LayerNorm as every part of MAR uses them.

1. Parameters are float32 and carry logical axis names; what the names mean on
   a mesh is decided elsewhere.
2. Matmuls run in the dtype of the config, norms always in float32.
3. Initialisation: xavier-uniform kernels, zero biases, unless told otherwise.
"""

import flax.linen as nn
import jax.numpy as jnp

xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros_init()


def small_normal(key, shape, dtype=jnp.float32):
  """N(0, 0.02), the initialisation of tables and tokens."""
  return nn.initializers.normal(0.02)(key, shape, dtype)


def linear(
  features: int | tuple[int, ...],
  axes: tuple[str | None, ...],
  *,
  dtype=jnp.float32,
  kernel_init=xavier,
  axis: int | tuple[int, ...] = -1,
) -> nn.DenseGeneral:
  """A biased linear layer.

  Args:
    features: output size(s).
    axes: logical names of the kernel's axes, inputs first; the bias takes
      those of the outputs.
    dtype: of the matmul and its result.
    kernel_init: initializer of the kernel, which sees it as one matrix.
    axis: input axes that are contracted.
  """
  num_inputs = 1 if isinstance(axis, int) else len(axis)
  return nn.DenseGeneral(
    features=features,
    axis=axis,
    dtype=dtype,
    kernel_init=nn.with_logical_partitioning(kernel_init, axes),
    bias_init=nn.with_logical_partitioning(zeros, axes[num_inputs:]),
  )


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
