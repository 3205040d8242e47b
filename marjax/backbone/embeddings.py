"""Learned tables: one vector per slot.

In order space a token's position embedding travels with it: the table is
looked up by the generation order once, and from then on only sliced.

A table is made whole on every device before it is looked up: it is small, and
XLA cannot split a lookup whose table and indices lie on the same mesh axis.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from marjax.arrays import Order
from marjax.layers.linear import linear, small_normal
from marjax.layers.placed import by_batch, constrained

CODE_VECTORS = "code_vectors"
"""The parameter that holds a codec's code vectors."""


class PositionEmbedding(nn.Module):
  """A table over buffer slots (first) and tokens, looked up in order space."""

  num_buffer: int
  num_tokens: int
  width: int

  @nn.compact
  def __call__(self, order: Order) -> Float[Array, "B P W"]:
    """Order [B, L] to embeddings [B, num_buffer + L, W]."""
    table = self.param(
      "table",
      nn.with_logical_partitioning(small_normal, (None, "embed")),
      (self.num_buffer + self.num_tokens, self.width),
    )
    table = constrained(table, (None, None))
    # One lookup: a buffer broadcast over the batch makes XLA lay out all that
    # it is added to batch last on GPUs, and copy it back and forth.
    first = jnp.arange(self.num_buffer, dtype=order.dtype)
    slots = jnp.broadcast_to(first, (order.shape[0], self.num_buffer))
    slots = jnp.concatenate([slots, self.num_buffer + order], axis=1)
    return by_batch(jnp.asarray(table)[slots])


class CodeEmbedding(nn.Module):
  """A vector for each code of a codebook.

  With a code_dim it is a linear layer of the code's vector in the codec, which
  is not trained: training puts it in place (`CODE_VECTORS`). Else the vectors
  are learned.
  """

  num_codes: int
  code_dim: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, codes: Int[Array, "B K"]) -> Float[Array, "B K W"]:
    """Codes to vectors; codes outside of the table are those at its ends."""
    name, axis, size = "table", "embed", self.width
    if self.code_dim:
      name, axis, size = CODE_VECTORS, None, self.code_dim
    table = self.param(
      name,
      nn.with_logical_partitioning(small_normal, (None, axis)),
      (self.num_codes, size),
    )
    rows = constrained(table, (None, None)).at[codes].get(mode="clip")
    if not self.code_dim:
      return rows
    to_width = linear(
      self.width, (None, "embed"), dtype=self.dtype, name="linear"
    )
    return to_width(jax.lax.stop_gradient(rows))
