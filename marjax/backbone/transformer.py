"""What transformer backbones share: their shape, and how tokens enter them."""

from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from marjax import schema
from marjax.arrays import ImageKeys, Order, Scalar
from marjax.backbone.blocks import BlockConfig
from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.embeddings import CodeEmbedding
from marjax.backbone.stack import Remat
from marjax.layers.linear import linear
from marjax.protocols import Condition
from marjax.schema import Range, Share, Size, check
from marjax.tokens.order import random_orders

Depth = Annotated[int, Range(1, 1024)]


@schema.config
class TransformerConfig:
  """What the shapes of all backbones have; the defaults are MAR-B's at 256².

  Attributes:
    num_tokens: L. token_dim: D, where tokens are floats.
    num_codes: V, where tokens are codes 0 .. V - 1; 0 where they are floats.
    code_dim: numbers of the codec's code vectors, if these are to enter by a
      linear layer; 0 for a vector of its own for each code, which is learned.
    width: W, also the size of z. num_heads: attention heads.
    mlp_ratio: width of a block's hidden layer over W.
    condition: what images are asked for by, see `marjax.backbone.conditions`.
    attention_dropout, projection_dropout: see `marjax.backbone.blocks`.
    dtype: of the matmuls.
    remat: what the backward pass recomputes of a block: "full", everything;
      "save_matmuls", all but its matrix products; "none".
  """

  num_tokens: Size = 256
  token_dim: Size = 16
  num_codes: Annotated[int, Range(0, 2**24)] = 0
  code_dim: Annotated[int, Range(0, 2**16)] = 0
  width: Size = 768
  num_heads: Size = 12
  mlp_ratio: Annotated[int, Range(1, 64)] = 4
  condition: Condition = field(default_factory=ClassesConfig)
  attention_dropout: Share = 0.1
  projection_dropout: Share = 0.1
  dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Remat = "full"
  is_sequential: ClassVar[bool] = False
  is_raster: ClassVar[bool] = False
  has_cache: ClassVar[bool] = False

  def __post_init__(self):
    check(
      self.width % self.num_heads == 0,
      f"backbone.width is {self.width}; expected a multiple of num_heads"
      f" = {self.num_heads}.",
    )
    check(
      self.num_codes > 0 or not self.code_dim,
      f"backbone.code_dim is {self.code_dim} and num_codes 0; expected code_dim"
      " = 0 where tokens are floats.",
    )

  @property
  def token_shape(self) -> tuple[int, ...]:
    """Shape of one token, (D,), or () where tokens are codes."""
    return () if self.num_codes else (self.token_dim,)

  @property
  def batch_multiple(self) -> int:
    """What batches of training are multiples of."""
    return 1

  def orders(self, image_keys: ImageKeys) -> Order:
    """The generation order of each image [B, L]."""
    return random_orders(image_keys, self.num_tokens)

  def num_predicted(self, draws: Any) -> Scalar:
    """How many tokens the loss with these draws is the mean of: all."""
    batch, length = draws.order.shape
    return jnp.float32(batch * length)

  def is_float32(self, path: tuple[str, ...]) -> bool:
    """Whether the parameter of that path stays float32 in every dtype."""
    is_linear = path[-1] in ("kernel", "bias")
    return not is_linear or any("norm" in name for name in path)

  def block(self, is_causal: bool = False) -> BlockConfig:
    """The part of the shape that one transformer block needs."""
    return BlockConfig(
      self.width,
      self.num_heads,
      self.mlp_ratio,
      self.attention_dropout,
      self.projection_dropout,
      self.dtype,
      is_causal,
    )

  def check_slots(self, name: str) -> None:
    """Refuses a number of slots, of that name, that conditions do not fill."""
    count, each = getattr(self, name), self.condition.num_slots
    check(
      count % each == 0,
      f"backbone.{name} is {count}; expected a multiple of the {each} slots of"
      " its condition.",
    )

  def token_embedding(self):
    """A module: tokens [B, K, *token] to vectors [B, K, W]."""
    dtype = jnp.dtype(self.dtype)
    if self.num_codes:
      sizes = (self.num_codes, self.code_dim, self.width)
      return CodeEmbedding(*sizes, dtype)
    return linear(self.width, (None, "embed"), dtype=dtype)


def filled(
  slots: Float[Array, "B s W"], count: int
) -> Float[Array, "B count W"]:
  """Vectors of a condition [B, s, W], each repeated, to [B, count, W]."""
  return jnp.repeat(slots, count // slots.shape[1], axis=1)


def cache_cost(slots: int, width: int) -> float:
  """Multiplications that a look back at so many cached slots stands for.

  The arithmetic is 2 · width of them a slot. What takes time is to read keys
  and values, 2 · width numbers of each image's own: an H200 multiplies some 180
  times while it reads one, a TPU v5e 240 times. Counted as 32, since each
  segment that it makes is one more program to compile.
  """
  return 32.0 * 2 * width * slots
