"""Which attention is computed where, and that both hide what is not valid."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.backbone import attention
from marjax.backbone.dropout import Dropout, is_kept

NUM_VALID = jnp.array([3, 6])


def parts(dtype=jnp.bfloat16, length=6, head_dim=8):
  shape = (3, 2, length, 2, head_dim)
  return jax.random.normal(jax.random.key(0), shape).astype(dtype)


class Attend(nn.Module):
  """Binds the dropout, as a block does."""

  rate: float
  deterministic: bool

  @nn.compact
  def __call__(self, query, key, value):
    return attention.attend(
      *(query, key, value, NUM_VALID),
      Dropout(self.rate),
      self.deterministic,
    )


def attend(query, key, value, rate=0.0, deterministic=True):
  rngs = {"dropout": jax.random.key(1)}
  module = Attend(rate, deterministic)
  return module.apply({}, query, key, value, rngs=rngs)


def test_keys_that_are_not_valid_change_nothing():
  query, key, value = parts(jnp.float32)
  found = attend(query, key, value)
  key = key.at[0, 3:].set(99.0)
  value = value.at[0, 3:].set(99.0)
  assert np.array_equal(attend(query, key, value), found)
  logits = jnp.einsum("qnh,knh->nqk", query[0], key[0, :3]) * 8**-0.5
  wanted = jnp.einsum(
    "nqk,knh->qnh", jax.nn.softmax(logits, axis=-1), value[0, :3]
  )
  np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("fits", "shape", "rate", "deterministic"),
  [
    (True, {}, 0.0, True),
    (True, {"length": 7}, 0.0, True),
    (True, {"head_dim": 80}, 0.5, True),
    (True, {"length": 8}, 0.0, False),
    (False, {"length": 7}, 0.0, False),
    (False, {"length": 8}, 0.1, False),
    (False, {"dtype": jnp.float32}, 0.0, True),
    (False, {"head_dim": 4}, 0.0, True),
    (False, {"head_dim": 136}, 0.0, True),
  ],
)
def test_cudnn_is_for_what_it_can_do(
  monkeypatch, fits, shape, rate, deterministic
):
  query, key, _ = parts(**shape)
  asked = (query, key, rate, deterministic)
  assert not attention.fits_cudnn(*asked)  # there is no GPU
  monkeypatch.setattr(attention, "_has_cudnn", lambda: True)
  assert attention.fits_cudnn(*asked) == fits


def test_attention_is_the_same_where_another_platform_has_a_kernel(
  monkeypatch,
):
  plain = attend(*parts())
  monkeypatch.setattr(attention, "_has_cudnn", lambda: True)
  monkeypatch.setattr(attention, "_fused", lambda query, *rest: query)
  assert np.array_equal(attend(*parts()), plain)


def definition(query, key, value, seeds, rate):
  """`mix`, to be differentiated as it stands."""
  logits = jnp.einsum("bqnh,bknh->bnqk", query, key) * key.shape[-1] ** -0.5
  is_valid = jnp.arange(key.shape[1]) < NUM_VALID[:, None]
  logits = jnp.where(is_valid[:, None, None, :], logits, -1e30)
  weights = jax.nn.softmax(logits, axis=-1)
  if seeds is not None:
    weights = weights * is_kept(seeds, weights.shape, rate) / (1 - rate)
  return jnp.einsum("bnqk,bknh->bqnh", weights, value)


@pytest.mark.parametrize("num_queries", [6, 4])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_the_backward_pass_is_that_of_the_definition(rate, num_queries):
  query, key, value = parts(jnp.float32)
  query = query[:, :num_queries]
  seeds = jnp.array([5, 7], jnp.uint32) if rate else None
  along = jax.random.normal(jax.random.key(2), query.shape)

  def run(function):
    def total(*arrays):
      mixed = function(*arrays)
      return jnp.sum(along * mixed), mixed

    gradients, mixed = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(
      query, key, value
    )
    return [mixed, *gradients]

  found = run(lambda q, k, v: attention.mix(q, k, v, NUM_VALID, seeds, rate))
  wanted = run(lambda q, k, v: definition(q, k, v, seeds, rate))
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  assert not np.any(found[2][0, 3:])  # keys that are not valid


def test_the_backward_pass_in_bfloat16_is_that_in_float32_rounded():
  arrays = parts()
  seeds = jnp.array([5, 7], jnp.uint32)

  def gradients(dtype):
    def total(*arrays):
      mixed = attention.mix(*arrays, NUM_VALID, seeds, 0.4)
      return jnp.sum(jnp.sin(3 * mixed.astype(jnp.float32)))

    cast = [array.astype(dtype) for array in arrays]
    return jax.grad(total, argnums=(0, 1, 2))(*cast)

  for rounded, exact in zip(
    gradients(jnp.bfloat16), gradients(jnp.float32), strict=True
  ):
    assert rounded.dtype == jnp.bfloat16
    error = np.abs(np.asarray(rounded, np.float32) - np.asarray(exact))
    assert error.max() < 0.03 * np.abs(exact).max()
