"""Transformer blocks: pre-norm attention and MLP, scanned over depth.

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
4. A stack of blocks is one scan over stacked parameters, so that compile time
   does not grow with depth. `Remat` says what its backward pass keeps of each
   block: nothing but its input; its matrix products and attention too; or all.
5. Where only some slots are wanted of a stack, its last block computes keys and
   values of all slots, and everything else of those.
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from marjax.arrays import Counts
from marjax.layers.add_norm import Branch, Norm, add_norm, added
from marjax.layers.attention import HEAD_AXES, attend
from marjax.layers.dropout import entry_seeds
from marjax.layers.gelu import gelu_of_product
from marjax.layers.gpu.attention import Sequences
from marjax.layers.linear import linear, product, shared
from marjax.layers.norm import LayerNorm
from marjax.layers.placed import constrained
from marjax.schema import check

Remat = Literal["none", "full", "save_matmuls"]

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
      x: normalised slots. lengths, num_valid, window: see `Stack`.
      seeds: of dropout, for each sequence.
    """
    kernel, bias = self.qkv.weights((self.config.width,))

    def part(index, slots):
      with jax.named_scope("qkv"):
        # Its gradient is computed with attention's.
        own = jax.lax.stop_gradient(bias[index])
        return constrained(product(slots, kernel[:, index], own), HEAD_AXES)

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


class Block(nn.Module):
  """One pre-norm transformer block; the arguments are those of `Stack`."""

  config: BlockConfig

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    self.norm_attention = LayerNorm(dtype=dtype)
    self.attention = Attention(c)
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
    of_projection = of_hidden = of_fc2 = of_weights = None
    if seeds is not None:
      of_projection, of_hidden, of_fc2 = seeds[:3]
      of_weights = seeds[3:]
    rate = self.config.projection_dropout
    _, u = self._add_norm(x, None, self.norm_attention)
    mixed = self.attention(u, lengths, num_valid, of_weights, window)
    if window is not None:
      x = jnp.take(x, window, axis=1)
    branch = self._branch("projection", mixed, of_projection)
    x, u = self._add_norm(x, branch, self.norm_mlp)
    with jax.named_scope("fc1"):
      weights = self.fc1.weights(u.shape[-1:])
      hidden = gelu_of_product(u, *weights, of_hidden, rate)
    branch = self._branch("fc2", hidden, of_fc2)
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


class _Layers(nn.Module):
  """What parameters of a block are called by."""

  config: BlockConfig

  @nn.compact
  def __call__(self, x, *args):
    return Block(self.config, name="block")(x, *args), None


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
      deterministic: True turns dropout off.
      window: indices of the slots that are wanted, of one sequence without
        dropout; None for all.

    Raises:
      ValueError: a window of several sequences, with dropout or causal.
    """
    is_plain = deterministic and len(lengths) == 1 and not self.config.is_causal
    check(
      window is None or is_plain,
      "window is given with dropout, several sequences or causal blocks;"
      " expected one sequence and neither of the others, or window=None.",
    )
    if self.is_initializing():
      layers = nn.scan(
        _Layers,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=self.depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(self.config, name="layers")
      return layers(x, lengths, num_valid)[0]
    block = Block(self.config, parent=None)
    stacked = nn.unbox(self.variables["params"]["layers"]["block"])

    def run(x, params, seeds=None, window=None):
      with jax.named_scope("layers"), jax.named_scope("block"):
        args = (lengths, num_valid, seeds, window)
        return block.apply({"params": params}, x, *args)

    if window is None:
      xs = (stacked, self._seeds(x, lengths, deterministic))
      step = self._rematerialised(lambda x, layer: (run(x, *layer), None))
      # Kept activations go through a loop's buffers: unrolled, small models
      # train 6 % faster on CPU; with remat there is nothing to keep.
      unroll = self.remat == "none" and not deterministic
      return jax.lax.scan(step, x, xs, unroll=unroll)[0]

    def params_of(layer):
      return jax.tree.map(lambda leaf: jnp.asarray(leaf)[layer], stacked)

    # By number: a slice of all layers but the last would be a copy of them.
    numbers = jnp.arange(self.depth - 1)
    x, _ = jax.lax.scan(lambda x, n: (run(x, params_of(n)), None), x, numbers)
    return run(x, params_of(self.depth - 1), window=window)

  def _seeds(self, x, lengths, deterministic):
    """Of each layer's calls of dropout, [depth, calls, B]; None without."""
    c = self.config
    if deterministic or not (c.attention_dropout or c.projection_dropout):
      return None
    shape = (self.depth, 3 + len(lengths), 2)
    bits = jax.random.bits(self.make_rng("dropout"), shape, jnp.uint32)
    return entry_seeds(bits, x.shape[0])

  def _rematerialised(self, step):
    if self.remat == "none":
      return step
    policies = jax.checkpoint_policies
    # Products with a batch axis are attention's: large, and cheap to redo.
    saved = policies.save_from_both_policies(
      policies.dots_with_no_batch_dims_saveable,
      policies.save_only_these_names("attention"),
    )
    policy = saved if self.remat == "save_matmuls" else None
    return jax.checkpoint(step, prevent_cse=False, policy=policy)
