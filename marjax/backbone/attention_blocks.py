"""What a program of an attention kernel works on: blocks of slots of one head.

1. Sequences that lie side by side stay where they are: a table says which
   slots, of which sequence, a program has.
2. A head's numbers are in parts of powers of 2, 80 in 64 and 16: a program's
   arrays have such sizes.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from marjax.dropout import survives

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
    rows: uint32 [B, N, Q], `dropout.row_hashes` of the weights' rows; of any
      length without dropout.
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

  def __init__(self, rate, table, inputs: Inputs):
    self.query, self.key, self.value, num_valid, self.row_hashes = inputs
    block, self.head, self.image = (pl.program_id(axis) for axis in range(3))
    self.block = block
    self.sequence, self.first = table[block, 0], table[block, 1]
    self.query_start, self.num_queries = table[block, 2], table[block, 3]
    self.key_start, self.num_keys = table[block, 4], table[block, 5]
    self.num_valid = num_valid[self.image, self.sequence]
    self.rate = rate
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

  def valid(self, first_key, products):
    """Products [queries, keys], the lowest for keys that are not valid."""
    is_valid = first_key + jnp.arange(BLOCK) < self.num_valid
    return jnp.where(is_valid[None, :], products, -1e30)

  def drop(self, first_query, first_key, queries_first=True):
    """A function that drops of weights [queries, keys], without scaling.

    Args:
      first_query, first_key: of the weights, within the sequence.
      queries_first: False for weights [keys, queries].
    """
    if self.rate == 0.0:
      return lambda weights: weights
    rows = self.rows(self.row_hashes, first_query)
    columns = (first_key + jnp.arange(BLOCK)).astype(jnp.uint32)
    if queries_first:
      rows, columns = rows[:, None], columns[None, :]
    else:
      rows, columns = rows[None, :], columns[:, None]
    kept = survives(rows, columns, self.rate)
    return lambda weights: jnp.where(kept, weights, 0.0)

  @property
  def scale(self) -> float:
    """What dropout multiplies with."""
    return 1.0 / (1.0 - self.rate)


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
