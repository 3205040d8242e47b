"""The guided backbone: a cache, several tokens a step, and any order at once.

    memory      condition | token 0  token 1  ...  token k-1 | token k ...
    query k        ▲          ▲        ▲             ▲            ·

1. Memory: prefix slots hold the condition, then the known tokens in the order
   in which they were drawn, each with its position; causal blocks, norm, then
   one projection to keys and values.
2. Query: a learned vector and the position of the token that is asked for.
   Blocks of cross-attention to the memory's keys and values, the same for all
   blocks; queries do not see each other, and query k sees tokens before k only.
3. z = norm(blocks) + the position of the token, for the head. Loss on every
   token.
4. The order is random in training, so any of the tokens that are not known may
   be asked for next: a step takes the tokens that became known since the one
   before into the memory, and asks for as many as the schedule says.

Source: arXiv 2503.10568, there with cross-entropy; with a head that draws
continuous tokens nobody has published it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from marjax import keys, schema
from marjax.arrays import Counts, ImageKeys, Leaf, Order
from marjax.backbone.blocks import SLOT_AXES, Cache
from marjax.backbone.causal import CausalDraws, Remembering
from marjax.backbone.embeddings import PositionEmbedding
from marjax.backbone.stack import Queries, Stack
from marjax.backbone.transformer import (
  Depth,
  TransformerConfig,
  cache_cost,
  filled,
)
from marjax.layers.attention import HEAD_AXES
from marjax.layers.linear import linear, small_normal
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import constrained
from marjax.schema import Size


@schema.config
class GuidedConfig(TransformerConfig):
  """Shape of the guided backbone.

  Attributes, beside those of `TransformerConfig`:
    memory_depth, query_depth: blocks of each.
    num_prefix: slots that hold the condition.
  """

  memory_depth: Depth = 12
  query_depth: Depth = 12
  num_prefix: Size = 1
  kind: Literal["guided"] = "guided"
  has_cache: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    self.check_slots("num_prefix")

  def build(self) -> "GuidedBackbone":
    """The linen module of this shape."""
    return GuidedBackbone(self)

  def draw(self, image_keys: ImageKeys) -> CausalDraws:
    """The order of B training images."""
    return CausalDraws(self.orders(keys.each(image_keys, "order")))

  def step_cost(self, num_known: int) -> float:
    """Multiplications of a step of generation that knows so many tokens.

    Of one token into the memory, and one query.
    """
    depth = self.memory_depth + self.query_depth
    look_back = cache_cost(self.num_prefix + num_known, self.width)
    return depth * (12.0 * self.width**2 + look_back)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GuidedState:
  """What a step of generation needs beside the known tokens.

  Attributes:
    slots: what is in each slot before its token comes [B, P + L, W].
    cache: of the memory's blocks.
    memory: keys and values for the queries, one layer of a cache.
    order: [B, L].
  """

  slots: Leaf
  cache: Leaf
  memory: Leaf
  order: Leaf


class GuidedBackbone(Remembering):
  """Known tokens, a condition and targets → z; see the module docstring."""

  config: GuidedConfig

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.class_embedding = c.condition.build(c.width)
    self.own_positions = PositionEmbedding(c.num_prefix, c.num_tokens, c.width)
    self.target_positions = PositionEmbedding(0, c.num_tokens, c.width)
    self.head_positions = PositionEmbedding(0, c.num_tokens, c.width)
    self.embed_token = c.token_embedding()
    self.embed_norm = LayerNorm(dtype=dtype)
    self.memory = Stack(c.block(is_causal=True), c.memory_depth, c.remat)
    self.memory_norm = LayerNorm(dtype=dtype)
    heads = (c.num_heads, c.width // c.num_heads)
    axes = ("embed", "heads", "head_dim")
    self.to_keys = linear(heads, axes, dtype=dtype)
    self.to_values = linear(heads, axes, dtype=dtype)
    self.query_token = self.param(
      "query_token",
      nn.with_logical_partitioning(small_normal, (None, None, "embed")),
      (1, 1, c.width),
    )
    self.queries = Queries(c.block(), c.query_depth, c.remat)
    self.norm = LayerNorm()

  def training_z(
    self,
    tokens: Shaped[Array, "B L *token"],
    draws: CausalDraws,
    condition: PyTree,
    deterministic: bool,
  ) -> tuple[Float[Array, "B L W"], Float[Array, "B L"]]:
    """z of all tokens in order space, and 1 for each of them."""
    slots = self._slots(condition, draws.order)[:, :-1]
    x = self._with_tokens(slots, tokens[:, :-1])
    num_slots = jnp.full(x.shape[0], x.shape[1])
    x = self.memory(x, (x.shape[1],), [num_slots], deterministic)
    memory = (*self._keys_and_values(x), num_slots)
    z = self._asked(draws.order, memory, deterministic, is_causal=True)
    return z, jnp.ones(z.shape[:2])

  def start(
    self,
    condition: PyTree,
    order: Order,
    known: Shaped[Array, "B L *token"] | None = None,
  ) -> GuidedState:
    """The state before the first step: the prefix is in the memory.

    Args:
      condition: of each image. order: see there.
      known: tokens in order space, some of which are known from the start:
        they are in the memory too.
    """
    c = self.config
    slots = self._slots(condition, order)
    batch, count, _ = slots.shape
    cache = Cache.empty(c.block(), c.memory_depth, batch, count)
    memory = Cache.empty(c.block(), 1, batch, count)
    state = GuidedState(slots, cache, memory, order)
    if known is not None:
      x = self._with_tokens(slots, known[:, : c.num_tokens])
      return self._remember(state, x, None, count)
    x = self._with_tokens(slots[:, : c.num_prefix], None)
    return self._remember(state, x, None, c.num_prefix)

  def step(
    self,
    state: GuidedState,
    tokens: Shaped[Array, "B K *token"],
    num_known: Counts,
    window: Int[Array, " Q"],
    num_new: int = 1,
  ) -> tuple[Float[Array, "B Q W"], GuidedState]:
    """z of the tokens at the generation indices `window`, and the next state.

    Args:
      state: after the steps for all tokens before them.
      tokens: known ones, in order space.
      num_known: of each image, at least window[0].
      window: what is asked for.
      num_new: at most so many tokens became known since the step before. More
        do no harm: what is remembered already is written again.
    """
    c = self.config
    num_new = min(num_new, tokens.shape[1])
    if num_new:
      # What runs over the known ones is written, not seen, and written again.
      first = jnp.maximum(window[0] - num_new, 0)
      new = jax.lax.dynamic_slice_in_dim(tokens, first, num_new, 1)
      at = c.num_prefix + first
      slots = jax.lax.dynamic_slice_in_dim(state.slots, at, num_new, 1)
      x = self.embed_norm(slots + self._embedded(new))
      state = self._remember(state, x, at, c.num_prefix + tokens.shape[1])
    keys_and_values = state.memory.of(0, c.num_prefix + tokens.shape[1])
    memory = (*keys_and_values, c.num_prefix + num_known)
    order = jnp.take(state.order, window, axis=1)
    return self._asked(order, memory, deterministic=True), state

  def _slots(self, condition, order):
    """What is in each slot of the memory but the tokens [B, P + L, W]."""
    c = self.config
    prefix = filled(self.class_embedding(condition), c.num_prefix)
    prefix = jnp.pad(prefix, ((0, 0), (0, c.num_tokens), (0, 0)))
    return self.own_positions(order) + prefix

  def _keys_and_values(self, x):
    """Of the memory's slots [B, F, W], each [B, F, heads, head_dim]."""
    u = self.memory_norm(x)
    return tuple(
      constrained(layer(u), HEAD_AXES)
      for layer in (self.to_keys, self.to_values)
    )

  def _remember(self, state: GuidedState, x, first, length: int):
    """The state with new slots in the memory; see `Stack.cached`."""
    x, cache = self.memory.cached(x, state.cache, first, length)
    new = self._keys_and_values(x)
    memory = state.memory.written(*new, 0, 0 if first is None else first)
    return replace(state, cache=cache, memory=memory)

  def _asked(self, order, memory: tuple, deterministic, is_causal=False):
    """z of the tokens at raster positions [B, Q]."""
    dtype = jnp.dtype(self.config.dtype)
    x = (self.query_token + self.target_positions(order)).astype(dtype)
    x = constrained(x, SLOT_AXES)
    x = self.queries(x, *memory, deterministic, is_causal)
    return constrained(self.norm(x) + self.head_positions(order), SLOT_AXES)
