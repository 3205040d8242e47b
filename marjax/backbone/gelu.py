"""The exact GELU, x · Φ(x), of a product and its bias.

1. float32: jax's own, with erf.
2. bfloat16: float32 arithmetic between two roundings, with

       1 - Φ(x) = (a₁t + ... + a₅t⁵) · exp(-x²/2) / 2,  t = 1/(1 + p·x/√2)

   for x >= 0 (Abramowitz and Stegun, 7.1.26; error of Φ below 4e-7, while
   bfloat16 rounds to 4e-3). XLA's erf takes three times as long as reading and
   writing the array.
3. The backward pass keeps the product alone and computes the rest again:
   d/dx = Φ(x) + x·φ(x), in which φ shares the exponential.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def gelu(product, bias):
  """GELU(product + bias): [..., F] and [F], in the dtype of the product."""
  if product.dtype == jnp.float32:
    return nn.gelu(product + bias, approximate=False)
  return _rounded(product, bias)


@jax.custom_vjp
def _rounded(product, bias):
  x = _sum(product, bias)
  return (x * cdf_and_pdf(x)[0]).astype(product.dtype)


def _forward(product, bias):
  return _rounded(product, bias), (product, bias)


def _backward(kept, gradient):
  product, bias = kept
  # Else XLA keeps what the forward pass computed in float32.
  product = jax.lax.optimization_barrier(product)
  x = _sum(product, bias)
  cdf, pdf = cdf_and_pdf(x)
  dx = (gradient * (cdf + x * pdf)).astype(product.dtype)
  dx = jax.lax.optimization_barrier(dx)
  to_bias = jnp.sum(dx, axis=tuple(range(dx.ndim - 1)), dtype=jnp.float32)
  return dx, to_bias.astype(bias.dtype)


_rounded.defvjp(_forward, _backward)


def _sum(product, bias):
  return product.astype(jnp.float32) + bias.astype(jnp.float32)


def cdf_and_pdf(x):
  """Φ and φ of the standard normal at float32 x; see the module docstring."""
  exponential = jnp.exp(-0.5 * jnp.square(x))
  # A reciprocal: float32 division takes more instructions on GPUs.
  t = jax.lax.rsqrt(jnp.square(1.0 + (_P / math.sqrt(2.0)) * jnp.abs(x)))
  series = jnp.float32(_A[-1])
  for coefficient in reversed(_A[:-1]):
    series = series * t + jnp.float32(coefficient)
  tail = 0.5 * series * t * exponential
  cdf = jnp.where(x < 0.0, tail, 1.0 - tail)
  return cdf, exponential * (1.0 / math.sqrt(2.0 * math.pi))
