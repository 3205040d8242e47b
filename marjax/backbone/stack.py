"""Stacks of transformer blocks: one scan over depth each.

1. Parameters have a leading "layers" axis, so compile time does not grow with
   depth. `Remat` says what the backward pass keeps of each block: nothing but
   its input; its matrix products and attention too; or all.
2. Dropout's seeds are drawn before the blocks, which are functions of arrays.
3. `Stack` is self-attention: whole sequences, some slots of the last block, or,
   if it is causal, new slots after those of a cache. `Queries` attend to keys
   and values that are the same for every block.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from marjax.arrays import Counts
from marjax.backbone.blocks import Block, BlockConfig, Cache, CrossBlock
from marjax.layers.dropout import entry_seeds
from marjax.schema import check

Remat = Literal["none", "full", "save_matmuls"]


def apart(params: PyTree) -> PyTree:
  """The same parameters, but of stacks those of each block by themselves.

  A loop over blocks copies each one's weights out of the stack before it reads
  them. Where few rows go through at a time, as with a cache, that is as much
  work as the products. What takes these runs block after block without a loop.
  """
  if not isinstance(params, Mapping):
    return params
  if set(params) != {"layers"}:
    return {name: apart(part) for name, part in params.items()}
  stacked = params["layers"]["block"]
  depth = len(jax.tree.leaves(stacked)[0])
  blocks = tuple(
    jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)
  )
  return {"layers": {"block": blocks}}


def _over(run, carry, xs: tuple, unroll: bool = False):
  """What `run` makes of a carry with one block after the other."""
  blocks, *others = xs
  if not isinstance(blocks, tuple):
    return jax.lax.scan(run, carry, xs, unroll=unroll)[0]
  for i, block in enumerate(blocks):
    own = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), others)
    carry, _ = run(carry, (block, *own))
  return carry


class _Layers(nn.Module):
  """What parameters of a block are called by."""

  block: type
  config: BlockConfig

  @nn.compact
  def __call__(self, x, *args):
    return self.block(self.config, name="block")(x, *args), None


class _Blocks(nn.Module):
  """`depth` blocks of one kind."""

  config: BlockConfig
  depth: int
  remat: Remat = "full"
  block: ClassVar[type] = Block

  @nn.compact
  def _initialised(self, x, *context):
    layers = nn.scan(
      _Layers,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.depth,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(self.block, self.config, name="layers")
    return layers(x, *context)[0]

  def _stacked(self) -> Any:
    """The parameters of all blocks, one tree of them or a tuple of trees."""
    return nn.unbox(self.variables["params"]["layers"]["block"])

  def _apply(self, params, *args, method: str | None = None):
    """What one block makes of its arguments."""
    block = self.block(self.config, parent=None)
    with jax.named_scope("layers"), jax.named_scope("block"):
      return block.apply({"params": params}, *args, method=method)

  def _scanned(self, x, context: tuple, sequences: int, deterministic: bool):
    """All blocks, one after the other, each with its seeds of dropout."""
    if self.is_initializing():
      return self._initialised(x, *context)
    xs = (self._stacked(), self._seeds(x, sequences, deterministic))

    def run(x, layer):
      params, seeds = layer
      return self._apply(params, x, *context, seeds), None

    # Kept activations go through a loop's buffers: unrolled, small models
    # train 6 % faster on CPU; with remat there is nothing to keep.
    unroll = self.remat == "none" and not deterministic
    return _over(self._rematerialised(run), x, xs, unroll)

  def _seeds(self, x, sequences: int, deterministic: bool):
    """Of each layer's calls of dropout, [depth, calls, B]; None without."""
    c = self.config
    if deterministic or not (c.attention_dropout or c.projection_dropout):
      return None
    shape = (self.depth, 3 + sequences, 2)
    bits = jax.random.bits(self.make_rng("dropout"), shape, jnp.uint32)
    return entry_seeds(bits, x.shape[0])

  def _rematerialised(self, step):
    if self.remat == "none":
      return step
    # A step of MAR-L at batch 128 before there were kernels: all recomputed
    # 469 ms in 36 GB, all but products 436 in 50, nothing 355 in 101.
    policies = jax.checkpoint_policies
    # Products with a batch axis are attention's: large, and cheap to redo.
    saved = policies.save_from_both_policies(
      policies.dots_with_no_batch_dims_saveable,
      policies.save_only_these_names("attention"),
    )
    policy = saved if self.remat == "save_matmuls" else None
    return jax.checkpoint(step, prevent_cse=False, policy=policy)


class Stack(_Blocks):
  """Self-attention; see the module docstring."""

  def __call__(
    self,
    x: Float[Array, "B P W"],
    lengths: tuple[int, ...],
    num_valid: list[Counts],
    deterministic: bool,
    window: Int[Array, " Q"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """Slots to slots.

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
    context = (lengths, num_valid)
    if window is None or self.is_initializing():
      return self._scanned(x, context, len(lengths), deterministic)
    stacked = self._stacked()

    def params_of(layer):
      return jax.tree.map(lambda leaf: jnp.asarray(leaf)[layer], stacked)

    # By number: a slice of all layers but the last would be a copy of them.
    x, _ = jax.lax.scan(
      lambda x, n: (self._apply(params_of(n), x, *context), None),
      x,
      jnp.arange(self.depth - 1),
    )
    return self._apply(params_of(self.depth - 1), x, *context, None, window)

  def cached(
    self,
    x: Float[Array, "B F W"],
    cache: Cache,
    first: Int[Array, ""] | None,
    length: int,
  ) -> tuple[Float[Array, "B F W"], Cache]:
    """New slots to new slots, and the cache with them; causal, no dropout.

    Args:
      x: what stands in slots first .. first + F - 1.
      cache: of all layers; what it has of slots before is looked back at.
      first: may be traced, so that one program serves many steps; None if x is
        all there is: nothing is read of the cache.
      length: of the slots that a query may look back at; at least first + F.
    """

    def run(carry, layer):
      params, number = layer
      out = self._apply(params, *carry, number, first, length, method="cached")
      return out, None

    return _over(
      run, (x, cache), (self._stacked(), np.arange(self.depth, dtype=np.int32))
    )


class Queries(_Blocks):
  """Cross-attention of queries that do not see each other."""

  block: ClassVar[type] = CrossBlock

  def __call__(
    self,
    x: Float[Array, "B Q W"],
    keys: Float[Array, "B P N H"],
    values: Float[Array, "B P N H"],
    num_valid: Counts,
    deterministic: bool,
    is_causal: bool = False,
  ) -> Float[Array, "B Q W"]:
    """Queries to queries, each block with the same keys and values.

    Args:
      x: queries. keys, values: of P slots.
      num_valid: how many of the slots hold something [B].
      deterministic: True turns dropout off.
      is_causal: whether query i sees the first i + 1 + (P - Q) slots only.
    """
    memory = (keys, values, num_valid, is_causal)
    return self._scanned(x, (memory,), 1, deterministic)
