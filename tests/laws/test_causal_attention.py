"""Causal attention: a query sees its keys up to its own place, and no other."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.backbone.blocks import BlockConfig
from marjax.backbone.stack import Stack
from marjax.layers import attention
from marjax.layers.dropout import is_kept
from marjax.layers.gpu import attention as kernels
from marjax.layers.gpu.attention import BLOCK, Inputs, Sequences
from marjax.preflight import gpus
from marjax.preflight.topology import devices_of

SEVERAL = Sequences((6, 1, 4), (6, 5, 9), is_causal=True)
SEEDS = jnp.array([[3, 9], [4, 1], [7, 7]], jnp.uint32)


def draw(number, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(number), shape).astype(dtype)


def slots_of(sequences, head_dim=8, dtype=jnp.float32):
  """Queries, keys, values and a gradient, of two entries and two heads."""
  sizes = (sequences.queries, sequences.keys, sequences.keys, sequences.queries)
  return [
    draw(number, 2, sum(lengths), 2, head_dim, dtype=dtype)
    for number, lengths in enumerate(sizes)
  ]


def attend(sequences, query, key, value, num_valid=None, rate=0.0):
  if num_valid is None:
    num_valid = [jnp.array([length] * 2) for length in sequences.keys]
  bias = jnp.zeros((3, *query.shape[2:]), query.dtype)
  return attention.attend(
    query, key, value, bias, num_valid, sequences, SEEDS, rate
  )


def dense(query, key, value, gradient, limits, survivors):
  """The result and gradients of one head and sequence, in float64.

  Args:
    limits: for each query, how many keys it sees.
    survivors: [Q, P], what the weights are multiplied with.
  """
  scale = query.shape[-1] ** -0.5
  weights = np.zeros((len(query), len(key)))
  for row, limit in enumerate(limits):
    logits = key[:limit] @ query[row] * scale
    weights[row, :limit] = np.exp(logits) / np.sum(np.exp(logits))
  left = weights * survivors
  to_weights = gradient @ value.T * survivors
  level = np.sum(weights * to_weights, axis=1, keepdims=True)
  to_logits = weights * (to_weights - level) * scale
  return left @ value, to_logits @ key, to_logits.T @ query, left.T @ gradient


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_values_and_gradients_are_those_of_a_dense_softmax(rate):
  """Sequences side by side, more keys than queries, keys that hold nothing."""
  num_valid = np.array([[6, 4], [5, 2], [9, 7]])
  arrays = slots_of(SEVERAL)

  def mixed(*slots):
    return attend(SEVERAL, *slots, list(jnp.asarray(num_valid)), rate)

  result, pull = jax.vjp(mixed, *arrays[:3])
  wanted = [np.zeros(array.shape) for array in (result, *arrays[:3])]
  exact = [np.asarray(array, np.float64) for array in arrays]
  starts = [np.cumsum([0, *n]) for n in (SEVERAL.queries, SEVERAL.keys)]
  for n, (queries, keys) in enumerate(
    zip(SEVERAL.queries, SEVERAL.keys, strict=True)
  ):
    of_queries = slice(starts[0][n], starts[0][n] + queries)
    of_keys = slice(starts[1][n], starts[1][n] + keys)
    places = (of_queries, of_keys, of_keys, of_queries)
    results = (of_queries, *places[:3])
    # Not of causality: what is dropped is what would be without it.
    survivors = np.ones((2, 2, queries, keys))
    if rate:
      survivors = is_kept(SEEDS[n], survivors.shape, rate) / (1 - rate)
    for entry, head in np.ndindex(2, 2):
      limits = [
        min(query + 1 + keys - queries, num_valid[n, entry])
        for query in range(queries)
      ]
      own = [
        array[entry, place, head]
        for array, place in zip(exact, places, strict=True)
      ]
      one = dense(*own, limits, np.asarray(survivors[entry, head], np.float64))
      for array, place, part in zip(wanted, results, one, strict=True):
        array[entry, place, head] = part
  for array, exactly in zip((result, *pull(arrays[3])), wanted, strict=True):
    np.testing.assert_allclose(array, exactly, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("queries", [7, 3, 1])
def test_a_query_depends_on_the_keys_that_it_sees_alone(queries):
  sequences = Sequences((queries,), (7,), is_causal=True)
  query, key, value, _ = slots_of(sequences)

  def own(key, value):
    return attend(sequences, query, key, value)[0, :, 0]

  sees = np.arange(7) <= np.arange(queries)[:, None] + 7 - queries
  of_key, of_value = (
    np.any(jacobian[:, :, 0, :, 0] != 0, axis=(1, 3))
    for jacobian in jax.jacobian(own, argnums=(0, 1))(key, value)
  )
  assert np.array_equal(of_value, sees)
  # The weight of one key alone is 1, whatever the key.
  assert np.array_equal(of_key, sees & (np.sum(sees, axis=1) > 1)[:, None])


def test_a_single_query_sees_all_keys():
  arrays = slots_of(Sequences((1,), (7,)))[:3]
  causal, plain = (
    attend(Sequences((1,), (7,), is_causal=which), *arrays)
    for which in (True, False)
  )
  assert np.array_equal(causal, plain)


def test_more_queries_than_keys_are_refused():
  with pytest.raises(ValueError, match=r"\(4, 3\).*expected at least as many"):
    Sequences((5, 4), (5, 3), is_causal=True)
  assert Sequences((5, 4), (5, 3)).is_causal is False


def poisoned(sequences, which, place):
  """What kernels give, if a part of one array is not a number."""
  names = ("query", "key", "value", "gradient")
  arrays = dict(zip(names, slots_of(sequences, 16, jnp.bfloat16), strict=True))
  arrays[which] = arrays[which].at[:, place].set(jnp.nan)
  gradient = arrays.pop("gradient")
  num_valid = jnp.array([sequences.keys] * 2, jnp.int32)
  inputs = Inputs(num_valid=num_valid, rows=None, **arrays)
  mixed, sums = kernels.forward(sequences, 0.0, inputs)
  gradients, _ = kernels.backward(sequences, 0.0, inputs, mixed, sums, gradient)
  return [mixed, *gradients[:3]]


@pytest.mark.parametrize("before", [0, BLOCK, 2 * BLOCK - 1])
def test_kernels_do_not_look_at_blocks_that_no_query_sees(before):
  """One look would be a product with what is not a number."""
  length = 2 * BLOCK
  sequences = Sequences((length,), (before + length,), is_causal=True)
  # The first key that no query of the first block sees, and its block.
  unseen = -(-(before + BLOCK) // BLOCK) * BLOCK
  mixed, to_query, _, _ = poisoned(sequences, "value", slice(unseen, None))
  for of_queries in (mixed, to_query):
    assert np.all(np.isfinite(np.asarray(of_queries[:, :BLOCK], np.float32)))
    assert np.any(np.isnan(np.asarray(of_queries[:, BLOCK:], np.float32)))
  _, _, to_key, to_value = poisoned(sequences, "gradient", slice(0, BLOCK))
  for of_keys in (to_key, to_value):
    assert np.all(np.isfinite(np.asarray(of_keys[:, unseen:], np.float32)))
    assert np.any(np.isnan(np.asarray(of_keys[:, :unseen], np.float32)))


@pytest.mark.skipif(
  importlib.util.find_spec(gpus.PLUGIN) is None,
  reason="jax's CUDA plugin, which brings the GPU compiler, is not installed",
)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_the_kernels_compile_for_gpus_that_are_not_there(
  traced_for_gpus, head_dim
):
  mesh = jax.sharding.Mesh(devices_of("h200:1"), ("data",))
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  sequences = Sequences((100, 70), (100, 133), is_causal=True)
  arrays = [
    jax.ShapeDtypeStruct((2, sum(lengths), 2, head_dim), "bfloat16")
    for lengths in (sequences.queries, sequences.keys, sequences.keys)
  ]
  arrays = [array.update(sharding=where) for array in arrays]

  def total(*arrays):
    return jnp.sum(attend(sequences, *arrays).astype(jnp.float32))

  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*arrays)
    assert lowered.compile().as_text().count("gpu.triton") == 3


def stack_of(is_causal):
  config = BlockConfig(32, 2, 2, 0.0, 0.0, "float32", is_causal)
  stack, x = Stack(config, depth=2), draw(5, 2, 9, 32)
  num_valid = [jnp.array([9, 9])]
  params = nn.unbox(stack.init(jax.random.key(6), x, (9,), num_valid, True))

  def run(x, window=None):
    return stack.apply(params, x, (9,), num_valid, True, window)

  return run, x


@pytest.mark.parametrize("is_causal", [True, False])
def test_slots_of_causal_blocks_do_not_look_ahead(is_causal):
  run, x = stack_of(is_causal)
  changed = run(x.at[:, 5:].set(draw(7, 2, 4, 32)))
  before = np.max(np.abs(changed - run(x)), axis=(0, 2))[:5]
  assert np.all(before == 0) if is_causal else np.all(before > 1e-3)


def test_causal_blocks_have_no_window():
  run, x = stack_of(is_causal=True)
  with pytest.raises(ValueError, match="or causal blocks; expected one"):
    run(x, window=jnp.arange(3))
