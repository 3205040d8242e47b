"""LayerNorm, plain and adaptive, with a backward pass of its own.

    y = (x - mean) / √(variance + 1e-6)    along the last axis
    n = y · scale + bias                   learned, one number per feature
    h = n · (1 + gain) + shift             given with x: adaLN, arXiv 2212.09748

All in float32 and rounded once, at the end. Differentiated as it stands, XLA
would keep or recompute y as a float32 array, which costs more than all of its
arithmetic. The backward pass keeps x as it is, mean and inverse deviation of
each row, and the gain.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from marjax.layers.linear import parameter, zeros


class LayerNorm(nn.Module):
  """LayerNorm over the last axis; see the module docstring.

  Attributes:
    axis: logical name of the axis. affine: whether to learn scale and bias.
    dtype: of the result; parameters are float32.
  """

  axis: str = "embed"
  affine: bool = True
  dtype: jnp.dtype = jnp.dtype(jnp.float32)

  @nn.compact
  def weights(self, width: int):
    """Scale and bias [W], float32, or None twice."""
    if not self.affine:
      return None, None

    def vector(name, initializer):
      boxed = nn.with_logical_partitioning(initializer, (self.axis,))
      return parameter(self, name, boxed, (width,))

    return vector("scale", nn.initializers.ones_init()), vector("bias", zeros)

  def __call__(self, x, gain=None, shift=None):
    """x [..., W] to [..., W]; gain and shift [..., W] make it adaptive."""
    weights = self.weights(x.shape[-1])
    return normalized(x, *weights, gain, shift, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def normalized(x, scale, bias, gain, shift, dtype):
  """h of the module docstring, in a dtype.

  scale and bias [W], or gain and shift [..., W], may both be None.
  """
  return _forward(x, scale, bias, gain, shift, dtype)[0]


def _forward(x, scale, bias, gain, shift, dtype):
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(variance + 1e-6)
  h = _affine((wide - mean) * inverse, scale, bias)
  if gain is not None:
    h = h * (1 + gain.astype(jnp.float32)) + shift.astype(jnp.float32)
  return h.astype(dtype), (x, mean, inverse, scale, bias, gain)


def _backward(dtype, kept, gradient):
  del dtype
  x, mean, inverse, scale, bias, gain = kept
  # Else XLA keeps y of the forward pass.
  x = jax.lax.optimization_barrier(x)
  y = (x.astype(jnp.float32) - mean) * inverse
  to_gain = to_shift = to_scale = to_bias = None
  to_n = gradient.astype(jnp.float32)
  if gain is not None:
    to_gain = (to_n * _affine(y, scale, bias)).astype(gain.dtype)
    to_shift = gradient.astype(gain.dtype)
    to_n = to_n * (1 + gain.astype(jnp.float32))
  to_y = to_n
  if scale is not None:
    rows = tuple(range(x.ndim - 1))
    to_scale, to_bias = jnp.sum(to_n * y, rows), jnp.sum(to_n, rows)
    to_y = to_n * scale
  along = jnp.mean(to_y * y, axis=-1, keepdims=True)
  level = jnp.mean(to_y, axis=-1, keepdims=True)
  to_x = (inverse * (to_y - level - y * along)).astype(x.dtype)
  return to_x, to_scale, to_bias, to_gain, to_shift


normalized.defvjp(_forward, _backward)


def _affine(y, scale, bias):
  return y if scale is None else y * scale + bias
