"""Attention as kernels for NVIDIA GPUs, which never write its weights.

    o = drop(softmax(q·kᵀ / √H)) · v       per head, of each sequence by itself

1. A program of the forward kernel holds some queries of one head and goes over
   the keys block by block, with a running maximum and sum (arXiv 2205.14135).
   It keeps the logarithm of the sum for the backward pass.
2. Two backward kernels compute the weights again: one holds queries and sums
   their gradient over keys, the other holds keys and values and sums theirs
   over queries. With p the weights and w what dropout leaves of them,

       dv = wᵀ·do    ds = p · (drop(do·vᵀ) - do·o)    dq = ds·k    dk = dsᵀ·q

3. Blocks of keys from num_valid on are not looked at.
4. The mask of dropout is `marjax.backbone.dropout`'s hash, computed wherever it
   is needed.
5. A head's numbers are in parts of powers of 2, 80 in 64 and 16: a program's
   arrays have such sizes.
6. Sequences that lie side by side stay where they are: a table says which
   slots a program works on.

Products take bfloat16 and sum in float32; softmax is float32. `mix` in
`marjax.backbone.attention` computes the same with einsums.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from marjax.backbone.dropout import survives

BLOCK = 64
"""Queries, and keys, that a program works on at a time."""

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Sequences:
  """What lies side by side on the axes of slots.

  Attributes:
    queries, keys: slots of each sequence; they add up to the axes' sizes.
  """

  queries: tuple[int, ...]
  keys: tuple[int, ...]


class Inputs(NamedTuple):
  """What both passes are given; S sequences, N heads on this device.

  Attributes:
    query: bfloat16 [B, Q, N, H]. key, value: bfloat16 [B, P, N, H].
    num_valid: int32 [B, S], keys of each sequence; at least 1.
    seeds: uint32 [B, S], `dropout.entry_seeds`; unused without dropout.
    heads: int32 [N], their indices among those of all devices.
  """

  query: Any
  key: Any
  value: Any
  num_valid: Any
  seeds: Any
  heads: Any


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def forward(
  sequences: Sequences, rate: float, inputs: Inputs, interpret: bool = False
):
  """Attention [B, Q, N, H] and the sums' base-2 logarithms [B, N, Q].

  Args:
    sequences, inputs: see there.
    rate: share of the weights that is dropped; 0 for no dropout.
    interpret: run on any platform, slowly.
  """
  query = inputs.query
  sums = jax.ShapeDtypeStruct(
    (query.shape[0], query.shape[2], query.shape[1]), jnp.float32
  )
  return _call(
    *("attention", _forward_kernel, _table(sequences, "queries"), inputs, ()),
    *(rate, (query, sums), interpret),
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def backward(
  sequences: Sequences,
  rate: float,
  inputs: Inputs,
  mixed,
  sums,
  gradient,
  interpret: bool = False,
):
  """The gradients of query, key and value, given that of the result.

  Args:
    sequences, rate, inputs, interpret: as `forward` had them.
    mixed, sums: what it gave. gradient: of mixed.
  """
  level = jnp.sum(
    gradient.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1
  )
  more = (sums, jnp.swapaxes(level, 1, 2), gradient)
  (to_query,) = _call(
    *("attention_dq", _query_kernel, _table(sequences, "queries"), inputs),
    *(more, rate, (inputs.query,), interpret),
  )
  to_key, to_value = _call(
    *("attention_dkv", _key_kernel, _table(sequences, "keys"), inputs),
    *(more, rate, (inputs.key, inputs.value), interpret),
  )
  return to_query, to_key, to_value


def _call(name, kernel, table, inputs, more, rate, outputs, interpret):
  """A kernel's results, shaped as `outputs`: a program per block and head."""
  batch, _, heads, _ = inputs.query.shape
  return pl.pallas_call(
    functools.partial(kernel, rate),
    name=name,
    grid=(len(table), heads, batch),
    out_shape=[
      jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
  )(jnp.asarray(table), *inputs, *more)


def _table(sequences: Sequences, of: str) -> np.ndarray:
  """For each block of queries or keys: where it is, and its sequence.

  Columns: sequence, first slot of the block within it, then first slot and
  number of slots of the sequence's queries, and of its keys.
  """
  starts = [
    np.cumsum([0, *lengths]) for lengths in (sequences.queries, sequences.keys)
  ]
  rows = []
  for index, sizes in enumerate(
    zip(sequences.queries, sequences.keys, strict=True)
  ):
    length = getattr(sequences, of)[index]
    for first in range(0, length, BLOCK):
      own = (starts[0][index], sizes[0], starts[1][index], sizes[1])
      rows.append((index, first, *own))
  return np.asarray(rows, np.int32)


class _Program:
  """Which part of the arrays a program works on, and what it does to them."""

  def __init__(self, rate, table, query, key, value, num_valid, seeds, heads):
    block, self.head, self.image = (pl.program_id(axis) for axis in range(3))
    self.sequence, self.first = table[block, 0], table[block, 1]
    self.query_start, self.num_queries = table[block, 2], table[block, 3]
    self.key_start, self.num_keys = table[block, 4], table[block, 5]
    self.num_valid = num_valid[self.image, self.sequence]
    self.query, self.key, self.value = query, key, value
    self.rate = rate
    self.seed = seeds[self.image, self.sequence]
    self.head_of_all = heads[self.head]
    self.dim = query.shape[-1]
    self.sizes = [
      1 << bit for bit in reversed(range(8)) if self.dim & (1 << bit)
    ]

  def load(self, ref, start, first, end):
    """Slots from `first` on, zeros from `end` on, in parts [BLOCK, size]."""
    mask = (first + jnp.arange(BLOCK) < end)[:, None]
    return [
      plgpu.load(at, mask=mask, other=0.0)
      for at in self._parts(ref, start + first)
    ]

  def store(self, ref, start, first, end, parts):
    """Writes slots from `first` on, up to `end`."""
    mask = (first + jnp.arange(BLOCK) < end)[:, None]
    for at, part in zip(self._parts(ref, start + first), parts, strict=True):
      plgpu.store(at, part.astype(ref.dtype), mask=mask)

  def zeros(self):
    """Parts of a sum over slots."""
    return [jnp.zeros((BLOCK, size), jnp.float32) for size in self.sizes]

  def _parts(self, ref, first):
    ends = np.cumsum(self.sizes)
    return [
      ref.at[
        self.image, pl.ds(first, BLOCK), self.head, pl.ds(end - size, size)
      ]
      for size, end in zip(self.sizes, ends.tolist(), strict=True)
    ]

  def rows(self, ref, first):
    """A number of each query [BLOCK], of an array [B, N, Q]."""
    at = ref.at[self.image, self.head, pl.ds(self.query_start + first, BLOCK)]
    inside = first + jnp.arange(BLOCK) < self.num_queries
    return plgpu.load(at, mask=inside, other=0.0)

  def logits(self, query, key, first_key):
    """In base 2 [queries, keys], the lowest for keys that are not valid."""
    logits = _products(query, key) * (_LOG2_E * self.dim**-0.5)
    is_valid = first_key + jnp.arange(BLOCK) < self.num_valid
    return jnp.where(is_valid[None, :], logits, -1e30)

  def drop(self, first_query, first_key):
    """A function that drops of weights [queries, keys], without scaling."""
    if self.rate == 0.0:
      return lambda weights: weights
    query = (first_query + jnp.arange(BLOCK)).astype(jnp.uint32)[:, None]
    key = (first_key + jnp.arange(BLOCK)).astype(jnp.uint32)[None, :]
    size, num_queries = (
      number.astype(jnp.uint32) for number in (self.num_keys, self.num_queries)
    )
    row = self.head_of_all.astype(jnp.uint32) * num_queries + query
    kept = survives(self.seed, row * size + key, self.rate)
    return lambda weights: jnp.where(kept, weights, 0.0)

  @property
  def scale(self) -> float:
    """What dropout multiplies with."""
    return 1.0 / (1.0 - self.rate)


def _products(a, b):
  """The dot products of slots with slots [a's, b's]."""
  return sum(plgpu.dot(one, two.T) for one, two in zip(a, b, strict=True))


def _plus(totals, weights, parts):
  """Sums, with parts of slots added by weights [total's, part's]."""
  return [
    total + plgpu.dot(weights, part)
    for total, part in zip(totals, parts, strict=True)
  ]


def _times(parts, factor):
  return [part * factor for part in parts]


def _forward_kernel(
  rate, table, query, key, value, num_valid, seeds, heads, mixed, sums
):
  own = _Program(rate, table, query, key, value, num_valid, seeds, heads)
  held = own.load(query, own.query_start, own.first, own.num_queries)

  def step(index, carry):
    total, highest, weighed = carry
    first = index * BLOCK
    keys = own.load(key, own.key_start, first, own.num_valid)
    values = own.load(value, own.key_start, first, own.num_valid)
    logits = own.logits(held, keys, first)
    new = jnp.maximum(highest, jnp.max(logits, axis=1))
    shrink, weights = jnp.exp2(highest - new), jnp.exp2(logits - new[:, None])
    total = total * shrink + jnp.sum(weights, axis=1)
    weights = own.drop(own.first, first)(weights).astype(value.dtype)
    weighed = _plus(_times(weighed, shrink[:, None]), weights, values)
    return total, new, weighed

  zeros = jnp.zeros((BLOCK,), jnp.float32)
  start = (zeros, zeros - 1e30, own.zeros())
  total, highest, weighed = jax.lax.fori_loop(
    0, pl.cdiv(own.num_valid, BLOCK), step, start
  )
  weighed = _times(weighed, (own.scale / total)[:, None])
  own.store(mixed, own.query_start, own.first, own.num_queries, weighed)
  plgpu.store(
    sums.at[own.image, own.head, pl.ds(own.query_start + own.first, BLOCK)],
    highest + jnp.log2(total),
    mask=own.first + jnp.arange(BLOCK) < own.num_queries,
  )


def _query_kernel(
  rate,
  table,
  query,
  key,
  value,
  num_valid,
  seeds,
  heads,
  sums,
  level,
  gradient,
  to_query,
):
  own = _Program(rate, table, query, key, value, num_valid, seeds, heads)
  where = (own.query_start, own.first, own.num_queries)
  held, along = own.load(query, *where), own.load(gradient, *where)
  sums, level = own.rows(sums, own.first), own.rows(level, own.first)

  def step(index, to_held):
    first = index * BLOCK
    keys = own.load(key, own.key_start, first, own.num_valid)
    values = own.load(value, own.key_start, first, own.num_valid)
    weights = jnp.exp2(own.logits(held, keys, first) - sums[:, None])
    to_weights = own.drop(own.first, first)(_products(along, values))
    to_logits = weights * (to_weights * own.scale - level[:, None])
    return _plus(to_held, to_logits.astype(key.dtype), keys)

  to_held = jax.lax.fori_loop(
    0, pl.cdiv(own.num_valid, BLOCK), step, own.zeros()
  )
  own.store(to_query, *where, _times(to_held, own.dim**-0.5))


def _key_kernel(
  rate,
  table,
  query,
  key,
  value,
  num_valid,
  seeds,
  heads,
  sums,
  level,
  gradient,
  to_key,
  to_value,
):
  own = _Program(rate, table, query, key, value, num_valid, seeds, heads)
  held = own.load(key, own.key_start, own.first, own.num_valid)
  held_values = own.load(value, own.key_start, own.first, own.num_valid)

  def step(index, carry):
    to_held, to_held_values = carry
    first = index * BLOCK
    where = (own.query_start, first, own.num_queries)
    queries, along = own.load(query, *where), own.load(gradient, *where)
    drop = own.drop(first, own.first)
    logits = own.logits(queries, held, own.first)
    weights = jnp.exp2(logits - own.rows(sums, first)[:, None])
    left = (drop(weights) * own.scale).astype(gradient.dtype)
    to_held_values = _plus(to_held_values, left.T, along)
    to_weights = drop(_products(along, held_values)) * own.scale
    to_logits = weights * (to_weights - own.rows(level, first)[:, None])
    to_held = _plus(to_held, to_logits.astype(query.dtype).T, queries)
    return to_held, to_held_values

  # A block without valid keys has no gradient.
  steps = pl.cdiv(own.num_queries, BLOCK)
  steps = jnp.where(own.first < own.num_valid, steps, jnp.zeros_like(steps))
  start = (own.zeros(), own.zeros())
  to_held, to_held_values = jax.lax.fori_loop(0, steps, step, start)
  where = (own.key_start, own.first, own.num_keys)
  own.store(to_key, *where, _times(to_held, own.dim**-0.5))
  own.store(to_value, *where, to_held_values)
