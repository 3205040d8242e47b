"""Transformer blocks: pre-norm attention and MLP, scanned over depth.

1. x += proj(attention(norm(x))); x += fc2(gelu(fc1(norm(x)))), exact GELU.
2. Keys beyond a length get no attention; softmax is float32.
3. Dropout: on attention weights, after the attention projection, after the
   activation and after fc2 (spec section 3).
4. A stack of blocks is one `nn.scan` over stacked parameters, rematerialised:
   compile time and memory do not grow with depth. Without remat it is unrolled.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from marjax.linear import layer_norm, linear

SLOT_AXES = ("batch", "sequence", "embed")
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
  """Multi-head self-attention with a fused qkv projection."""

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
    query, key, value = (
      nn.with_logical_constraint(qkv[:, :, i], HEAD_AXES) for i in range(3)
    )
    mixed = attend(
      query, key, value, is_key_valid, self.weight_dropout, deterministic
    )
    return self.projection(mixed)


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
    h = nn.with_logical_constraint(h, ("batch", "sequence", "mlp"))
    h = drop(nn.gelu(h, approximate=False))
    x = x + drop(self.fc2(h))
    return nn.with_logical_constraint(x, SLOT_AXES)


class _ScannedBlock(nn.Module):
  config: BlockConfig
  deterministic: bool
  is_rematerialised: bool

  @nn.compact
  def __call__(self, x, is_key_valid):
    block = Block
    if self.is_rematerialised:
      block = nn.remat(Block, prevent_cse=False, static_argnums=(3,))
    block = block(self.config, name="block")
    x = block(x, is_key_valid, self.deterministic)
    return x, None


class Stack(nn.Module):
  """`depth` blocks as one scan; parameters have a leading "layers" axis."""

  config: BlockConfig
  depth: int
  is_rematerialised: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B P W"],
    is_key_valid: Bool[Array, "B P"],
    deterministic: bool,
  ) -> Float[Array, "B P W"]:
    """Slots [B, P, W] to slots [B, P, W]; invalid keys are not looked at."""
    scanned = nn.scan(
      _ScannedBlock,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=nn.broadcast,
      length=self.depth,
      # Kept activations go through a loop's buffers: unrolled, small models
      # train 6 % faster on CPU; with remat there is nothing to keep.
      unroll=1 if self.is_rematerialised else self.depth,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    layers = scanned(
      self.config, deterministic, self.is_rematerialised, name="layers"
    )
    return layers(x, is_key_valid)[0]
