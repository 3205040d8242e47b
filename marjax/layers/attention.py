"""Multi-head self-attention over sequences that lie side by side.

1. q, k and v are three products: one would have to be cut up by a copy.
2. Each sequence attends within itself, to its first `num_valid` slots. In a
   causal one a query sees no key after its own; the last query's is the last.
3. Logits and softmax are float32. On NVIDIA GPUs and in bfloat16 kernels do it
   without writing the logits; elsewhere two einsums do, whose backward pass
   keeps the weights in the dtype of the matmuls.
4. Queries may be some of the slots only: what no later layer reads is not
   computed.
5. Where keys and values of earlier slots are in a cache, `look_back` is the
   same softmax, of a few new slots to all before them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, UInt32

from marjax.arrays import Counts, no_gradient
from marjax.layers.dropout import masked, row_hashes, survives
from marjax.layers.fused import fused
from marjax.layers.gpu import attention as kernels
from marjax.layers.gpu import look_back as look_back_kernel
from marjax.layers.gpu.attention import Inputs, Sequences

HEAD_AXES = ("batch", "sequence", "heads", "head_dim")

CACHE_AXES = ("layers", "batch", "sequence", "heads", "head_dim")

_ROW_AXES = ("batch", "heads", "sequence")


def attend(
  query: Float[Array, "B Q N H"],
  key: Float[Array, "B P N H"],
  value: Float[Array, "B P N H"],
  bias: Float[Array, "3 N H"],
  num_valid: list[Counts],
  sequences: Sequences,
  seeds: UInt32[Array, "sequences B"] | None = None,
  rate: float = 0.0,
) -> Float[Array, "B Q N H"]:
  """Attention [B, Q, N, H] within each sequence, to its num_valid keys.

  Args:
    query, key, value: slots of sequences side by side, biases added.
    bias: gets the gradient of what was added to query, key and value: sums over
      their slots, which kernels have at hand.
    num_valid: for each sequence, its keys that hold something.
    sequences: lengths of each, and whether they are causal.
    seeds: of dropout's entries, for each sequence; None for no dropout.
    rate: share of the weights that is dropped.
  """
  rows = _row_hashes(seeds, sequences.queries, query) if rate else None
  counts = jnp.stack(num_valid, axis=1).astype(jnp.int32)
  inputs = Inputs(query, key, value, counts, rows)
  axes = Inputs(
    HEAD_AXES,
    HEAD_AXES,
    HEAD_AXES,
    ("batch", None),
    None if rows is None else _ROW_AXES,
  )
  head_dim = query.shape[-1]
  mixed = fused(
    functools.partial(_mix_each, sequences, rate),
    lambda inputs, bias: kernels.forward(sequences, rate, inputs),
    lambda arrays, *rest: kernels.backward(sequences, rate, arrays[0], *rest),
    (inputs, bias),
    ((axes, (None, "heads", "head_dim")), HEAD_AXES, _ROW_AXES),
    fits=query.dtype == jnp.bfloat16 and head_dim in range(16, 129, 16),
    name="attention",
  )
  return checkpoint_name(mixed, "attention")


def _row_hashes(seeds, lengths, query):
  """Hashes of the weights' rows [B, N, Q]; None without seeds."""
  if seeds is None:
    return None
  heads = query.shape[2]
  hashes = []
  for entries, length in zip(seeds, lengths, strict=True):
    rows = jnp.arange(heads * length, dtype=jnp.uint32).reshape(heads, length)
    hashes.append(row_hashes(entries[:, None, None], rows))
  # Fused into what uses the mask, they would be computed for every element.
  return jax.lax.optimization_barrier(jnp.concatenate(hashes, axis=-1))


def _mix_each(sequences, rate, inputs, bias):
  """`mix`, of one sequence after the other."""
  pairs = zip(inputs[:3], bias, strict=True)
  query, key, value = (_biased(slots, own) for slots, own in pairs)
  ends = [np.cumsum(one)[:-1] for one in (sequences.queries, sequences.keys)]
  queries = jnp.split(query, ends[0], axis=1)
  keys, values = (jnp.split(one, ends[1], axis=1) for one in (key, value))
  rows = [None] * len(queries)
  if inputs.rows is not None:
    rows = jnp.split(inputs.rows, ends[0], axis=2)
  counts = inputs.num_valid.T
  each = zip(queries, keys, values, counts, rows, strict=True)
  is_causal = sequences.is_causal
  mixed = [mix(*one, rate, is_causal) for one in each]
  return jnp.concatenate(mixed, axis=1)


@jax.custom_vjp
def _biased(slots, bias):
  """Slots, to which a bias was added: it gets the gradient of that."""
  del bias
  return slots


def _biased_forward(slots, bias):
  del bias
  return slots, None


def _biased_backward(nothing, gradient):
  del nothing
  total = jnp.sum(gradient, axis=(0, 1), dtype=jnp.float32)
  return gradient, total.astype(gradient.dtype)


_biased.defvjp(_biased_forward, _biased_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def mix(
  query, key, value, num_valid, rows, rate: float, is_causal: bool = False
):
  """Values [B, P, N, H] mixed by softmax weights, to [B, Q, N, H].

  The weights of keys from num_valid [B] on are 0 and, if causal, those of query
  i from key i + (P - Q) + 1 on; of all others a share `rate` is dropped, by
  hashes of their rows [B, N, Q] (None for no dropout).

  With p the weights, w what dropout leaves of them and o the result, the
  gradient of the logits is p · (drop(do·vᵀ) - do·o): the row sum of p and the
  gradient of p, which softmax needs, is that of do and o.
  """
  p = _weights(query, key, num_valid, is_causal, value.dtype)
  return jnp.einsum("bnqk,bknh->bqnh", _drop(p, rows, rate), value)


def _forward(query, key, value, num_valid, rows, rate, is_causal):
  p = _weights(query, key, num_valid, is_causal, value.dtype)
  # Else XLA keeps the float32 of which p is rounded.
  p = jax.lax.optimization_barrier(p)
  mixed = jnp.einsum("bnqk,bknh->bqnh", _drop(p, rows, rate), value)
  return mixed, (query, key, value, p, mixed, num_valid, rows)


def _backward(rate, is_causal, arrays, gradient):
  del is_causal  # p is 0 where a query does not see a key
  query, key, value, p, mixed, num_valid, rows = arrays
  dtype, scale = query.dtype, query.shape[-1] ** -0.5
  to_value = jnp.einsum(
    "bnqk,bqnh->bknh", _drop(p, rows, rate), gradient
  ).astype(dtype)
  to_weights = jnp.einsum("bqnh,bknh->bnqk", gradient, value)
  to_weights = _drop(to_weights.astype(jnp.float32), rows, rate)
  level = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1)
  level = jnp.swapaxes(level, 1, 2)[..., None]
  to_logits = (p * (to_weights - level)).astype(dtype)
  to_query = jnp.einsum("bnqk,bknh->bqnh", to_logits, key) * scale
  to_key = jnp.einsum("bnqk,bqnh->bknh", to_logits, query * scale)
  integers = no_gradient((num_valid, rows))
  return to_query, to_key, to_value, *integers


mix.defvjp(_forward, _backward)


def _drop(weights, rows, rate):
  if rows is None:
    return weights
  columns = jnp.arange(weights.shape[-1], dtype=jnp.uint32)
  return masked(weights, survives(rows[..., None], columns, rate), rate)


def look_back(
  query: Float[Array, "B Q N H"],
  keys: Float[Array, "layers B S N H"],
  values: Float[Array, "layers B S N H"],
  layer: Int[Array, ""],
  first: Int[Array, ""],
  length: int,
) -> Float[Array, "B Q N H"]:
  """Values mixed for slots first .. first + Q - 1, each to its own and before.

  Without dropout.

  Args:
    query: of new slots.
    keys, values: caches of all layers, the new slots' too.
    layer, first: may be traced, so that one program serves many steps.
    length: of the slots that plain code looks at, first + Q or more.
  """
  count, head_dim = query.shape[1], query.shape[-1]
  length = min(length, keys.shape[2])

  def plain(query, keys, values, layer, first):
    key, value = keys[layer, :, :length], values[layer, :, :length]
    is_seen = jnp.arange(length) <= (first + jnp.arange(count))[:, None]
    p = _softmax(query, key, is_seen, value.dtype)
    return jnp.einsum("bnqk,bknh->bqnh", p, value)

  return fused(
    plain,
    lambda *arrays: (look_back_kernel.forward(*arrays), ()),
    None,
    (query, keys, values, layer, first),
    ((HEAD_AXES, CACHE_AXES, CACHE_AXES, (), ()), HEAD_AXES, ()),
    fits=query.dtype == jnp.bfloat16
    and head_dim in range(16, 129, 16)
    and count <= look_back_kernel.QUERIES
    and keys.size < look_back_kernel.LARGEST,
  )


def _weights(query, key, num_valid, is_causal, dtype):
  """The softmax over keys that are valid, in float32, and rounded."""
  is_seen = _is_seen(query.shape[1], key.shape[1], num_valid, is_causal)
  return _softmax(query, key, is_seen, dtype)


def _softmax(query, key, is_seen, dtype):
  logits = jnp.einsum(
    "bqnh,bknh->bnqk",
    query * query.shape[-1] ** -0.5,
    key,
    preferred_element_type=jnp.float32,
  )
  lowest = jnp.finfo(jnp.float32).min
  logits = jnp.where(is_seen, logits, lowest)
  return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _is_seen(queries, keys, num_valid, is_causal):
  """Which keys a query sees [B, 1, Q, K], or [B, 1, 1, K] if all see the same.

  causal, 3 queries, 5 keys    ■ ■ ■ · ·
                               ■ ■ ■ ■ ·
                               ■ ■ ■ ■ ■
  """
  is_valid = (jnp.arange(keys) < num_valid[:, None])[:, None, None, :]
  if not is_causal:
    return is_valid
  return is_valid & jnp.tri(queries, keys, keys - queries, dtype=bool)
