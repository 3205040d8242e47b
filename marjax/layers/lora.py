"""Low-rank updates beside frozen kernels (LoRA, arXiv 2106.09685).

1. Beside a kernel [*inputs, *outputs] stand two factors, down [*inputs, rank]
   and up [rank, *outputs]. What the model uses is

       kernel + alpha / rank · down · up

   A stack's kernels and factors have a leading axis of layers.
2. How many axes are outputs is what the layer's bias has.
3. down is N(0, 1 / inputs), up is 0: at the start nothing is changed, to the
   bit.
4. The factors are parameters, in a tree of their own below `LORA`, placed like
   the kernel's axes. `merged` makes plain parameters of them, for a step of
   training, for generation, for export.
"""

import functools
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from marjax import schema
from marjax.arrays import matching
from marjax.schema import Range, check

LORA = "lora"
"""The name of the factors among the parameters."""


@schema.config
class LoraConfig:
  """Which kernels have factors.

  Attributes:
    rank: of the update; 0 for none.
    alpha: the update is alpha / rank · down · up.
    patterns: of names of kernels; * stands for anything, slashes too.
  """

  rank: Annotated[int, Range(0, 2**16)] = 0
  alpha: Annotated[float, Range(0, 1e6, is_open=True)] = 16.0
  patterns: tuple[str, ...] = ("*/attention/*/kernel", "head/*/kernel")


def added(boxed: PyTree, config: LoraConfig, key: jax.Array) -> PyTree:
  """The parameters, boxed as `init_params` gives them, with new factors.

  Without a rank they are the parameters themselves.

  Raises:
    ValueError: a pattern matches no kernel.
  """
  if not config.rank:
    return boxed
  flat = flatten_dict(boxed)
  biased = {
    "/".join(path): path
    for path in flat
    if path[-1] == "kernel" and (*path[:-1], "bias") in flat
  }
  chosen = matching(config.patterns, biased, "training.lora.patterns")
  check(
    len(chosen) > 0,
    "training.lora.patterns is empty; expected patterns of kernels, or"
    " training.lora.rank = 0.",
  )
  factors = {}
  for index, name in enumerate(sorted(chosen)):
    path = biased[name]
    bias = flat[(*path[:-1], "bias")]
    own = jax.random.fold_in(key, index)
    down, up = _factors(flat[path], bias, config.rank, own)
    factors[(*path[:-1], "down")] = down
    factors[(*path[:-1], "up")] = up
  return {**boxed, LORA: unflatten_dict(factors)}


def _factors(kernel, bias, rank: int, key: jax.Array) -> tuple:
  """down and up of one kernel, boxed."""
  shape, names = kernel.value.shape, kernel.names
  lead = int(names[0] == "layers")
  cut = len(shape) - (len(bias.names) - lead)
  size = math.prod(shape[lead:cut])
  down = jax.random.normal(key, (*shape[:cut], rank)) / math.sqrt(size)
  up = jnp.zeros((*shape[:lead], rank, *shape[cut:]))
  box = nn.LogicallyPartitioned
  return (
    box(down, (*names[:cut], None)),
    box(up, (*names[:lead], None, *names[cut:])),
  )


def merged(params: PyTree, config: LoraConfig) -> PyTree:
  """Plain parameters: each kernel with its update, and no factors."""
  if not config.rank:
    return params
  flat = flatten_dict({k: v for k, v in params.items() if k != LORA})
  factors = flatten_dict(params[LORA])
  product = functools.partial(jnp.tensordot, axes=1, precision="highest")
  for path, down in factors.items():
    if path[-1] != "down":
      continue
    up, at = factors[(*path[:-1], "up")], (*path[:-1], "kernel")
    is_stacked = down.ndim + up.ndim - 2 > flat[at].ndim
    update = (jax.vmap(product) if is_stacked else product)(down, up)
    flat[at] = flat[at] + config.alpha / config.rank * update
  return unflatten_dict(flat)
