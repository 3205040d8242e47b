"""The GELU for bfloat16 against the exact one."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from marjax.backbone.gelu import cdf_and_pdf, gelu

X = np.linspace(-9, 9, 100_001).astype(np.float32)
DENSITY = np.exp(-0.5 * X.astype(np.float64) ** 2) / math.sqrt(2 * math.pi)
EXACT = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in X.tolist()])


def test_the_cdf_is_exact_to_4e_7_and_its_tail_to_a_bfloat16():
  cdf, pdf = cdf_and_pdf(jnp.asarray(X))
  assert np.abs(cdf - EXACT).max() < 4e-7
  inner = X > -5
  assert (np.abs(cdf - EXACT) / EXACT)[inner].max() < 2**-9
  np.testing.assert_allclose(pdf, DENSITY, rtol=2e-6, atol=1e-9)


def test_value_and_gradients_are_those_of_the_exact_one():
  products, bias = jax.random.normal(jax.random.key(0), (2, 64, 8))
  products, bias = 2 * products, bias[0]

  def run(dtype, products, bias):
    def total(products, bias):
      made = gelu(products.astype(dtype), bias.astype(dtype))
      assert made.dtype == dtype
      return jnp.sum(jnp.sin(made.astype(jnp.float32))), made

    gradients, made = jax.grad(total, argnums=(0, 1), has_aux=True)(
      products, bias
    )
    return made, *gradients

  rounded = [a.astype(jnp.bfloat16).astype("float32") for a in (products, bias)]
  for exact, found in zip(
    run(jnp.float32, *rounded), run(jnp.bfloat16, *rounded), strict=True
  ):
    error = np.abs(np.asarray(exact) - np.asarray(found, np.float32))
    assert error.max() < 0.02 * np.abs(exact).max()
