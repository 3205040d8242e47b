"""The GELU for bfloat16 against the exact one."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.layers import gelu as module
from marjax.layers.gelu import cdf_and_pdf, gelu, gelu_of_product
from marjax.parallel.compiler import compiler_options
from marjax.preflight import gpus
from marjax.preflight.topology import devices_of

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


SEEDS = jnp.array([3, 9], jnp.uint32)  # of two entries


def slots(number, shape=(2, 70, 384)):
  return jax.random.normal(jax.random.key(number), shape).astype(jnp.bfloat16)


def layer(scale=1.0, features=256):
  """Slots, and a kernel and a bias that make sums of about that size."""
  x, kernel = slots(0, (2, 40, 128)), slots(1, (128, features))
  return x, scale * kernel / math.sqrt(128), 0.1 * slots(2, (features,))


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_cublas_gelu_is_nearer_to_the_exact_one_than_rounded_products(scale):
  arrays = layer(scale)
  widened = [array.astype(jnp.float32) for array in arrays]
  exact = gelu_of_product(*widened)
  # What cuBLAS does: float32 up to the rounding of the result.
  made = module._in_cublas(*widened)[0].astype(jnp.bfloat16)
  assert np.abs(module._in_cublas(*widened)[0] - exact).max() < 5e-4

  def error(found):
    return np.sqrt(np.mean((np.asarray(found, np.float32) - exact) ** 2))

  assert 0 < error(made) < 0.75 * error(gelu_of_product(*arrays))


def on_gpus(function, *arrays):
  lowered = jax.jit(function).trace(*arrays)
  return lowered.lower(lowering_platforms=("cuda",)).as_text()


def total(*arrays):
  return jnp.sum(jnp.sin(gelu_of_product(*arrays).astype(jnp.float32)))


def test_only_without_gradient_and_dropout_cublas_computes_it(request):
  arrays = layer()
  plain = gelu_of_product(*arrays)
  gradients = jax.grad(total, argnums=(0, 1, 2))
  plain_gradients = gradients(*arrays)
  request.getfixturevalue("traced_for_gpus")

  forward = on_gpus(gelu_of_product, *arrays)
  assert "tanh" in forward
  widened = [array.astype(jnp.float32) for array in arrays]
  dropped = on_gpus(lambda *a: gelu_of_product(*a, SEEDS, 0.3), *arrays)
  for text in (dropped, on_gpus(gradients, *arrays)):
    assert "tanh" not in text
  for others in (widened, [arrays[0][:, :-1], *arrays[1:]]):  # float32, 78 rows
    assert "tanh" not in on_gpus(gelu_of_product, *others)

  # Elsewhere nothing changes.
  np.testing.assert_array_equal(gelu_of_product(*arrays), plain)
  for one, other in zip(gradients(*arrays), plain_gradients, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(
  importlib.util.find_spec(gpus.PLUGIN) is None,
  reason="jax's CUDA plugin, which brings the GPU compiler, is not installed",
)
def test_xla_has_cublas_compute_it(traced_for_gpus):
  mesh = jax.sharding.Mesh(devices_of("h200:1"), ("data",))
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  arrays = [
    jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)
    for array in layer()
  ]
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    lowered = jax.jit(gelu_of_product).lower(*arrays)
    compiled = lowered.compile(compiler_options(mesh))
  assert "BIAS_GELU" in compiled.as_text()
