"""Transformer blocks: pre-norm attention and MLP, scanned over depth.

1. x += proj(attention(norm(x))); x += fc2(gelu(fc1(norm(x)))), exact GELU.
2. Sequences of several lengths may lie side by side on one axis, so that all
   but attention is one matrix product; attention stays within each:

       slots   | sequence 0 ... pad | sequence 1 ....... pad | ...
       valid     1 1 1 1 1 1 1  0 0   1 1 1 1 1 1 1 1 1  0 0

   Keys that are not valid get no attention; softmax is float32.
3. Dropout: on attention weights, after the attention projection, after the
   activation and after fc2 (spec section 3).
4. A stack of blocks is one `nn.scan` over stacked parameters, so that compile
   time does not grow with depth. `Remat` says what its backward pass keeps of
   each block: nothing but its input, the matrix products too, or all (then it
   is unrolled).
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from marjax.linear import constrained, layer_norm, linear

Remat = Literal["none", "full", "save_matmuls"]

SLOT_AXES = ("batch", "sequence", "features")
HEAD_AXES = ("batch", "sequence", "heads", "head_dim")


@dataclass(frozen=True)
class BlockConfig:
  """Shape and dropout of one block; dtype is that of the matmuls."""

  width: int
  num_heads: int
  mlp_ratio: int
  attention_dropout: float
  projection_dropout: float
  dtype: str


def attend(
  query: Float[Array, "B P N H"],
  key: Float[Array, "B P N H"],
  value: Float[Array, "B P N H"],
  is_key_valid: Bool[Array, "B P"],
  dropout: nn.Dropout,
  deterministic: bool,
) -> Float[Array, "B P N H"]:
  """Bidirectional attention over the valid keys; logits and softmax float32."""
  scale = query.shape[-1] ** -0.5
  logits = jnp.einsum(
    "bqnh,bknh->bnqk",
    query * scale,
    key,
    preferred_element_type=jnp.float32,
  )
  lowest = jnp.finfo(jnp.float32).min
  logits = jnp.where(is_key_valid[:, None, None, :], logits, lowest)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  weights = dropout(weights, deterministic=deterministic)
  return jnp.einsum("bnqk,bknh->bqnh", weights, value)


class Attention(nn.Module):
  """Multi-head self-attention with a fused qkv projection.

  `is_key_valid` has one [B, P] for each sequence along the slots of x.
  """

  config: BlockConfig

  def setup(self):
    c = self.config
    head_dim = c.width // c.num_heads
    dtype = jnp.dtype(c.dtype)
    self.qkv = linear(
      (3, c.num_heads, head_dim),
      ("embed", None, "heads", "head_dim"),
      dtype=dtype,
    )
    self.projection = linear(
      c.width, ("heads", "head_dim", "embed"), dtype=dtype
    )
    self.weight_dropout = nn.Dropout(c.attention_dropout)

  def __call__(self, x, is_key_valid, deterministic):
    qkv = self.qkv(x)
    ends = np.cumsum([valid.shape[1] for valid in is_key_valid])
    sequences = (
      jnp.split(constrained(qkv[:, :, i], HEAD_AXES), ends[:-1], axis=1)
      for i in range(3)
    )
    mixed = [
      attend(*parts, self.weight_dropout, deterministic)
      for parts in zip(*sequences, is_key_valid, strict=True)
    ]
    return self.projection(jnp.concatenate(mixed, axis=1))


class Block(nn.Module):
  """One pre-norm transformer block."""

  config: BlockConfig

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.norm_attention = layer_norm()
    self.attention = Attention(c)
    self.norm_mlp = layer_norm()
    self.fc1 = linear(c.mlp_ratio * c.width, ("embed", "mlp"), dtype=dtype)
    self.fc2 = linear(c.width, ("mlp", "embed"), dtype=dtype)
    self.dropout = nn.Dropout(c.projection_dropout)

  def __call__(self, x, is_key_valid, deterministic):
    dtype = jnp.dtype(self.config.dtype)

    def drop(h):
      return self.dropout(h, deterministic=deterministic)

    h = self.norm_attention(x).astype(dtype)
    x = x + drop(self.attention(h, is_key_valid, deterministic))
    h = self.fc1(self.norm_mlp(x).astype(dtype))
    h = constrained(h, ("batch", "sequence", "mlp"))
    h = drop(nn.gelu(h, approximate=False))
    x = x + drop(self.fc2(h))
    return constrained(x, SLOT_AXES)


class _ScannedBlock(nn.Module):
  config: BlockConfig
  deterministic: bool
  remat: Remat

  @nn.compact
  def __call__(self, x, is_key_valid):
    block = Block
    if self.remat != "none":
      policies = jax.checkpoint_policies
      # Products with a batch axis are attention's: large, and cheap to redo.
      saves = {"save_matmuls": policies.dots_with_no_batch_dims_saveable}
      block = nn.remat(
        Block,
        prevent_cse=False,
        static_argnums=(3,),
        policy=saves.get(self.remat),
      )
    block = block(self.config, name="block")
    x = block(x, is_key_valid, self.deterministic)
    return x, None


class Stack(nn.Module):
  """`depth` blocks as one scan; parameters have a leading "layers" axis."""

  config: BlockConfig
  depth: int
  remat: Remat = "full"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B P W"],
    is_key_valid: list[Bool[Array, "B _"]],
    deterministic: bool,
  ) -> Float[Array, "B P W"]:
    """Slots to slots; see the module docstring.

    Args:
      x: [B, P, W], one sequence or several side by side.
      is_key_valid: for each sequence [B, its slots]; they add up to P.
      deterministic: True turns dropout off.
    """
    scanned = nn.scan(
      _ScannedBlock,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=nn.broadcast,
      length=self.depth,
      # Kept activations go through a loop's buffers: unrolled, small models
      # train 6 % faster on CPU; with remat there is nothing to keep.
      unroll=self.depth if self.remat == "none" else 1,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    layers = scanned(self.config, deterministic, self.remat, name="layers")
    return layers(x, is_key_valid)[0]
