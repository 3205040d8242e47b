"""Attention as kernels for NVIDIA GPUs, which never write its weights.

    o = drop(softmax(q·kᵀ / √H)) · v       per head, of each sequence by itself

1. A program of the forward kernel holds some queries of one head and goes over
   the keys block by block, with a running maximum and sum (arXiv 2205.14135).
   It keeps the logarithm of the sum for the backward pass.
2. Two backward kernels compute the weights again: one holds queries and sums
   their gradient over keys, the other holds keys and values and sums theirs
   over queries. With p the weights and w what dropout leaves of them,

       dv = wᵀ·do    ds = p · (drop(do·vᵀ) - do·o)    dq = ds·k    dk = dsᵀ·q

   The first also gives do·o to the second, whose arrays are [keys, queries]:
   as it has them, they are factors of its products.
3. Each program sums its gradients over slots, for biases.
4. Blocks of keys from num_valid on are not looked at. Nor are, of a causal
   sequence, blocks that none of a block's queries sees: with as many queries as
   keys that is half of them. Of the others the diagonal cuts some:

       queries    0 -  63    ■ ◣ · ·
                 64 - 127    ■ ■ ◣ ·    keys 0 ... query + (keys - queries)
                128 - 191    ■ ■ ■ ◣
5. The mask of dropout is `marjax.layers.dropout`'s hash, computed wherever it
   is needed.

6. Sequences that lie side by side stay where they are: a table says which
   slots, of which sequence, a program has. A head's numbers are in parts of
   powers of 2, 80 in 64 and 16: a program's arrays have such sizes.

Products take bfloat16 and sum in float32; softmax is float32. `mix` in
`marjax.layers.attention` computes the same with einsums.
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

from marjax.layers.dropout import survives
from marjax.layers.gpu.instructions import exp2, fma, is_interpreted
from marjax.schema import check

BLOCK = 64
"""Queries, and keys, that a program works on at a time."""

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Sequences:
  """What lies side by side on the axes of slots.

  Attributes:
    queries, keys: slots of each sequence; they add up to the axes' sizes.
    is_causal: whether query i of a sequence sees its keys from 0 to
      i + (keys - queries) only, the last query all of them.

  Raises:
    ValueError: a causal sequence has more queries than keys.
  """

  queries: tuple[int, ...]
  keys: tuple[int, ...]
  is_causal: bool = False

  def __post_init__(self):
    each = zip(self.queries, self.keys, strict=True)
    longer = [pair for pair in each if self.is_causal and pair[0] > pair[1]]
    check(
      not longer,
      f"causal sequences have {longer} queries and keys; expected at least as"
      " many keys as queries, of which the last sees the last: add the keys"
      " that come before, or set is_causal=False.",
    )


class Inputs(NamedTuple):
  """What both passes are given; S sequences, N heads on this device.

  Attributes:
    query: bfloat16 [B, Q, N, H]. key, value: bfloat16 [B, P, N, H].
    num_valid: int32 [B, S], keys of each sequence; at least 1.
    rows: uint32 [B, N, Q], `dropout.row_hashes` of the weights' rows; None for
      no dropout.
  """

  query: Any
  key: Any
  value: Any
  num_valid: Any
  rows: Any


def table_of(sequences: Sequences, of: str) -> np.ndarray:
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


class Program:
  """Which part of the arrays a program works on, and what it does to them."""

  def __init__(self, rate, is_causal, table, inputs: Inputs):
    self.query, self.key, self.value, num_valid, self.row_hashes = inputs
    block, self.head, self.image = (pl.program_id(axis) for axis in range(3))
    self.block = block
    self.sequence, self.first = table[block, 0], table[block, 1]
    self.query_start, self.num_queries = table[block, 2], table[block, 3]
    self.key_start, self.num_keys = table[block, 4], table[block, 5]
    self.num_valid = num_valid[self.image, self.sequence]
    self.rate, self.is_causal = rate, is_causal
    self.dim = self.query.shape[-1]
    self.sizes = [
      1 << bit for bit in reversed(range(8)) if self.dim & (1 << bit)
    ]
    ends = np.cumsum(self.sizes).tolist()
    self.features = [
      pl.ds(end - size, size)
      for size, end in zip(self.sizes, ends, strict=True)
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

  def store_sums(self, ref, parts):
    """Writes sums over slots, of an array [B, blocks, N, H]."""
    for features, part in zip(self.features, parts, strict=True):
      at = ref.at[self.image, self.block, self.head, features]
      plgpu.store(at, jnp.sum(part, axis=0))

  def zeros(self):
    """Parts of a sum over slots."""
    return [jnp.zeros((BLOCK, size), jnp.float32) for size in self.sizes]

  def _parts(self, ref, first):
    slots = pl.ds(first, BLOCK)
    return [
      ref.at[self.image, slots, self.head, features]
      for features in self.features
    ]

  def rows(self, ref, first):
    """A number of each query [BLOCK], of an array [B, N, Q]."""
    at, inside = self._rows_at(ref, first)
    return plgpu.load(at, mask=inside, other=0)

  def store_rows(self, ref, first, values):
    """Writes a number of each query."""
    at, inside = self._rows_at(ref, first)
    plgpu.store(at, values, mask=inside)

  def _rows_at(self, ref, first):
    at = ref.at[self.image, self.head, pl.ds(self.query_start + first, BLOCK)]
    return at, first + jnp.arange(BLOCK) < self.num_queries

  @property
  def to_log2(self) -> float:
    """What products of queries and keys are multiplied with, in base 2."""
    return _LOG2_E * self.dim**-0.5

  @property
  def num_before(self):
    """Keys that come before that of the first query, in a causal sequence."""
    return self.num_keys - self.num_queries

  def num_seen(self, queries):
    """How many keys queries of a causal sequence see, from the first on."""
    return jnp.minimum(queries + self.num_before + 1, self.num_valid)

  def end_of_keys(self):
    """The first block of keys that no query of the program's block sees."""
    end = self.num_valid
    if self.is_causal:
      end = self.num_seen(self.first + BLOCK - 1)
    return pl.cdiv(end, BLOCK)

  def start_of_queries(self):
    """The first block of queries that see a key of the program's block."""
    if not self.is_causal:
      return 0
    return jax.lax.div(jnp.maximum(self.first - self.num_before, 0), BLOCK)

  def seen(self, first_query, first_key, products, queries_first=True):
    """Products, the lowest for keys that a query does not see; see `drop`."""
    keys = first_key + jnp.arange(BLOCK)
    if not self.is_causal:
      return jnp.where((keys < self.num_valid)[None, :], products, -1e30)
    ends = self.num_seen(first_query + jnp.arange(BLOCK))
    ends, keys = crossed(ends, keys, queries_first)
    return jnp.where(keys < ends, products, -1e30)

  def drop(self, first_query, first_key, queries_first=True):
    """A function that drops of weights [queries, keys], without scaling.

    Args:
      first_query, first_key: of the weights, within the sequence.
      queries_first: False for weights [keys, queries].
    """
    if self.row_hashes is None:
      return lambda weights: weights
    rows = self.rows(self.row_hashes, first_query)
    columns = (first_key + jnp.arange(BLOCK)).astype(jnp.uint32)
    rows, columns = crossed(rows, columns, queries_first)
    kept = survives(rows, columns, self.rate)
    return lambda weights: jnp.where(kept, weights, 0.0)

  @property
  def scale(self) -> float:
    """What dropout multiplies with."""
    return 1.0 / (1.0 - self.rate)


def crossed(queries, keys, queries_first):
  """Numbers of queries and of keys, for arrays of [queries, keys] or others."""
  if queries_first:
    return queries[:, None], keys[None, :]
  return queries[None, :], keys[:, None]


def products(a, b):
  """The dot products of slots with slots [a's, b's]."""
  return sum(plgpu.dot(one, two.T) for one, two in zip(a, b, strict=True))


def plus(totals, weights, parts):
  """Sums, with parts of slots added by weights [total's, part's]."""
  return [
    total + plgpu.dot(weights, part)
    for total, part in zip(totals, parts, strict=True)
  ]


def times(parts, factor):
  """Parts of slots, each times a factor."""
  return [part * factor for part in parts]


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(sequences: Sequences, rate: float, inputs: Inputs):
  """Attention [B, Q, N, H] and the sums' base-2 logarithms [B, N, Q].

  Args:
    sequences, inputs: see there.
    rate: share of the weights that is dropped.
  """
  query = inputs.query
  sums = jax.ShapeDtypeStruct(
    (query.shape[0], query.shape[2], query.shape[1]), jnp.float32
  )
  return _call(
    _forward_kernel,
    sequences,
    "queries",
    rate,
    (inputs,),
    (query, sums),
    name="attention",
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def backward(
  sequences: Sequences, rate: float, inputs: Inputs, mixed, sums, gradient
):
  """The gradients of inputs, those of its integers None, given the result's.

  And float32 [3, N, H], their sums over entries and slots.

  Args:
    sequences, rate, inputs: as `forward` had them.
    mixed, sums: what it gave. gradient: of mixed.
  """
  batch, _, heads, dim = inputs.query.shape

  def totals(of):
    num_blocks = len(table_of(sequences, of))
    return jax.ShapeDtypeStruct((batch, num_blocks, heads, dim), jnp.float32)

  to_query, level, of_query = _call(
    _query_kernel,
    sequences,
    "queries",
    rate,
    (inputs, sums, mixed, gradient),
    (inputs.query, sums, totals("queries")),
    name="attention_dq",
  )
  to_key, to_value, *others = _call(
    _key_kernel,
    sequences,
    "keys",
    rate,
    (inputs, sums, level, gradient),
    (inputs.key, inputs.value, *[totals("keys")] * 2),
    name="attention_dkv",
  )
  each = [jnp.sum(one, axis=(0, 1)) for one in (of_query, *others)]
  return Inputs(to_query, to_key, to_value, None, None), jnp.stack(each)


def _call(kernel, sequences, of, rate, arrays, outputs, *, name):
  """A kernel's results, shaped as `outputs`: a program per block and head."""
  table = table_of(sequences, of)
  batch, _, heads, _ = arrays[0].query.shape
  leaves, structure = jax.tree.flatten(arrays)

  def body(table, *refs):
    inputs, *more = jax.tree.unflatten(structure, refs[: len(leaves)])
    own = Program(rate, sequences.is_causal, table, inputs)
    kernel(own, *more, *refs[len(leaves) :])

  return pl.pallas_call(
    body,
    name=name,
    grid=(len(table), heads, batch),
    out_shape=[
      jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=is_interpreted(),
  )(jnp.asarray(table), *leaves)


def _forward_kernel(own, mixed, sums):
  held = own.load(own.query, own.query_start, own.first, own.num_queries)

  def step(index, carry):
    total, highest, weighed = carry
    first = index * BLOCK
    keys = own.load(own.key, own.key_start, first, own.num_valid)
    values = own.load(own.value, own.key_start, first, own.num_valid)
    made = own.seen(own.first, first, products(held, keys))
    new = jnp.maximum(highest, jnp.max(made, axis=1) * own.to_log2)
    weights = exp2(fma(made, own.to_log2, -new[:, None]))
    shrink = exp2(highest - new)
    total = fma(total, shrink, jnp.sum(weights, axis=1))
    weights = own.drop(own.first, first)(weights).astype(own.value.dtype)
    weighed = plus(times(weighed, shrink[:, None]), weights, values)
    return total, new, weighed

  zeros = jnp.zeros((BLOCK,), jnp.float32)
  start = (zeros, zeros - 1e30, own.zeros())
  total, highest, weighed = jax.lax.fori_loop(0, own.end_of_keys(), step, start)
  weighed = times(weighed, (own.scale / total)[:, None])
  own.store(mixed, own.query_start, own.first, own.num_queries, weighed)
  own.store_rows(sums, own.first, highest + jnp.log2(total))


def _query_kernel(own, sums, mixed, gradient, to_query, to_level, total):
  where = (own.query_start, own.first, own.num_queries)
  held, along = own.load(own.query, *where), own.load(gradient, *where)
  level = sum(
    jnp.sum(one.astype(jnp.float32) * other.astype(jnp.float32), axis=1)
    for one, other in zip(along, own.load(mixed, *where), strict=True)
  )
  own.store_rows(to_level, own.first, level)
  sums = own.rows(sums, own.first)

  def step(index, to_held):
    first = index * BLOCK
    keys = own.load(own.key, own.key_start, first, own.num_valid)
    values = own.load(own.value, own.key_start, first, own.num_valid)
    made = own.seen(own.first, first, products(held, keys))
    weights = exp2(fma(made, own.to_log2, -sums[:, None]))
    to_weights = own.drop(own.first, first)(products(along, values))
    to_logits = weights * fma(to_weights, own.scale, -level[:, None])
    return plus(to_held, to_logits.astype(own.key.dtype), keys)

  to_held = jax.lax.fori_loop(0, own.end_of_keys(), step, own.zeros())
  to_held = times(to_held, own.dim**-0.5)
  own.store(to_query, *where, to_held)
  # Queries that are not there were loaded as 0, and so was their gradient.
  own.store_sums(total, to_held)


def _key_kernel(
  own, sums, level, gradient, to_key, to_value, total_of_key, total_of_value
):
  held = own.load(own.key, own.key_start, own.first, own.num_valid)
  held_values = own.load(own.value, own.key_start, own.first, own.num_valid)

  def step(index, carry):
    to_held, to_held_values = carry
    first = index * BLOCK
    where = (own.query_start, first, own.num_queries)
    queries, along = own.load(own.query, *where), own.load(gradient, *where)
    drop = own.drop(first, own.first, queries_first=False)
    sums_of, level_of = own.rows(sums, first), own.rows(level, first)
    made = products(held, queries)
    if own.is_causal:
      made = own.seen(first, own.first, made, queries_first=False)
    weights = exp2(fma(made, own.to_log2, -sums_of[None, :]))
    left = drop(weights).astype(gradient.dtype)
    to_held_values = plus(to_held_values, left, along)
    to_weights = drop(products(held_values, along))
    to_logits = weights * fma(to_weights, own.scale, -level_of[None, :])
    to_held = plus(to_held, to_logits.astype(own.query.dtype), queries)
    return to_held, to_held_values

  # A block without valid keys has no gradient.
  steps = pl.cdiv(own.num_queries, BLOCK)
  steps = jnp.where(own.first < own.num_valid, steps, jnp.zeros_like(steps))
  start = (own.zeros(), own.zeros())
  to_held, to_held_values = jax.lax.fori_loop(
    own.start_of_queries(), steps, step, start
  )
  where = (own.key_start, own.first, own.num_keys)
  # Keys that are not valid were loaded as 0; their weights may be anything.
  is_valid = (own.first + jnp.arange(BLOCK) < own.num_valid)[:, None]
  for ref, total, parts, factor in (
    (to_key, total_of_key, to_held, own.dim**-0.5),
    (to_value, total_of_value, to_held_values, own.scale),
  ):
    parts = [jnp.where(is_valid, part * factor, 0.0) for part in parts]
    own.store(ref, *where, parts)
    own.store_sums(total, parts)
