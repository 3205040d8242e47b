"""LayerNorm and its own backward pass, against autodiff of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.layers.norm import LayerNorm, normalized


def definition(x, scale, bias, gain, shift):
  x = x.astype(jnp.float32)
  centred = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  h = centred / jnp.sqrt(variance + 1e-6)
  h = h if scale is None else h * scale + bias
  return h if gain is None else h * (1 + gain) + shift


def arguments(size, affine, adaptive):
  keys = iter(jax.random.split(jax.random.key(0), 5))
  shape, width = (3, 5, 16), (16,)
  x = size * jax.random.normal(next(keys), shape) + size
  learned = [jax.random.normal(next(keys), width) for _ in range(2)]
  given = [jax.random.normal(next(keys), shape) for _ in range(2)]
  none = [None, None]
  return [x, *(learned if affine else none), *(given if adaptive else none)]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_value_and_gradients_are_those_of_the_definition(
  size, affine, adaptive
):
  given = arguments(size, affine, adaptive)
  along = jax.random.normal(jax.random.key(1), given[0].shape)

  def run(function):
    def total(*args):
      return jnp.sum(along * function(*args))

    gradients = jax.grad(total, argnums=range(5))(*given)
    return jax.tree.leaves((function(*given), gradients))

  found = run(lambda *args: normalized(*args, jnp.float32))
  wanted = run(definition)
  assert len(found) == 2 + 2 * affine + 2 * adaptive
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(
      one, other, rtol=1e-4, atol=2e-6 * np.abs(other).max()
    )


def test_bfloat16_is_normalised_in_float32_and_rounded_once():
  x, scale, bias, gain, shift = arguments(1.0, True, True)
  rounded = [a.astype(jnp.bfloat16) for a in (x, gain, shift)]
  x, gain, shift = (a.astype(jnp.float32) for a in rounded)
  found, pull = jax.vjp(
    lambda x, *rest: normalized(x, scale, bias, *rest, jnp.bfloat16), *rounded
  )
  wanted = definition(x, scale, bias, gain, shift).astype(jnp.bfloat16)
  # The last bit, where the definition is near the middle of two numbers.
  assert np.mean(np.asarray(found != wanted)) < 0.02
  np.testing.assert_allclose(
    found.astype("float32"), wanted.astype("float32"), rtol=2**-7
  )
  assert [one.dtype for one in pull(found)] == [jnp.bfloat16] * 3


def test_the_module_has_scale_and_bias_if_it_is_affine():
  x = jax.random.normal(jax.random.key(0), (2, 8))
  module = LayerNorm()
  params = {"scale": jnp.arange(8.0), "bias": jnp.full(8, 3.0)}
  found = module.apply({"params": params}, x)
  wanted = definition(x, params["scale"], params["bias"], None, None)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  assert LayerNorm(affine=False).init(jax.random.key(0), x) == {}
