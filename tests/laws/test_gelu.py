"""The GELU for bfloat16 against the exact one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.backbone import gelu as module
from marjax.backbone import gelu_kernel
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


SEEDS = jnp.array([3, 9], jnp.uint32)


def slots(number, shape=(2, 70, 384)):
  return jax.random.normal(jax.random.key(number), shape).astype(jnp.bfloat16)


@pytest.mark.parametrize(
  ("rate", "width"),
  [(0.0, 384), (0.3, 384), (0.3, 96)],  # 96: a part of 384 on a mesh
)
def test_the_kernels_are_gelu_and_dropout(rate, width):
  shape = (2, 70, width)
  product, bias, along = (
    2 * slots(0, shape),
    slots(1, shape)[0, 0],
    slots(2, shape),
  )
  seeds = SEEDS if rate else None

  def plain(dtype):
    made, pull = jax.vjp(
      lambda product, bias: module._plain(product, bias, seeds, rate),
      *(product.astype(dtype), bias.astype(dtype)),
    )
    return made, *pull(along.astype(dtype))

  inputs = module._inputs(product, bias, seeds)
  static = (product.shape[-1], rate)
  found = (
    gelu_kernel.forward(*static, inputs, True),
    *gelu_kernel.backward(*static, inputs, along, True),
  )
  made, exact = np.asarray(found[0], np.float32), plain(jnp.float32)
  assert np.array_equal(made == 0, np.asarray(exact[0]) == 0)  # one mask
  for one, other, scale in zip(found, exact, (1, 1, 8), strict=True):
    np.testing.assert_allclose(
      np.asarray(one, np.float32), other, rtol=2**-7, atol=scale * 2**-8
    )


def test_a_platform_without_the_kernels_computes_the_same(monkeypatch):
  def total(product, bias):
    made = gelu(product, bias, SEEDS, 0.3)
    return jnp.sum(jnp.sin(made.astype(jnp.float32)))

  arrays = slots(0), slots(1)[0, 0]
  plain = jax.value_and_grad(total, argnums=(0, 1))(*arrays)
  monkeypatch.setattr(module, "has_kernels", lambda: True)
  assert str(jax.make_jaxpr(jax.grad(total))(*arrays)).count("pallas_call") == 2
  fused = jax.value_and_grad(total, argnums=(0, 1))(*arrays)
  for one, other in zip(
    jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_array_equal(one, other)
