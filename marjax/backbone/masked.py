"""The masked encoder–decoder of MAR, in order space: known tokens → z.

    order space     | buffer slots | known tokens | padding |
    encoder              ×               ×                        length mask
    decoder              ×               ×         mask token …   all 64 + L
    z                                    ×              ×         L

1. Encoder: linear(token), buffer slots hold the class embedding, add
   positions, norm, blocks over the valid prefix, norm.
2. Decoder: linear, mask token from the first unknown position on, add
   positions, blocks over all slots, norm, drop the buffer, add the head's
   positions.

Known tokens are a prefix, so unknown tokens never enter: the prefix is a slice
of static length, and its padding is a suffix hidden by a length mask. Attention
is bidirectional and positions travel with their tokens, so z is that of raster
order. Source: arXiv 2406.11838 section 4.1; spec section 3.
"""

from dataclasses import dataclass, field
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from marjax import keys, schema
from marjax.arrays import Counts, ImageKeys, Leaf, Order, Scalar
from marjax.backbone.blocks import SLOT_AXES
from marjax.backbone.embeddings import PositionEmbedding
from marjax.backbone.stack import Stack
from marjax.backbone.transformer import Depth, TransformerConfig, filled
from marjax.layers.linear import linear, small_normal
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import by_batch, constrained
from marjax.schema import Size
from marjax.tokens.masking import MaskConfig


@schema.config
class MaskedConfig(TransformerConfig):
  """Shape of the masked backbone; the defaults are MAR-B at 256².

  Attributes, beside those of `TransformerConfig`:
    encoder_depth, decoder_depth: blocks.
    num_buffer: slots that hold the condition, a multiple of its own.
    masking: how many tokens are known in training.
  """

  encoder_depth: Depth = 12
  decoder_depth: Depth = 12
  num_buffer: Size = 64
  masking: MaskConfig = field(default_factory=MaskConfig)
  kind: Literal["masked"] = "masked"

  def __post_init__(self):
    super().__post_init__()
    self.check_slots("num_buffer")

  @property
  def batch_multiple(self) -> int:
    """What batches of training are multiples of: the strata of its masks."""
    return self.masking.num_strata

  def build(self) -> "MaskedBackbone":
    """The linen module of this shape."""
    return MaskedBackbone(self)

  def draw(self, image_keys: ImageKeys) -> "MaskedDraws":
    """Order and number of known tokens of B training images."""
    orders, masks = (keys.each(image_keys, name) for name in ("order", "mask"))
    num_known = self.masking.draw_num_known(masks, self.num_tokens)
    return MaskedDraws(self.orders(orders), num_known)

  def num_predicted(self, draws: "MaskedDraws") -> Scalar:
    """How many tokens the loss with these draws is the mean of."""
    return jnp.sum(self.num_tokens - draws.num_known).astype(jnp.float32)

  def step_cost(self, num_known: int) -> float:
    """Multiplications of a step of generation that knows so many tokens."""
    slots = self.encoder_depth * (self.num_buffer + num_known)
    slots += self.decoder_depth * (self.num_buffer + self.num_tokens)
    return 12.0 * self.width**2 * slots


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedDraws:
  """What is random about training on a batch.

  Attributes:
    order: generation order [B, L]. num_known: known tokens of each image [B].
  """

  order: Leaf
  num_known: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedState:
  """What a step of generation needs beside the known tokens, [B, ...] each."""

  condition: Leaf
  order: Leaf


class MaskedBackbone(nn.Module):
  """Known tokens, their order and a label → z; see the module docstring."""

  config: MaskedConfig

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.class_embedding = c.condition.build(c.width)
    self.encoder_positions = self._positions(c.num_buffer)
    self.decoder_positions = self._positions(c.num_buffer)
    self.head_positions = self._positions(0)
    self.embed_token = c.token_embedding()
    self.embed_norm = LayerNorm(dtype=dtype)
    self.encoder = Stack(c.block(), c.encoder_depth, c.remat)
    self.encoder_norm = LayerNorm()
    self.embed_encoded = linear(c.width, ("embed", None), dtype=dtype)
    self.mask_token = self.param(
      "mask_token",
      nn.with_logical_partitioning(small_normal, (None, None, "embed")),
      (1, 1, c.width),
    )
    self.decoder = Stack(c.block(), c.decoder_depth, c.remat)
    self.decoder_norm = LayerNorm()

  def _positions(self, num_buffer: int) -> PositionEmbedding:
    c = self.config
    return PositionEmbedding(num_buffer, c.num_tokens, c.width)

  def __call__(
    self,
    known: Shaped[Array, "B K *token"],
    num_known: Counts,
    order: Order,
    condition: PyTree,
    *,
    deterministic: bool = True,
    window: Int[Array, " Q"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """z of every token, or of those in a window, in order space.

    Args:
      known: the first K tokens in order space; entries from num_known on are
        ignored, whatever they hold.
      num_known: known tokens of each image, 0 .. K.
      order: generation order of each image.
      condition: what each image is asked for by, [B, ...].
      deterministic: False turns dropout on (needs the "dropout" stream).
      window: generation indices of the tokens that are wanted; None for all.
    """
    encoded = self.encode(
      known, num_known, order, condition, deterministic=deterministic
    )
    return self.decode(
      encoded, num_known, order, deterministic=deterministic, window=window
    )

  def start(
    self, condition: PyTree, order: Order, known: Array | None = None
  ) -> MaskedState:
    """The state of a generation: nothing that a step changes."""
    del known
    return MaskedState(condition, order)

  def step(
    self,
    state: MaskedState,
    tokens: Shaped[Array, "B K *token"],
    num_known: Counts,
    window: Int[Array, " Q"] | None = None,
    num_new: int = 0,
  ) -> tuple[Float[Array, "B Q W"], MaskedState]:
    """z of the next tokens, or of all, in order space; and the state."""
    del num_new
    z = self(tokens, num_known, state.order, state.condition, window=window)
    return z, state

  def training_z(
    self,
    tokens: Shaped[Array, "B L *token"],
    draws: MaskedDraws,
    condition: PyTree,
    deterministic: bool,
  ) -> tuple[Float[Array, "B L W"], Float[Array, "B L"]]:
    """z of all tokens in order space, and 1 where they are unknown.

    The strata's prefixes are encoded side by side, each at its own static
    length; all slots of the batch are decoded together.
    """
    bounds = self._bounds()
    longest = max(most for _, most in bounds)

    def stratum(values, g):
      return jax.tree.map(
        lambda a: a.reshape(-1, len(bounds), *a.shape[1:])[:, g], values
      )

    parts = [
      (
        stratum(tokens, g)[:, :most],
        stratum(draws.num_known, g),
        stratum(draws.order, g),
        stratum(condition, g),
      )
      for g, (_, most) in enumerate(bounds)
    ]
    encoded = [
      jnp.pad(slots, ((0, 0), (0, longest - most), (0, 0)))
      for slots, (_, most) in zip(
        self.encode_all(parts, deterministic=deterministic), bounds, strict=True
      )
    ]
    encoded = jnp.stack(encoded, axis=1).reshape(-1, *encoded[0].shape[1:])
    z = self.decode(
      encoded, draws.num_known, draws.order, deterministic=deterministic
    )
    is_unknown = jnp.arange(tokens.shape[1]) >= draws.num_known[:, None]
    return z, is_unknown.astype(jnp.float32)

  def rows(self, values: Shaped[Array, "B L *rest"]) -> Shaped[Array, "..."]:
    """[B, L, ...] to [B / G, U, ...]: each stratum's suffix, side by side."""
    bounds = self._bounds()
    grouped = values.reshape(-1, len(bounds), *values.shape[1:])
    return jnp.concatenate(
      [grouped[:, g, fewest:] for g, (fewest, _) in enumerate(bounds)], axis=1
    )

  def _bounds(self) -> tuple[tuple[int, int], ...]:
    return self.config.masking.known_bounds(self.config.num_tokens)

  def encode(
    self,
    known: Shaped[Array, "B K *token"],
    num_known: Counts,
    order: Order,
    condition: PyTree,
    *,
    deterministic: bool = True,
  ) -> Float[Array, "B P W"]:
    """Buffer slots and known prefix to [B, num_buffer + K, W]."""
    part = (known, num_known, order, condition)
    return self.encode_all([part], deterministic=deterministic)[0]

  def encode_all(
    self, parts: list[tuple], *, deterministic: bool = True
  ) -> list[Float[Array, "B _ W"]]:
    """`encode` of several parts of a batch at once, each of its own length.

    Args:
      parts: the arguments of `encode`, of equally many images each.
      deterministic: False turns dropout on.
    """
    c = self.config
    x = [self._encoder_input(*part) for part in parts]
    lengths = tuple(slots.shape[1] for slots in x)
    num_valid = [c.num_buffer + num_known for _, num_known, *_ in parts]
    x = constrained(jnp.concatenate(x, axis=1), SLOT_AXES)
    x = self.embed_norm(x)
    x = self.encoder(x, lengths, num_valid, deterministic)
    return jnp.split(self.encoder_norm(x), np.cumsum(lengths)[:-1], axis=1)

  def _encoder_input(self, known, num_known, order, condition):
    """Condition in the buffer slots, then the known tokens, with positions."""
    del num_known
    c = self.config
    length = known.shape[1]
    buffer = filled(self.class_embedding(condition), c.num_buffer)
    tokens = by_batch(self.embed_token(by_batch(known)))
    x = jnp.concatenate([buffer, tokens], axis=1)
    return x + self.encoder_positions(order)[:, : c.num_buffer + length]

  def decode(
    self,
    encoded: Float[Array, "B P W"],
    num_known: Counts,
    order: Order,
    *,
    deterministic: bool = True,
    window: Int[Array, " Q"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """The encoder's output to z of every token, or of a window of them."""
    c = self.config
    num_slots = c.num_buffer + c.num_tokens
    x = by_batch(self.embed_encoded(encoded.astype(c.dtype)))
    x = jnp.pad(x, ((0, 0), (0, num_slots - x.shape[1]), (0, 0)))
    is_filled = jnp.arange(num_slots) < c.num_buffer + num_known[:, None]
    x = jnp.where(is_filled[..., None], x, self.mask_token)
    x = (x + self.decoder_positions(order)).astype(c.dtype)
    x = constrained(x, SLOT_AXES)
    num_valid = [jnp.full(x.shape[:1], num_slots)]
    slots = None if window is None else c.num_buffer + window
    x = self.decoder(x, (num_slots,), num_valid, deterministic, slots)
    x = self.decoder_norm(x)
    if window is None:
      x = x[:, c.num_buffer :]
    else:
      order = jnp.take(order, window, axis=1)
    return constrained(x + self.head_positions(order), SLOT_AXES)
