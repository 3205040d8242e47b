"""Transformer blocks: pre-norm attention and MLP.

1. x += proj(attention(norm(x))); x += fc2(gelu(fc1(norm(x)))), exact GELU, but
   see `marjax.layers.gelu` for bfloat16.
2. Sequences of several lengths may lie side by side on one axis, so that all
   but attention is one matrix product; attention stays within each:

       slots       | sequence 0 ... pad | sequence 1 ....... pad | ...
       num_valid     ───────▶             ─────────────▶

   Slots from num_valid on get no attention; softmax is float32.
3. Dropout: on attention weights, after the attention projection, after the
   activation and after fc2 (spec section 3). Its seeds are drawn before the
   blocks, so that these are functions of arrays.
4. Where only some slots are wanted of a block, it computes keys and values of
   all slots, and everything else of those.
5. A causal block goes on from a cache of keys and values: those of new slots
   are written into it, in place, and new slots look back at it.

       cache [layers, B, S, heads, head_dim]  ■ ■ ■ ■ ■ new new · · ·
                                              0 ..... first      length

6. A block of queries attends to keys and values that others gave, and no query
   sees another.
"""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from marjax.arrays import Counts, Leaf
from marjax.layers.add_norm import Branch, Norm, add_norm, added
from marjax.layers.attention import (
  CACHE_AXES,
  HEAD_AXES,
  attend,
  look_back,
)
from marjax.layers.gelu import gelu_of_product
from marjax.layers.gpu.attention import Sequences
from marjax.layers.linear import linear, product, shared
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import constrained, is_split

SLOT_AXES = ("batch", "sequence", "features")


@dataclass(frozen=True)
class BlockConfig:
  """Shape and dropout of one block; dtype is that of the matmuls.

  If it is causal, no slot attends to those that come after it.
  """

  width: int
  num_heads: int
  mlp_ratio: int
  attention_dropout: float
  projection_dropout: float
  dtype: str
  is_causal: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
  """Keys and values of slots of each layer, [layers, B, S, heads, head_dim]."""

  keys: Leaf
  values: Leaf

  @classmethod
  def empty(cls, config: BlockConfig, depth: int, batch: int, slots: int):
    """A cache of zeros, in the dtype of the matmuls."""
    heads = (config.num_heads, config.width // config.num_heads)
    zeros = jnp.zeros((depth, batch, slots, *heads), config.dtype)
    return cls(constrained(zeros, CACHE_AXES), constrained(zeros, CACHE_AXES))

  def written(self, keys, values, layer, first) -> "Cache":
    """With those [B, F, heads, head_dim] of a layer, from slot `first` on."""
    at = (layer, 0, first, 0, 0)

    def put(cache, new):
      cache = jax.lax.dynamic_update_slice(cache, new[None], at)
      return constrained(cache, CACHE_AXES)

    return Cache(put(self.keys, keys), put(self.values, values))

  def of(self, layer, length: int):
    """Keys and values of a layer's first slots, [B, length, ...] each."""
    return self.keys[layer, :, :length], self.values[layer, :, :length]


class Attention(nn.Module):
  """Self-attention; see the module docstring."""

  config: BlockConfig

  def setup(self):
    c = self.config
    heads, dtype = (c.num_heads, c.width // c.num_heads), jnp.dtype(c.dtype)
    self.qkv = linear(
      (3, *heads), ("embed", None, "heads", "head_dim"), dtype=dtype
    )
    self.projection = linear(
      c.width, ("heads", "head_dim", "embed"), dtype=dtype
    )

  def __call__(
    self,
    x: Float[Array, "B P W"],
    lengths: tuple[int, ...],
    num_valid: list[Counts],
    seeds: UInt32[Array, "sequences B"] | None = None,
    window: Int[Array, " Q"] | None = None,
  ) -> Float[Array, "B Q N H"]:
    """Slots to what each head mixes of them, before the projection.

    Args:
      x: normalised slots. lengths, num_valid, window: those of a `Stack`.
      seeds: of dropout, for each sequence.
    """
    part, bias = self._parts()
    queries, keys, values = shared(x, 3)
    sequences = Sequences(lengths, lengths, self.config.is_causal)
    if window is not None:
      queries = jnp.take(queries, window, axis=1)
      sequences = Sequences((window.size,), lengths)
    return attend(
      part(0, queries),
      part(1, keys),
      part(2, values),
      bias,
      num_valid,
      sequences,
      seeds,
      self.config.attention_dropout,
    )

  def _parts(self):
    """(0, 1 or 2 for query, key or value, slots) to that; and their biases."""
    kernel, bias = self.qkv.weights((self.config.width,))

    def part(index, slots):
      with jax.named_scope("qkv"):
        # Its gradient is computed with attention's.
        own = jax.lax.stop_gradient(bias[index])
        return constrained(product(slots, kernel[:, index], own), HEAD_AXES)

    return part, bias

  def cached(
    self,
    x: Float[Array, "B F W"],
    cache: Cache,
    layer: Int[Array, ""],
    first: Int[Array, ""] | None,
    length: int,
  ) -> tuple[Float[Array, "B F N H"], Cache]:
    """The same for new slots after those of a cache, see `Stack.cached`."""
    kernel, bias = self.qkv.weights((self.config.width,))
    if is_split("heads"):
      part, _ = self._parts()
      query, *new = (part(index, x) for index in range(3))
    else:
      # A few rows are soon multiplied: one product is launched, not three.
      with jax.named_scope("qkv"):
        whole = product(x, kernel, bias)
      query, *new = (constrained(whole[:, :, i], HEAD_AXES) for i in range(3))
    cache = cache.written(*new, layer, 0 if first is None else first)
    if first is not None:
      kept = (cache.keys, cache.values)
      return look_back(query, *kept, layer, first, length), cache
    count = x.shape[1]
    num_valid, own = (
      [jnp.full(x.shape[:1], count)],
      Sequences((count,), (count,), True),
    )
    return attend(query, *new, bias, num_valid, own), cache


class CrossAttention(nn.Module):
  """Attention of queries to keys and values that are given."""

  config: BlockConfig

  def setup(self):
    c = self.config
    heads, dtype = (c.num_heads, c.width // c.num_heads), jnp.dtype(c.dtype)
    self.query = linear(heads, ("embed", "heads", "head_dim"), dtype=dtype)
    self.projection = linear(
      c.width, ("heads", "head_dim", "embed"), dtype=dtype
    )

  def __call__(
    self,
    x: Float[Array, "B Q W"],
    keys: Float[Array, "B P N H"],
    values: Float[Array, "B P N H"],
    num_valid: Counts,
    is_causal: bool,
    seeds: UInt32[Array, "1 B"] | None = None,
  ) -> Float[Array, "B Q N H"]:
    """What each head mixes of the values, before the projection."""
    query = constrained(self.query(x), HEAD_AXES)
    sequences = Sequences((x.shape[1],), (keys.shape[1],), is_causal)
    # Biases get their gradients from the products that they were added to.
    bias = jnp.zeros((3, *query.shape[2:]), query.dtype)
    return attend(
      query,
      keys,
      values,
      bias,
      [num_valid],
      sequences,
      seeds,
      self.config.attention_dropout,
    )


class Block(nn.Module):
  """One pre-norm transformer block; the arguments are those of a `Stack`."""

  config: BlockConfig
  mixer: ClassVar[type] = Attention

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.norm_attention = LayerNorm(dtype=dtype)
    self.attention = self.mixer(c)
    self.norm_mlp = LayerNorm(dtype=dtype)
    self.fc1 = linear(c.mlp_ratio * c.width, ("embed", "mlp"), dtype=dtype)
    self.fc2 = linear(c.width, ("mlp", "embed"), dtype=dtype)

  def __call__(
    self,
    x: Float[Array, "B P W"],
    lengths: tuple[int, ...],
    num_valid: list[Counts],
    seeds: UInt32[Array, "calls B"] | None = None,
    window: Int[Array, " Q"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """Slots to slots.

    Args:
      seeds: of dropout's calls: after projection, activation and fc2, and on
        the weights of each sequence; None for no dropout.
    """
    _, u = self._add_norm(x, None, self.norm_attention)
    of_weights = None if seeds is None else seeds[3:]
    mixed = self.attention(u, lengths, num_valid, of_weights, window)
    if window is not None:
      x = jnp.take(x, window, axis=1)
    return self._end(x, mixed, seeds)

  def cached(self, x, cache, layer, first, length):
    """New slots to new slots, and the cache with them, see `Stack.cached`."""
    _, u = self._add_norm(x, None, self.norm_attention)
    mixed, cache = self.attention.cached(u, cache, layer, first, length)
    return self._end(x, mixed, None), cache

  def _end(self, x, mixed, seeds):
    """The block from attention's projection on."""
    seeds = (None,) * 3 if seeds is None else seeds
    rate = self.config.projection_dropout
    branch = self._branch("projection", mixed, seeds[0])
    x, u = self._add_norm(x, branch, self.norm_mlp)
    with jax.named_scope("fc1"):
      weights = self.fc1.weights(u.shape[-1:])
      hidden = gelu_of_product(u, *weights, seeds[1], rate)
    branch = self._branch("fc2", hidden, seeds[2])
    return constrained(added(x, branch, rate), SLOT_AXES)

  def _branch(self, name, h, seeds) -> Branch:
    layer = self.fc2 if name == "fc2" else self.attention.projection
    kernel, bias = layer.weights(h.shape[2:])
    with jax.named_scope(name):
      if seeds is None:
        # cuBLAS adds the bias, and then x, within the product.
        return Branch(constrained(product(h, kernel, bias), SLOT_AXES))
      h = constrained(product(h, kernel), SLOT_AXES)
      return Branch(h, bias, seeds=seeds)

  def _add_norm(self, x, branch, norm):
    if branch is not None and branch.bias is None:
      x, branch = added(x, branch), None
    weights = Norm(*norm.weights(self.config.width))
    rate = self.config.projection_dropout
    return add_norm(x, branch, weights, norm.dtype, rate)


class CrossBlock(Block):
  """A block of queries; the arguments are those of `Queries`."""

  mixer: ClassVar[type] = CrossAttention

  def __call__(
    self,
    x: Float[Array, "B Q W"],
    memory: tuple,
    seeds: UInt32[Array, "calls B"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """Queries to queries; seeds as `Block`'s, the last on the weights."""
    _, u = self._add_norm(x, None, self.norm_attention)
    of_weights = None if seeds is None else seeds[3:]
    mixed = self.attention(u, *memory, of_weights)
    return self._end(x, mixed, seeds)
