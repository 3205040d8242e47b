"""Which attention is computed where, and that both hide what is not valid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.layers import attention
from marjax.layers.dropout import is_kept
from marjax.layers.gpu import attention as attention_kernel
from marjax.layers.gpu.attention import Sequences

NUM_VALID = jnp.array([3, 6])


def parts(dtype=jnp.bfloat16, length=6, head_dim=8):
  shape = (3, 2, length, 2, head_dim)
  return jax.random.normal(jax.random.key(0), shape).astype(dtype)


SEEDS = jnp.array([[3, 9]], jnp.uint32)  # of one sequence, two entries


def attend(query, key, value, rate=0.0):
  bias = jnp.zeros((3, *query.shape[2:]), query.dtype)
  sequences = Sequences((query.shape[1],), (key.shape[1],))
  return attention.attend(
    query, key, value, bias, [NUM_VALID], sequences, SEEDS, rate
  )


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
  ("fits", "shape"),
  [
    (True, {"head_dim": 64}),
    (True, {"head_dim": 80, "length": 7}),
    (False, {"head_dim": 64, "dtype": jnp.float32}),
    (False, {"head_dim": 8}),
    (False, {"head_dim": 72}),
    (False, {"head_dim": 144}),
  ],
)
def test_kernels_are_for_what_they_can_do(request, fits, shape):
  arrays = parts(**shape)

  def has_kernels():
    # A function of its own: jax remembers what it traced.
    return "pallas_call" in str(jax.make_jaxpr(lambda *a: attend(*a))(*arrays))

  assert not has_kernels()  # there is no GPU
  request.getfixturevalue("traced_for_gpus")
  assert has_kernels() == fits


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_platform_without_the_kernels_computes_the_same(request, rate):
  arrays = parts(head_dim=16)

  def total(*arrays):
    mixed = attend(*arrays, rate)
    return jnp.sum(jnp.sin(3 * mixed.astype(jnp.float32)))

  plain = jax.value_and_grad(total, argnums=(0, 1, 2))(*arrays)
  request.getfixturevalue("traced_for_gpus")
  assert str(jax.make_jaxpr(jax.grad(total))(*arrays)).count("pallas_call") == 3
  fused = jax.value_and_grad(total, argnums=(0, 1, 2))(*arrays)
  for one, other in zip(
    jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_allclose(
      np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=1e-2
    )


@pytest.mark.parametrize(
  ("queries", "lengths", "head_dim", "rate", "is_causal"),
  [
    # Sequences side by side, parts of a head, blocks that are not full.
    ((64, 33, 80), (64, 33, 80), 16, 0.3, False),
    ((5,), (70,), 48, 0.0, False),  # some queries only
    ((70, 64), (133, 129), 80, 0.3, True),  # diagonals anywhere in blocks
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ((80,), (80,), 64, 0.1, False),
        ((40, 70), (40, 70), 80, 0.0, False),
        ((150,), (150,), 64, 0.1, True),
        ((40, 130), (40, 130), 80, 0.0, True),
        ((130,), (131,), 64, 0.0, True),
        ((1, 65), (140, 128), 16, 0.0, True),
      )
    ),
  ],
)
def test_the_kernels_are_the_einsums(
  queries, lengths, head_dim, rate, is_causal
):
  """Forward and backward: no further from float32 than in bfloat16."""
  batch, heads = 2, 2
  sequences = Sequences(queries, lengths, is_causal)

  def draw(number, slots):
    key, shape = jax.random.key(number), (batch, slots, heads, head_dim)
    return jax.random.normal(key, shape).astype(jnp.bfloat16)

  query, along = draw(0, sum(queries)), draw(1, sum(queries))
  key, value = draw(2, sum(lengths)), draw(3, sum(lengths))
  num_valid = [[length, length // 2 + 1] for length in lengths]
  seeds = jnp.arange(2 * len(lengths), dtype=jnp.uint32).reshape(-1, 2)
  rows = attention._row_hashes(seeds, sequences.queries, query)
  inputs = attention.Inputs(
    query, key, value, jnp.array(num_valid).T, rows if rate else None
  )
  bias = jnp.zeros((3, heads, head_dim), jnp.bfloat16)

  def plain(dtype):
    def mixed(*arrays):
      own = inputs._replace(query=arrays[0], key=arrays[1], value=arrays[2])
      return attention._mix_each(sequences, rate, own, bias.astype(dtype))

    arrays = [array.astype(dtype) for array in (query, key, value)]
    mixed, pull = jax.vjp(mixed, *arrays)
    return (mixed, *pull(along.astype(dtype)))

  @jax.jit
  def fused(inputs, along):
    mixed, sums = attention_kernel.forward(sequences, rate, inputs)
    return mixed, *attention_kernel.backward(
      sequences, rate, inputs, mixed, sums, along
    )

  mixed, gradients, totals = fused(inputs, along)
  gradients = gradients[:3]
  for total, gradient in zip(totals, gradients, strict=True):
    wanted = jnp.sum(gradient.astype(jnp.float32), axis=(0, 1))
    # Up to the rounding of each gradient.
    scale = jnp.sqrt(jnp.sum(jnp.square(gradient.astype(jnp.float32)), (0, 1)))
    np.testing.assert_array_less(jnp.abs(total - wanted), 2**-7 * scale + 1e-6)
  for found, exact, rounded in zip(
    (mixed, *gradients),
    jax.jit(plain, static_argnums=0)(jnp.float32),
    plain(jnp.bfloat16),  # as a whole, XLA would round less often
    strict=True,
  ):
    assert found.dtype == jnp.bfloat16

    def error(array, exact=exact):
      return np.sqrt(np.mean(np.square(np.asarray(array, np.float32) - exact)))

    assert error(found) < 1.1 * error(rounded) + 1e-6
    assert error(found) < 0.005 * np.sqrt(np.mean(np.square(exact)))


def definition(query, key, value, seeds, rate):
  """`mix`, to be differentiated as it stands."""
  logits = jnp.einsum("bqnh,bknh->bnqk", query, key) * key.shape[-1] ** -0.5
  is_valid = jnp.arange(key.shape[1]) < NUM_VALID[:, None]
  logits = jnp.where(is_valid[:, None, None, :], logits, -1e30)
  weights = jax.nn.softmax(logits, axis=-1)
  if rate:
    weights = weights * is_kept(seeds, weights.shape, rate) / (1 - rate)
  return jnp.einsum("bnqk,bknh->bqnh", weights, value)


@pytest.mark.parametrize("num_queries", [6, 4])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_the_backward_pass_is_that_of_the_definition(rate, num_queries):
  query, key, value = parts(jnp.float32)
  query = query[:, :num_queries]
  rows = attention._row_hashes(SEEDS, [num_queries], query) if rate else None
  along = jax.random.normal(jax.random.key(2), query.shape)

  def run(function):
    def total(*arrays):
      mixed = function(*arrays)
      return jnp.sum(along * mixed), mixed

    gradients, mixed = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(
      query, key, value
    )
    return [mixed, *gradients]

  found = run(lambda q, k, v: attention.mix(q, k, v, NUM_VALID, rows, rate))
  wanted = run(lambda q, k, v: definition(q, k, v, SEEDS[0], rate))
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  assert not np.any(found[2][0, 3:])  # keys that are not valid


def test_the_backward_pass_in_bfloat16_is_that_in_float32_rounded():
  arrays = parts()
  rows = attention._row_hashes(SEEDS, [6], arrays[0])

  def gradients(dtype):
    def total(*arrays):
      mixed = attention.mix(*arrays, NUM_VALID, rows, 0.4)
      return jnp.sum(jnp.sin(3 * mixed.astype(jnp.float32)))

    cast = [array.astype(dtype) for array in arrays]
    return jax.grad(total, argnums=(0, 1, 2))(*cast)

  for rounded, exact in zip(
    gradients(jnp.bfloat16), gradients(jnp.float32), strict=True
  ):
    assert rounded.dtype == jnp.bfloat16
    error = np.abs(np.asarray(rounded, np.float32) - np.asarray(exact))
    assert error.max() < 0.03 * np.abs(exact).max()
