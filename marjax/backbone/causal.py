"""The causal backbone: standard autoregression, one token a step, with a cache.

    slot        0 ... P-1 | P        P+1       ...  P+L-2
    holds       condition | token 0  token 1   ...  token L-2
    predicts          t_0 | token 1  token 2   ...  token L-1

1. P prefix slots hold the condition; slot P + k holds the token that is drawn
   k-th. A slot sees itself and those before it, and predicts the next token.
2. In a slot: linear(token) + its own position + the position of the token that
   it predicts, then norm. The last prefix slot predicts the first token. In
   raster order the next position follows from the own one, and may be left out.
3. z = norm(blocks) + the position of the predicted token, for the head.
4. Loss on every token. Since the order is that of the slots, the triangle of
   attention is the same for all images, also where each has its own order.
5. A step of generation runs one new slot through the blocks, and looks back at
   the keys and values of all before it, which `Cache` holds.

DIFFERS: causal-positions. The paper does not say where its causal model in
random order gets the next position; here it enters with the input.
Source: arXiv 2406.11838, sections 3.3 and 4.2.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from marjax import keys, schema
from marjax.arrays import Counts, ImageKeys, Leaf, Order
from marjax.backbone.blocks import SLOT_AXES, Cache
from marjax.backbone.embeddings import PositionEmbedding
from marjax.backbone.stack import Stack
from marjax.backbone.transformer import (
  Depth,
  TransformerConfig,
  cache_cost,
  filled,
)
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import by_batch, constrained
from marjax.schema import Size, check


@schema.config
class CausalConfig(TransformerConfig):
  """Shape of the causal backbone.

  Attributes, beside those of `TransformerConfig`:
    depth: blocks. num_prefix: slots that hold the condition.
    order: "raster", or "random" for one order per image.
    target_positions: where a slot learns the position that it predicts: with
      its "input", in the "middle" of the blocks, or "none" (raster only).
  """

  depth: Depth = 24
  num_prefix: Size = 1
  order: Literal["raster", "random"] = "raster"
  target_positions: Literal["input", "middle", "none"] = "input"
  kind: Literal["causal"] = "causal"
  is_sequential: ClassVar[bool] = True
  has_cache: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    self.check_slots("num_prefix")
    check(
      self.target_positions != "none" or self.order == "raster",
      'backbone.target_positions is "none" with backbone.order "random";'
      ' expected "input" or "middle": a random order does not say which token'
      " comes next.",
    )
    check(
      self.target_positions != "middle" or self.depth > 1,
      'backbone.depth is 1 with backbone.target_positions "middle"; expected 2'
      ' blocks or more, or "input".',
    )

  @property
  def is_raster(self) -> bool:
    """Whether images are drawn in raster order only."""
    return self.order == "raster"

  @property
  def depths(self) -> tuple[int, ...]:
    """Blocks of each stack: before and after the middle, or of one."""
    if self.target_positions != "middle":
      return (self.depth,)
    return (self.depth // 2, self.depth - self.depth // 2)

  def build(self) -> "CausalBackbone":
    """The linen module of this shape."""
    return CausalBackbone(self)

  def orders(self, image_keys: ImageKeys) -> Order:
    """The generation order of each image [B, L]."""
    if not self.is_raster:
      return super().orders(image_keys)
    order = jnp.arange(self.num_tokens, dtype=jnp.int32)
    return jnp.broadcast_to(order, (len(image_keys), self.num_tokens))

  def draw(self, image_keys: ImageKeys) -> "CausalDraws":
    """The order of B training images."""
    return CausalDraws(self.orders(keys.each(image_keys, "order")))

  def step_cost(self, num_known: int) -> float:
    """Multiplications of a step of generation that knows so many tokens."""
    look_back = cache_cost(self.num_prefix + num_known, self.width)
    return self.depth * (12.0 * self.width**2 + look_back)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalDraws:
  """What is random about training on a batch: generation order [B, L]."""

  order: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalState:
  """What a step of generation needs beside the known tokens.

  Attributes:
    slots: what is in each slot before its token comes [B, P + L - 1, W].
    targets: added in the middle [B, P + L - 1, W], None if nothing is.
    caches: of each stack, keys and values of the slots so far.
    order: [B, L].
  """

  slots: Leaf
  targets: Leaf
  caches: Leaf
  order: Leaf


class Remembering(nn.Module):
  """What backbones share whose slots hold a prefix, then token after token."""

  def rows(self, values: Shaped[Array, "B L *rest"]) -> Shaped[Array, "..."]:
    """All of [B, L, ...]: every token is predicted."""
    return values

  def _with_tokens(self, slots, tokens):
    """Slots with the tokens that they hold, normalised."""
    if tokens is not None:
      slots = slots + _pad(self._embedded(tokens), self.config.num_prefix)
    return self.embed_norm(constrained(slots, SLOT_AXES))

  def _embedded(self, tokens):
    return by_batch(self.embed_token(by_batch(tokens)))


class CausalBackbone(Remembering):
  """Tokens so far and a condition → z; see the module docstring."""

  config: CausalConfig

  def setup(self):
    c = self.config
    self.class_embedding = c.condition.build(c.width)
    self.own_positions = PositionEmbedding(c.num_prefix, c.num_tokens, c.width)
    if c.target_positions != "none":
      self.target_positions = PositionEmbedding(0, c.num_tokens, c.width)
    self.head_positions = PositionEmbedding(0, c.num_tokens, c.width)
    self.embed_token = c.token_embedding()
    self.embed_norm = LayerNorm(dtype=jnp.dtype(c.dtype))
    block = c.block(is_causal=True)
    self.stacks = [Stack(block, depth, c.remat) for depth in c.depths]
    self.norm = LayerNorm()

  def training_z(
    self,
    tokens: Shaped[Array, "B L *token"],
    draws: CausalDraws,
    condition: PyTree,
    deterministic: bool,
  ) -> tuple[Float[Array, "B L W"], Float[Array, "B L"]]:
    """z of all tokens in order space, and 1 for each of them."""
    slots, targets = self._slots(condition, draws.order)
    x = self._with_tokens(slots, tokens[:, :-1])
    num_valid = [jnp.full(x.shape[0], x.shape[1])]
    for index, stack in enumerate(self.stacks):
      x = x if index == 0 or targets is None else x + targets.astype(x.dtype)
      x = stack(x, (x.shape[1],), num_valid, deterministic)
    z = self._z(x[:, self.config.num_prefix - 1 :], draws.order)
    return z, jnp.ones(z.shape[:2])

  def start(
    self,
    condition: PyTree,
    order: Order,
    known: Shaped[Array, "B L *token"] | None = None,
  ) -> CausalState:
    """The state before the first step: all slots but the last of the prefix.

    Args:
      condition: of each image. order: see there.
      known: tokens in order space, some of which are known from the start:
        their slots are filled too.
    """
    c = self.config
    slots, targets = self._slots(condition, order)
    batch, count, _ = slots.shape
    caches = tuple(
      Cache.empty(c.block(), depth, batch, count) for depth in c.depths
    )
    state = CausalState(slots, targets, caches, order)
    filled_slots = c.num_prefix - 1 if known is None else count
    if not filled_slots:
      return state
    tokens = None if known is None else known[:, : c.num_tokens - 1]
    x = self._with_tokens(slots[:, :filled_slots], tokens)
    return self._run(state, x, None, filled_slots)[1]

  def step(
    self,
    state: CausalState,
    tokens: Shaped[Array, "B K *token"],
    num_known: Counts,
    window: Int[Array, " 1"],
    num_new: int = 1,
  ) -> tuple[Float[Array, "B 1 W"], CausalState]:
    """z of the token at the generation index in `window`, and the next state.

    Args:
      state: after the steps for all tokens before it.
      tokens: known ones, in order space; the one before it is used.
      num_known, num_new: not used: the window says them.
      window: one index.
    """
    del num_known, num_new
    c = self.config
    index = window[0]
    first = c.num_prefix - 1 + index
    slot = jax.lax.dynamic_slice_in_dim(state.slots, first, 1, 1)
    x = slot
    if tokens.shape[1]:
      last = jax.lax.dynamic_slice_in_dim(
        tokens, jnp.maximum(index - 1, 0), 1, 1
      )
      x = jnp.where(index > 0, slot + self._embedded(last), slot)
    x = self.embed_norm(x)
    x, state = self._run(state, x, first, c.num_prefix + tokens.shape[1])
    order = jax.lax.dynamic_slice_in_dim(state.order, index, 1, 1)
    return self._z(x, order), state

  def _slots(self, condition, order):
    """What is in each slot but the tokens; and what the middle adds, or None.

    Both are [B, P + L - 1, W].
    """
    c = self.config
    own = self.own_positions(order)[:, :-1]
    prefix = filled(self.class_embedding(condition), c.num_prefix)
    slots = own + _pad(prefix, after=c.num_tokens - 1)
    if c.target_positions == "none":
      return slots, None
    targets = _pad(self.target_positions(order), before=c.num_prefix - 1)
    if c.target_positions == "middle":
      return slots, targets
    return slots + targets, None

  def _run(self, state: CausalState, x, first, length: int):
    """New slots through all stacks; see `Stack.cached`."""
    caches = []
    for index, (stack, cache) in enumerate(
      zip(self.stacks, state.caches, strict=True)
    ):
      if index and state.targets is not None:
        at, count = (0 if first is None else first), x.shape[1]
        target = jax.lax.dynamic_slice_in_dim(state.targets, at, count, 1)
        x = x + target.astype(x.dtype)
      x, cache = stack.cached(x, cache, first, length)
      caches.append(cache)
    return x, CausalState(
      state.slots, state.targets, tuple(caches), state.order
    )

  def _z(self, x, order):
    return constrained(self.norm(x) + self.head_positions(order), SLOT_AXES)


def _pad(x, before: int = 0, after: int = 0):
  return jnp.pad(x, ((0, 0), (before, after), (0, 0)))
