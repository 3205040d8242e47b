"""Transformer blocks: pre-norm attention and MLP, scanned over depth.

1. x += proj(attention(norm(x))); x += fc2(gelu(fc1(norm(x)))), exact GELU, but
   see `marjax.layers.gelu` for bfloat16.
2. Sequences of several lengths may lie side by side on one axis, so that all
   but attention is one matrix product; attention stays within each:

       slots       | sequence 0 ... pad | sequence 1 ....... pad | ...
       num_valid     ───────▶             ─────────────▶

   Slots from num_valid on get no attention; softmax is float32.
3. Dropout: on attention weights, after the attention projection, after the
   activation and after fc2 (spec section 3).
4. A stack of blocks is one scan over stacked parameters, so that compile time
   does not grow with depth. `Remat` says what its backward pass keeps of each
   block: nothing but its input; its matrix products and attention too; or all
   (then it is unrolled, and what fc2 gives is added by the next block's norm).
5. Where only some slots are wanted of a stack, its last block computes keys and
   values of all slots, and everything else of those.
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from marjax.arrays import Counts
from marjax.layers.add_norm import Branch, Norm, add_norm, added
from marjax.layers.attention import HEAD_AXES, attend, fits_kernel
from marjax.layers.dropout import Dropout
from marjax.layers.gelu import gelu_of_product
from marjax.layers.gpu.attention import Sequences
from marjax.layers.linear import linear, product, shared
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import constrained

Remat = Literal["none", "full", "save_matmuls"]

SLOT_AXES = ("batch", "sequence", "features")


@dataclass(frozen=True)
class AttentionConfig:
  """Width, heads and dropout on the weights; dtype is that of the matmuls."""

  width: int
  num_heads: int
  dropout: float
  dtype: str


class Attention(nn.Module):
  """Self-attention; see the module docstring."""

  config: AttentionConfig

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
    self.dropout = Dropout(c.dropout)

  def __call__(
    self,
    x: Float[Array, "B P W"],
    lengths: tuple[int, ...],
    num_valid: list[Counts],
    deterministic: bool,
    queries: Float[Array, "B Q W"] | None = None,
  ) -> tuple[Float[Array, "B Q W"], Float[Array, " W"] | None]:
    """Slots to slots, and the projection's bias if it is not yet added.

    With dropout it is added with the slots; without, cuBLAS adds it within the
    product.

    Args:
      x: one or several sequences. lengths: slots of each; they add up to P.
      num_valid: for each sequence, how many of its slots hold something [B].
      deterministic: True turns dropout off.
      queries: slots of a single sequence that attend; None for all.
    """
    kernel, bias = self.qkv.weights((self.config.width,))
    is_fused = fits_kernel(kernel.dtype, kernel.shape[-1])
    # Kernels give its gradient.
    added = jax.lax.stop_gradient(bias) if is_fused else bias

    def part(index, slots):
      with jax.named_scope("qkv"):
        made = product(slots, kernel[:, index], added[index])
        return constrained(made, HEAD_AXES)

    of_query, of_key, of_value = shared(x, 3)
    query = part(0, of_query if queries is None else queries)
    sequences = Sequences(
      lengths if queries is None else (query.shape[1],), lengths
    )
    mixed = attend(
      *(query, part(1, of_key), part(2, of_value), num_valid, sequences),
      *(self.dropout, deterministic, bias if is_fused else None),
    )
    kernel, bias = self.projection.weights(mixed.shape[-2:])
    with jax.named_scope("projection"):
      if deterministic:
        return product(mixed, kernel, bias), None
      return product(mixed, kernel), bias


@dataclass(frozen=True)
class BlockConfig:
  """Shape and dropout of one block; dtype is that of the matmuls."""

  width: int
  num_heads: int
  mlp_ratio: int
  attention_dropout: float
  projection_dropout: float
  dtype: str


class Block(nn.Module):
  """One pre-norm transformer block."""

  config: BlockConfig

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.norm_attention = LayerNorm(dtype=dtype)
    self.attention = Attention(
      AttentionConfig(c.width, c.num_heads, c.attention_dropout, c.dtype)
    )
    self.norm_mlp = LayerNorm(dtype=dtype)
    self.fc1 = linear(c.mlp_ratio * c.width, ("embed", "mlp"), dtype=dtype)
    self.fc2 = linear(c.width, ("mlp", "embed"), dtype=dtype)
    self.dropout = Dropout(c.projection_dropout)

  def __call__(self, x, branch, lengths, num_valid, deterministic, window=None):
    """Slots and what is to be added to them, to the same of the next block.

    Args:
      x: [B, P, W]. branch: to be added to x, or None.
      lengths, num_valid, deterministic: see `Stack`.
      window: indices [Q] of the slots that are wanted; None for all.

    Returns:
      x [B, Q, W], and its branch; None if deterministic, as it is added.
    """
    dtype, rate = self.norm_mlp.dtype, self.dropout.rate
    x, h = add_norm(x, branch, self._weights(self.norm_attention), dtype, rate)
    queries = None
    if window is not None:
      queries, x = jnp.take(h, window, axis=1), jnp.take(x, window, axis=1)
    h, bias = self.attention(h, lengths, num_valid, deterministic, queries)
    if bias is None:
      # cuBLAS adds x within the product that h is.
      x, branch = x + h, None
    else:
      branch = Branch(h, bias, seeds=self.dropout.seeds(deterministic))
    x, h = add_norm(x, branch, self._weights(self.norm_mlp), dtype, rate)
    h = self._hidden(h, self.dropout.seeds(deterministic))
    if deterministic:
      return constrained(x + self.fc2(h), SLOT_AXES), None
    kernel, bias = self.fc2.weights(h.shape[-1:])
    with jax.named_scope("fc2"):
      h = constrained(product(h, kernel), SLOT_AXES)
    seeds = self.dropout.seeds(deterministic)
    return constrained(x, SLOT_AXES), Branch(h, bias, seeds=seeds)

  def _weights(self, norm) -> Norm:
    return Norm(*norm.weights(self.config.width))

  def _hidden(self, h, seeds):
    kernel, bias = self.fc1.weights((self.config.width,))
    with jax.named_scope("fc1"):
      return gelu_of_product(h, kernel, bias, seeds, self.dropout.rate)


class _ScannedBlock(nn.Module):
  config: BlockConfig
  lengths: tuple[int, ...]
  deterministic: bool
  remat: Remat

  @nn.compact
  def __call__(self, carry, num_valid):
    block = Block
    if self.remat != "none":
      policies = jax.checkpoint_policies
      # Products with a batch axis are attention's: large, and cheap to redo.
      saves = {
        "save_matmuls": policies.save_from_both_policies(
          policies.dots_with_no_batch_dims_saveable,
          policies.save_only_these_names("attention"),
        )
      }
      block = nn.remat(
        Block,
        prevent_cse=False,
        static_argnums=(3, 5),
        policy=saves.get(self.remat),
      )
    x, branch = carry
    block = block(self.config, name="block")
    x, branch = block(x, branch, self.lengths, num_valid, self.deterministic)
    if self.remat != "none":
      # Else a branch would be kept beside each x.
      x = added(x, branch, self.config.projection_dropout)
      x, branch = constrained(x, SLOT_AXES), None
    return (x, branch), None


class Stack(nn.Module):
  """`depth` blocks as one scan; parameters have a leading "layers" axis."""

  config: BlockConfig
  depth: int
  remat: Remat = "full"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B P W"],
    lengths: tuple[int, ...],
    num_valid: list[Counts],
    deterministic: bool,
    window: Int[Array, " Q"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """Slots to slots; see the module docstring.

    Args:
      x: [B, P, W], one sequence or several side by side.
      lengths: slots of each sequence; they add up to P.
      num_valid: for each sequence, how many of its slots hold something [B].
      deterministic: True turns dropout off; needed for a window.
      window: indices of the slots that are wanted; None for all.
    """
    if deterministic and not self.is_initializing():
      return self._forward(x, lengths, num_valid, window)
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
    layers = scanned(
      self.config, lengths, deterministic, self.remat, name="layers"
    )
    branch = None
    if self.remat == "none" and not deterministic:
      branch = self._nothing(x)
    (x, branch), _ = layers((x, branch), num_valid)
    return constrained(
      added(x, branch, self.config.projection_dropout), SLOT_AXES
    )

  def _nothing(self, x) -> Branch:
    """A branch that adds nothing, in the form of those that blocks end with."""
    rate = self.config.projection_dropout
    return Branch(
      jnp.zeros(x.shape, self.config.dtype),
      jnp.zeros(x.shape[-1:], self.config.dtype),
      seeds=jnp.zeros(2, jnp.uint32) if rate else None,
    )

  def _forward(self, x, lengths, num_valid, window):
    """The stack without dropout: the last block is apart, for its window."""
    block = Block(self.config, parent=None)
    stacked = self.variables["params"]["layers"]["block"]

    def run(x, layer, window=None):
      with jax.named_scope("layers"), jax.named_scope("block"):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[layer], stacked)
        return block.apply(
          {"params": params}, x, None, lengths, num_valid, True, window
        )[0]

    def step(x, layer):
      return run(x, layer), None

    x, _ = jax.lax.scan(step, x, jnp.arange(self.depth - 1))
    return run(x, self.depth - 1, window)
