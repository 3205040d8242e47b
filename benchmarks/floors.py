"""Bytes that a generation must read, however fast its arithmetic is.

1. Weights. Few rows of activations wait for many weights: at each step those of
   the backbone are read, and those of the head that do not wait for x; at each
   evaluation of the head those that do.
2. Caches. At each step each block with a cache reads the keys and values of all
   known slots, of each image and pass by itself:

       slots · 2 · width · bytes of a number · blocks · passes · images

Activations are not counted, nor what is looked up in tables. What stays on the
chip from one step to the next, if an array is small enough, is not known here.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from marjax.backbone.causal import CausalConfig
from marjax.backbone.guided import GuidedConfig
from marjax.generate.reveal import Static
from marjax.protocols import BackboneConfig

IN_LOOP = ("embed_x", "norm", "linear_in", "linear_out", "final_linear")
"""Layers of the head that wait for x: each pass reads their weights anew."""


def weight_bytes(static: Static, params: PyTree) -> int:
  """Of all weights that products read, over all steps and evaluations."""
  backbone, head = static.config.backbone, static.config.head
  each_step = each_pass = 0
  for path, leaf in _leaves(params["backbone"]):
    if not backbone.is_float32(path):
      each_step += leaf.size * jnp.dtype(backbone.dtype).itemsize
  for path, leaf in _leaves(params["head"]):
    dtype = leaf.dtype if head.is_float32(path) else head.dtype
    num_bytes = leaf.size * jnp.dtype(dtype).itemsize
    if any(name in IN_LOOP for name in path):
      each_pass += num_bytes
    else:
      each_step += num_bytes
  return sum(
    len(segment.num_known) * (each_step + segment.num_head_steps * each_pass)
    for segment in static.plan.segments
  )


def cache_bytes(static: Static, batch: int) -> int:
  """Of all looks back at keys and values, for a batch of images."""
  c = static.config.backbone
  slots = sum(
    _slots_read(c, known)
    for segment in static.plan.segments
    for known in segment.num_known
  )
  each = 2 * c.width * jnp.dtype(c.dtype).itemsize
  return slots * each * (2 if static.is_guided else 1) * batch


def _slots_read(c: BackboneConfig, num_known: int) -> int:
  """Over all blocks, at a step that knows so many tokens."""
  if isinstance(c, CausalConfig):
    return c.depth * (c.num_prefix + num_known)
  if isinstance(c, GuidedConfig):
    # The first step takes no token into the memory.
    blocks = c.query_depth + (c.memory_depth if num_known else 0)
    return blocks * (c.num_prefix + num_known)
  return 0


def _leaves(params: PyTree) -> Iterator[tuple[tuple[str, ...], Array]]:
  """Pairs of a parameter's path, as names, and what is there."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    yield tuple(entry.key for entry in path), leaf
