"""Multi-head self-attention over sequences that lie side by side.

1. q, k and v are three products: one would have to be cut up by a copy.
2. Each sequence attends within itself, to its first `num_valid` slots.
3. Logits and softmax are float32. On NVIDIA GPUs and in bfloat16 kernels do it
   without writing the logits; elsewhere two einsums do, whose backward pass
   keeps the weights in the dtype of the matmuls.
4. Queries may be some of the slots only: what no later layer reads is not
   computed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from marjax.arrays import Counts, no_gradient
from marjax.layers.dropout import Dropout, drop, entry_seeds, row_hashes
from marjax.layers.gpu import attention as attention_kernel
from marjax.layers.gpu.attention import Inputs, Sequences
from marjax.layers.placed import by_device, has_kernels

HEAD_AXES = ("batch", "sequence", "heads", "head_dim")


def attend(
  query: Float[Array, "B Q N H"],
  key: Float[Array, "B P N H"],
  value: Float[Array, "B P N H"],
  num_valid: list[Counts],
  sequences: Sequences,
  dropout: Dropout,
  deterministic: bool,
  bias: Float[Array, "3 N H"] | None = None,
) -> Float[Array, "B Q N H"]:
  """Bidirectional attention within each sequence, to its num_valid keys.

  Args:
    bias: gets the gradient of one that was added to query, key and value, sums
      over their slots, which the kernels have at hand; only for them.
  """
  seeds = [dropout.seeds(deterministic) for _ in num_valid]
  static = (sequences, 0.0 if deterministic else dropout.rate)
  if not fits_kernel(query.dtype, query.shape[-1]):
    assert bias is None, "its gradient would be lost"
    mixed = _mix_each(query, key, value, num_valid, seeds, static)
    return checkpoint_name(mixed, "attention")
  return _fused(query, key, value, bias, num_valid, seeds, static)


def fits_kernel(dtype, head_dim: int) -> bool:
  """Whether there are kernels for such arrays where this is traced for."""
  is_known = dtype == jnp.bfloat16 and head_dim in _HEAD_DIMS
  return is_known and has_kernels()


_HEAD_DIMS = range(16, 129, 16)


def _mix_each(query, key, value, num_valid, seeds, static):
  """`mix`, of one sequence after the other."""
  sequences, rate = static
  parts = [
    jnp.split(array, np.cumsum(lengths)[:-1], axis=1)
    for array, lengths in (
      (query, sequences.queries),
      (key, sequences.keys),
      (value, sequences.keys),
    )
  ]
  each = zip(*parts, num_valid, seeds, strict=True)
  return jnp.concatenate([mix(*one, rate) for one in each], axis=1)


_SLOTS, _ROWS = HEAD_AXES, ("batch", "heads", "sequence")
_INPUTS = Inputs(_SLOTS, _SLOTS, _SLOTS, ("batch", None), _ROWS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _fused(query, key, value, bias, num_valid, seeds, static):
  """`_mix_each` by kernels, on NVIDIA GPUs."""
  return _fused_forward(query, key, value, bias, num_valid, seeds, static)[0]


def _fused_forward(query, key, value, bias, num_valid, seeds, static):
  def kernel(*arrays):
    run = functools.partial(attention_kernel.forward, *static)
    return by_device(run, (_INPUTS,), (_SLOTS, _ROWS))(
      _inputs(*arrays, static[0])
    )

  def plain(*arrays):
    mixed = _mix_each(*arrays, static)
    batch, length, heads, _ = mixed.shape
    return mixed, jnp.zeros((batch, heads, length), jnp.float32)

  arrays = (query, key, value, num_valid, seeds)
  made = jax.lax.platform_dependent(*arrays, cuda=kernel, default=plain)
  mixed, sums = (checkpoint_name(array, "attention") for array in made)
  return mixed, (arrays, bias, mixed, sums)


def _fused_backward(static, kept, gradient):
  arrays, bias, *made = kept

  def kernel(made, *arrays):
    def run(*given):
      *found, sums = attention_kernel.backward(*static, *given)
      return *found, sums[None]

    # Each device's images give a part of the bias's gradient.
    made_axes = (_SLOTS, _ROWS, _SLOTS)
    outputs = (*(_SLOTS,) * 3, ("batch", None, "heads", "head_dim"))
    run = by_device(run, (_INPUTS, *made_axes), outputs)
    *found, sums = run(_inputs(*arrays, static[0]), *made)
    return *found, jnp.sum(sums, axis=0)

  def plain(made, *arrays):
    def mixed(*slots):
      return _mix_each(*slots, *arrays[3:], static)

    found = jax.vjp(mixed, *arrays[:3])[1](made[-1])
    sums = [jnp.sum(one.astype(jnp.float32), axis=(0, 1)) for one in found]
    return *found, jnp.stack(sums)

  *gradients, to_bias = jax.lax.platform_dependent(
    *((*made, gradient), *arrays), cuda=kernel, default=plain
  )
  to_bias = None if bias is None else to_bias.astype(bias.dtype)
  return (*gradients, to_bias, *no_gradient(arrays[3:]))


_fused.defvjp(_fused_forward, _fused_backward)


def _inputs(query, key, value, num_valid, seeds, sequences):
  return Inputs(
    *(query, key, value),
    num_valid=jnp.stack(num_valid, axis=1).astype(jnp.int32),
    rows=_row_hashes(query, seeds, sequences),
  )


def _row_hashes(query, seeds, sequences):
  """What `mix` has its dropout compute, of the weights' rows [B, N, Q]."""
  batch, _, heads, _ = query.shape
  made = []
  for pair, length in zip(seeds, sequences.queries, strict=True):
    if pair is None:
      return jnp.zeros((batch, heads, 1), jnp.uint32)
    rows = jnp.arange(heads * length, dtype=jnp.uint32).reshape(heads, length)
    entries = entry_seeds(pair, batch)[:, None, None]
    made.append(row_hashes(entries, rows))
  return jnp.concatenate(made, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def mix(query, key, value, num_valid, seeds, rate: float):
  """Values [B, P, N, H] mixed by softmax weights, to [B, Q, N, H].

  The weights of keys from num_valid [B] on are 0; of all others a share `rate`
  is dropped, by two seeds (None for no dropout).

  With p the weights, w what dropout leaves of them and o the result, the
  gradient of the logits is p · (drop(do·vᵀ) - do·o): the row sum of p and the
  gradient of p, which softmax needs, is that of do and o.
  """
  p = _weights(query, key, num_valid, value.dtype)
  return jnp.einsum("bnqk,bknh->bqnh", _drop(p, seeds, rate), value)


def _forward(query, key, value, num_valid, seeds, rate):
  # Else XLA keeps the float32 of which p is rounded.
  p = jax.lax.optimization_barrier(_weights(query, key, num_valid, value.dtype))
  mixed = jnp.einsum("bnqk,bknh->bqnh", _drop(p, seeds, rate), value)
  return mixed, (query, key, value, p, mixed, num_valid, seeds)


def _backward(rate, kept, gradient):
  query, key, value, p, mixed, num_valid, seeds = kept
  dtype, scale = query.dtype, query.shape[-1] ** -0.5
  to_value = jnp.einsum(
    "bnqk,bqnh->bknh", _drop(p, seeds, rate), gradient
  ).astype(dtype)
  to_weights = jnp.einsum("bqnh,bknh->bnqk", gradient, value)
  to_weights = _drop(to_weights.astype(jnp.float32), seeds, rate)
  level = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1)
  level = jnp.swapaxes(level, 1, 2)[..., None]
  to_logits = (p * (to_weights - level)).astype(dtype)
  to_query = jnp.einsum("bnqk,bknh->bqnh", to_logits, key) * scale
  to_key = jnp.einsum("bnqk,bqnh->bknh", to_logits, query * scale)
  integers = no_gradient((num_valid, seeds))
  return to_query, to_key, to_value, *integers


mix.defvjp(_forward, _backward)


def _drop(weights, seeds, rate):
  return weights if seeds is None else drop(weights, seeds, rate)


def _weights(query, key, num_valid, dtype):
  """The softmax, in float32, and rounded."""
  logits = jnp.einsum(
    "bqnh,bknh->bnqk",
    query * query.shape[-1] ** -0.5,
    key,
    preferred_element_type=jnp.float32,
  )
  is_valid = jnp.arange(key.shape[1]) < num_valid[:, None]
  lowest = jnp.finfo(jnp.float32).min
  logits = jnp.where(is_valid[:, None, None, :], logits, lowest)
  return jax.nn.softmax(logits, axis=-1).astype(dtype)
