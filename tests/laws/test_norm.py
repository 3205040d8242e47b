"""LayerNorm and its own backward pass, against autodiff of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.linear import layer_norm, normalized


def definition(x):
  x = x.astype(jnp.float32)
  centred = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  return centred / jnp.sqrt(variance + 1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_value_and_gradient_are_those_of_the_definition(scale):
  x = scale * jax.random.normal(jax.random.key(0), (3, 5, 16)) + scale
  along = jax.random.normal(jax.random.key(1), x.shape)
  for found, wanted in zip(
    *(
      (function(x), jax.grad(lambda x, f=function: jnp.sum(along * f(x)))(x))
      for function in (normalized, definition)
    ),
    strict=True,
  ):
    np.testing.assert_allclose(
      found, wanted, rtol=1e-4, atol=2e-6 * np.abs(wanted).max()
    )


def test_bfloat16_is_normalised_in_float32_and_its_gradient_rounded():
  x = jax.random.normal(jax.random.key(0), (4, 64), jnp.bfloat16)
  y, pull = jax.vjp(normalized, x)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, definition(x), rtol=1e-5, atol=1e-6)
  assert pull(y)[0].dtype == jnp.bfloat16


def test_scale_and_shift_come_last():
  x = jax.random.normal(jax.random.key(0), (2, 8))
  module = layer_norm()
  params = {"scale": jnp.arange(8.0), "bias": jnp.full(8, 3.0)}
  found = module.apply({"params": params}, x)
  np.testing.assert_allclose(found, normalized(x) * jnp.arange(8.0) + 3.0)
  assert layer_norm(affine=False).init(jax.random.key(0), x) == {}
