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

from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from marjax import schema
from marjax.arrays import Counts, Labels, Order
from marjax.backbone.blocks import SLOT_AXES, BlockConfig, Stack
from marjax.backbone.embeddings import ClassEmbedding, PositionEmbedding
from marjax.layers.linear import linear, small_normal
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import by_batch, constrained
from marjax.schema import Range, Share, Size, check

Depth = Annotated[int, Range(1, 1024)]


@schema.config
class MaskedConfig:
  """Shape of the masked backbone; the defaults are MAR-B at 256².

  Attributes:
    num_tokens: L. token_dim: D. width: W, also the size of z.
    encoder_depth, decoder_depth: blocks. num_heads: attention heads.
    num_buffer: slots that hold the class. num_classes: 0 for no classes.
    label_dropout: share of training images whose class is hidden.
    attention_dropout, projection_dropout: see `marjax.backbone.blocks`.
    dtype: of the matmuls.
    remat: what the backward pass recomputes of a block: "full", everything;
      "save_matmuls", all but its matrix products; "none".
  """

  num_tokens: Size = 256
  token_dim: Size = 16
  width: Size = 768
  encoder_depth: Depth = 12
  decoder_depth: Depth = 12
  num_heads: Size = 12
  mlp_ratio: Annotated[int, Range(1, 64)] = 4
  num_buffer: Size = 64
  num_classes: Annotated[int, Range(0, 2**24)] = 1000
  label_dropout: Share = 0.1
  attention_dropout: Share = 0.1
  projection_dropout: Share = 0.1
  dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "full", "save_matmuls"] = "full"
  kind: Literal["masked"] = "masked"

  def __post_init__(self):
    check(
      self.width % self.num_heads == 0,
      f"backbone.width is {self.width}; expected a multiple of num_heads"
      f" = {self.num_heads}.",
    )

  def block(self) -> BlockConfig:
    """The part of the shape that one transformer block needs."""
    return BlockConfig(
      self.width,
      self.num_heads,
      self.mlp_ratio,
      self.attention_dropout,
      self.projection_dropout,
      self.dtype,
    )


class MaskedBackbone(nn.Module):
  """Known tokens, their order and a label → z; see the module docstring."""

  config: MaskedConfig

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.class_embedding = ClassEmbedding(c.num_classes, c.width)
    self.encoder_positions = self._positions(c.num_buffer)
    self.decoder_positions = self._positions(c.num_buffer)
    self.head_positions = self._positions(0)
    self.embed_token = linear(c.width, (None, "embed"), dtype=dtype)
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
    known: Float[Array, "B K D"],
    num_known: Counts,
    order: Order,
    labels: Labels,
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
      labels: class of each image, -1 for "no class".
      deterministic: False turns dropout on (needs the "dropout" stream).
      window: generation indices of the tokens that are wanted; None for all.
    """
    encoded = self.encode(
      known, num_known, order, labels, deterministic=deterministic
    )
    return self.decode(
      encoded, num_known, order, deterministic=deterministic, window=window
    )

  def encode(
    self,
    known: Float[Array, "B K D"],
    num_known: Counts,
    order: Order,
    labels: Labels,
    *,
    deterministic: bool = True,
  ) -> Float[Array, "B P W"]:
    """Buffer slots and known prefix to [B, num_buffer + K, W]."""
    part = (known, num_known, order, labels)
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

  def _encoder_input(self, known, num_known, order, labels):
    """Class in the buffer slots, then the known tokens, with positions."""
    del num_known
    c = self.config
    batch, length, _ = known.shape
    classes = self.class_embedding(labels)[:, None]
    buffer = jnp.broadcast_to(classes, (batch, c.num_buffer, c.width))
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
