"""The kernel between two blocks of the denoiser against plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.head import between
from marjax.head.between import Begins, Ends, Modulation
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.reverse import ReverseSettings

SHAPE, STEPS = (3, 2, 384), 4  # three parts of 128
WIDTH = SHAPE[-1]


def draw(number, shape, dtype=jnp.bfloat16):
  key = jax.random.fold_in(jax.random.key(0), number)
  return jax.random.normal(key, shape).astype(dtype)


def arrays(has_end=True, is_affine=True):
  def modulation(number, parts):
    values = draw(number, (STEPS, *SHAPE[:-1], parts * WIDTH))
    return Modulation(values, draw(number + 1, (parts * WIDTH,)))

  vectors = [draw(number, (WIDTH,), jnp.float32) for number in (10, 11)]
  ends = Ends(draw(1, SHAPE), modulation(2, 3)) if has_end else None
  begins = Begins(modulation(4, 2), *(vectors if is_affine else (None, None)))
  return draw(0, SHAPE), ends, begins


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize("is_affine", [True, False])
def test_the_kernel_is_the_definition(has_end, is_affine, dtype):
  x, ends, begins = arrays(has_end, is_affine)
  index = jnp.int32(2)
  found = between.call_kernel(jnp.dtype(dtype), x, ends, begins, index, True)

  def cut(modulation, parts):
    values = np.asarray(modulation.values[2], np.float32)
    return np.split(values + np.asarray(modulation.bias), parts, axis=-1)

  wanted = np.asarray(x, np.float32)
  if has_end:
    gate = cut(ends.modulation, 3)[2]
    wanted = wanted + gate * np.asarray(ends.h, np.float32)
  np.testing.assert_allclose(
    np.asarray(found[0], np.float32), wanted, rtol=2**-8, atol=1e-6
  )
  rounded = np.asarray(found[0], np.float32)
  centred = rounded - rounded.mean(-1, keepdims=True)
  u = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  if is_affine:
    u = u * np.asarray(begins.scale) + np.asarray(begins.bias)
  shift, gain = cut(begins.modulation, 2)
  assert found[1].dtype == dtype
  np.testing.assert_allclose(
    np.asarray(found[1], np.float32),
    u * (1 + gain) + shift,
    rtol=2**-8 if dtype == jnp.bfloat16 else 1e-5,
    atol=1e-5,
  )


def test_a_platform_without_the_kernel_computes_the_same(monkeypatch):
  x, ends, begins = arrays()
  index = jnp.int32(1)

  def total(x, ends):
    made = between.between(x, ends, begins, jnp.bfloat16, index)
    return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in made)

  plain = jax.value_and_grad(total, argnums=(0, 1))(x, ends)
  monkeypatch.setattr(between, "has_kernels", lambda: True)
  assert "pallas_call" in str(jax.make_jaxpr(total)(x, ends))
  fused = jax.value_and_grad(total, argnums=(0, 1))(x, ends)
  for one, other in zip(
    jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_array_equal(one, other)


def test_tokens_drawn_with_the_kernel_are_those_without(monkeypatch):
  """Up to rounding to bfloat16 at other places."""
  config = DiffusionHeadConfig(4, width=128, depth=2, dtype="bfloat16")
  head, key = config.build(), jax.random.key(3)
  z = draw(20, (2, 3, 16), jnp.float32)
  target = jnp.zeros((2, 3, 4))
  params = jax.tree.map(
    lambda leaf: leaf + 0.05 * jax.random.normal(key, leaf.shape),
    head.init(key, z, target, key=key),
  )

  def sample():
    settings = ReverseSettings(4, start=700)
    return head.apply(params, z, settings, key=key, method="sample")

  plain = sample()
  monkeypatch.setattr(between, "has_kernels", lambda: True)
  monkeypatch.setattr(
    between,
    "_fused",
    lambda dtype, *arrays: between.call_kernel(dtype, *arrays, True),
  )
  found = sample()
  assert not np.array_equal(found, plain)  # the kernel was used
  error = np.sqrt(np.mean(np.square(found - plain)))
  assert error < 0.02 * np.std(plain)
