"""A product and the exact GELU of it and its bias, x · Φ(x).

1. float32: jax's own, with erf.
2. bfloat16: float32 arithmetic between two roundings, with

       1 - Φ(x) = (a₁t + ... + a₅t⁵) · exp(-x²/2) / 2,  t = 1/(1 + p·x/√2)

   for x >= 0 (Abramowitz and Stegun, 7.1.26; error of Φ below 4e-7, while
   bfloat16 rounds to 4e-3). XLA's erf takes three times as long as reading and
   writing the array.
3. The backward pass keeps the product alone and computes the rest again:
   d/dx = Φ(x) + x·φ(x), in which φ shares the exponential.
4. On NVIDIA GPUs in bfloat16, where there is neither dropout nor a gradient,
   cuBLAS ends its product with a GELU. It has the one with tanh alone, up to
   5e-4 off, but takes the float32 sum, where all others take a rounded product:
   of normal sums the rms error falls from 1.7e-3 to 1.1e-3, the rounding of the
   result included.

DIFFERS: tanh-gelu. The published program's is exact wherever it runs.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from marjax.layers.dropout import drop
from marjax.layers.fused import fused
from marjax.layers.linear import product
from marjax.layers.placed import constrained

_SLOTS = ("batch", "sequence", "mlp")

P = 0.3275911
A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""Of Abramowitz and Stegun, 7.1.26, see the module docstring."""


def gelu_of_product(
  x: Float[Array, "B P W"],
  kernel: Float[Array, "W F"],
  bias: Float[Array, " F"],
  seeds: UInt32[Array, " B"] | None = None,
  rate: float = 0.0,
) -> Float[Array, "B P F"]:
  """GELU(x · kernel + bias), of which a share is dropped.

  Args:
    x: slots. kernel, bias: both with the dtype of the result.
    seeds, rate: see `gelu`.
  """

  def plain(x, kernel, bias):
    inner = constrained(product(x, kernel), _SLOTS)
    return gelu(inner, bias, seeds, rate)

  # XLA has cuBLAS do it for rows in eights only: it pads others first.
  in_eights = math.prod(x.shape[:-1]) % 8 == 0
  fits = seeds is None and kernel.dtype == jnp.bfloat16 and in_eights
  arrays = (x, kernel, bias)
  return fused(plain, _in_cublas, None, arrays, fits=fits)


def _in_cublas(x, kernel, bias):
  """XLA knows the formula; see point 4."""
  activated = nn.gelu(product(x, kernel, bias), approximate=True)
  return constrained(activated, _SLOTS), None


def gelu(
  inner: Float[Array, "B *any F"],
  bias: Float[Array, " F"],
  seeds: UInt32[Array, " B"] | None = None,
  rate: float = 0.0,
) -> Float[Array, "B *any F"]:
  """GELU(inner + bias), of which a share is dropped.

  Args:
    inner: a product; the result has its dtype. bias: to be added.
    seeds, rate: of the dropout, see `dropout.drop`.
  """
  if inner.dtype == jnp.float32:
    return drop(nn.gelu(inner + bias, approximate=False), seeds, rate)
  return drop(_rounded(inner, bias), seeds, rate)


@jax.custom_vjp
def _rounded(inner, bias):
  x = _sum(inner, bias)
  return (x * cdf_and_pdf(x)[0]).astype(inner.dtype)


def _forward(inner, bias):
  return _rounded(inner, bias), (inner, bias)


def _backward(arrays, gradient):
  inner, bias = arrays
  # Else XLA keeps what the forward pass computed in float32.
  inner = jax.lax.optimization_barrier(inner)
  x = _sum(inner, bias)
  cdf, pdf = cdf_and_pdf(x)
  dx = (gradient * (cdf + x * pdf)).astype(inner.dtype)
  dx = jax.lax.optimization_barrier(dx)
  to_bias = jnp.sum(dx, axis=tuple(range(dx.ndim - 1)), dtype=jnp.float32)
  return dx, to_bias.astype(bias.dtype)


_rounded.defvjp(_forward, _backward)


def _sum(inner, bias):
  return inner.astype(jnp.float32) + bias.astype(jnp.float32)


def cdf_and_pdf(x):
  """Φ and φ of the standard normal at float32 x; see the module docstring."""
  exponential = jnp.exp(-0.5 * jnp.square(x))
  # A reciprocal: float32 division takes more instructions on GPUs.
  t = jax.lax.rsqrt(jnp.square(1.0 + (P / math.sqrt(2.0)) * jnp.abs(x)))
  series = jnp.float32(A[-1])
  for coefficient in reversed(A[:-1]):
    series = series * t + jnp.float32(coefficient)
  tail = 0.5 * series * t * exponential
  cdf = jnp.where(x < 0.0, tail, 1.0 - tail)
  return cdf, exponential * (1.0 / math.sqrt(2.0 * math.pi))
