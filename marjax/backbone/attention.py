"""Multi-head self-attention over sequences that lie side by side.

1. q, k and v are three products: one would have to be cut up by a copy.
2. Each sequence attends within itself, to its first `num_valid` slots.
3. Logits and softmax are float32. On an NVIDIA GPU, without dropout and in
   bfloat16, cuDNN's fused kernel does the same without writing the logits;
   elsewhere, and wherever it does not fit, two einsums do; their backward
   pass keeps the weights in the dtype of the matmuls.
4. Queries may be some of the slots only: what no later layer reads is not
   computed.
"""

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from marjax.arrays import Counts
from marjax.backbone.dropout import Dropout, drop
from marjax.linear import constrained, linear, product

HEAD_AXES = ("batch", "sequence", "heads", "head_dim")


@dataclass(frozen=True)
class AttentionConfig:
  """Width, heads and dropout on the weights; dtype is that of the matmuls."""

  width: int
  num_heads: int
  dropout: float
  dtype: str


class Attention(nn.Module):
  """Self-attention; see the module docstring."""

  config: AttentionConfig

  def setup(self):
    c = self.config
    head_dim = c.width // c.num_heads
    dtype = jnp.dtype(c.dtype)
    self.qkv = linear(
      (3, c.num_heads, head_dim),
      ("embed", None, "heads", "head_dim"),
      dtype=dtype,
    )
    self.projection = linear(
      c.width, ("heads", "head_dim", "embed"), dtype=dtype
    )
    self.dropout = Dropout(c.dropout)

  def __call__(
    self,
    x: Float[Array, "B P W"],
    lengths: tuple[int, ...],
    num_valid: list[Counts],
    deterministic: bool,
    queries: Float[Array, "B Q W"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """Slots to slots.

    Args:
      x: one or several sequences. lengths: slots of each; they add up to P.
      num_valid: for each sequence, how many of its slots hold something [B].
      deterministic: True turns dropout off.
      queries: slots of a single sequence that attend; None for all.
    """
    kernel, bias = self.qkv.weights((self.config.width,))
    ends = np.cumsum(lengths)[:-1]

    def part(index, slots):
      with jax.named_scope("qkv"):
        made = product(slots, kernel[:, index], bias[index])
        return constrained(made, HEAD_AXES)

    query = part(0, x if queries is None else queries)
    sequences = (
      [query] if queries is not None else jnp.split(query, ends, axis=1),
      jnp.split(part(1, x), ends, axis=1),
      jnp.split(part(2, x), ends, axis=1),
    )
    mixed = [
      attend(*parts, self.dropout, deterministic)
      for parts in zip(*sequences, num_valid, strict=True)
    ]
    mixed = checkpoint_name(jnp.concatenate(mixed, axis=1), "attention")
    return self.projection(mixed)


def attend(
  query: Float[Array, "B Q N H"],
  key: Float[Array, "B P N H"],
  value: Float[Array, "B P N H"],
  num_valid: Counts,
  dropout: Dropout,
  deterministic: bool,
) -> Float[Array, "B Q N H"]:
  """Bidirectional attention to the first num_valid keys of each image."""
  seeds = dropout.seeds(deterministic)
  if not fits_cudnn(query, key, dropout.rate, deterministic):
    return mix(query, key, value, num_valid, seeds, dropout.rate)
  return jax.lax.platform_dependent(
    *(query, key, value, num_valid),
    cuda=_fused,
    default=lambda *args: mix(*args, None, 0.0),
  )


def fits_cudnn(query, key, rate: float, deterministic: bool) -> bool:
  """Whether a GPU of this process has a fused kernel for these arrays.

  It has no dropout of ours, and its backward pass wants even lengths.
  """
  is_plain = deterministic or rate == 0.0
  is_even = deterministic or key.shape[1] % 2 == 0
  is_known = query.dtype == jnp.bfloat16 and query.shape[-1] in _HEAD_DIMS
  return is_plain and is_even and is_known and _has_cudnn()


_HEAD_DIMS = range(8, 129, 8)


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
  integers = [
    jax.tree.map(lambda array: np.zeros(array.shape, jax.dtypes.float0), array)
    for array in (num_valid, seeds)
  ]
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


def _fused(query, key, value, num_valid):
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    key_value_seq_lengths=num_valid.astype(jnp.int32),
    implementation="cudnn",
  )


def _has_cudnn() -> bool:
  """Whether this process has a GPU for which cuDNN has the kernel."""
  return any(
    device.platform == "gpu"
    and "cuda" in device.client.platform_version
    and float(device.compute_capability) >= 8.0
    for device in jax.local_devices()
  )
