"""Arithmetic that is needed: no padding, neither of the encoder nor the head.

1. A generation step that has K tokens and reveals r costs

       steps(K, r) = a + b·K + c·K² + d·r        head(r) = e + f·r

   K² in the encoder's attention, r in the head and where only the predicted
   positions matter. The coefficients come from a few one-step plans, which have
   exact lengths, counted by `marjax.train.flops`.
2. A generation is the sum over its steps.
3. Training is three forward passes; of images that know K tokens, the head
   works on the other L - K. The mean is over the distribution of K.
"""

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from marjax import keys
from marjax.generate import reveal
from marjax.generate.draws import cut, draw_batch
from marjax.generate.plan import Plan
from marjax.generate.reveal import Static
from marjax.generate.settings import Settings
from marjax.model import ModelConfig, init_params
from marjax.train import flops

_QUANTILES = 4096


def of_generation(static: Static, batch: int) -> tuple[int, int]:
  """FLOPs of one batch without padding: all, and the head's."""
  transformer = _transformer(static, batch)
  total = heads = 0
  for segment in static.plan.segments:
    head = _head(static, batch, segment.num_head_steps)
    for known, shown in zip(
      segment.num_known, segment.num_revealed, strict=True
    ):
      total += transformer(known, shown)
      heads += head(shown)
  return total + heads, heads


def of_training(config: ModelConfig, batch: int) -> tuple[int, int]:
  """FLOPs of one step without padding: all, and the head's; expected values."""
  length = config.backbone.num_tokens
  settings = Settings(num_ar_steps=1).for_model(config)
  transformer = _transformer(reveal.static_for(config, settings), 1)
  head = _line(functools.partial(_head_loss, config), *_sizes(length))
  quantiles = (jnp.arange(_QUANTILES) + 0.5) / _QUANTILES
  ratios = np.asarray(config.backbone.masking.ratio(quantiles), np.float64)
  unknown = np.ceil(np.round(length * ratios, 4)).astype(int)
  counts = zip(*np.unique(unknown, return_counts=True), strict=True)
  total = heads = 0
  for count, times in ((int(n), int(times)) for n, times in counts):
    total += times * transformer(length - count, count)
    heads += times * head(count)
  scale = Fraction(3 * batch, _QUANTILES)
  return round(scale * (total + heads)), round(scale * heads)


def _transformer(static: Static, batch: int) -> Callable[[int, int], int]:
  """FLOPs of the transformer in a step that has K tokens and reveals r."""
  near, far = _sizes(static.config.backbone.num_tokens)

  @functools.cache
  def count(known, shown):
    return _step(static, batch, known, shown) - _sample(static, batch, shown)

  by_width = _line(lambda shown: count(0, shown), near, far)
  none, some, more = (count(known, near) for known in (0, near, far))
  curve = Fraction(more - 2 * some + none, 2 * near**2)
  slope = Fraction(some - none, near) - curve * near
  return lambda known, shown: round(
    by_width(shown) + slope * known + curve * known**2
  )


@functools.cache
def _head(static: Static, batch: int, steps: int) -> Callable[[int], int]:
  """FLOPs of the head for r tokens of each image, by that many steps."""
  sizes = _sizes(static.config.backbone.num_tokens)
  return _line(lambda shown: _sample(static, batch, shown, steps), *sizes)


def _sizes(length: int) -> tuple[int, int]:
  """Two counts of tokens to measure at, the second twice the first."""
  return max(1, length // 4), 2 * max(1, length // 4)


def _line(count: Callable[[int], int], near: int, far: int) -> Callable:
  """The straight line through two counts."""
  low, high = count(near), count(far)
  slope = Fraction(high - low, far - near)
  return lambda n: round(low + slope * (n - near))


def one_step(
  static: Static, known: int, shown: int, steps: int | None = None
) -> Static:
  """The same with a plan of one AR step, of exact lengths."""
  length, first = static.config.backbone.num_tokens, static.plan.segments[0]
  segment = dataclasses.replace(
    first,
    first_step=0,
    num_known=(known,),
    num_revealed=(shown,),
    num_head_steps=steps or first.num_head_steps,
  )
  plan = Plan(length, 1, (segment,), (length,))
  return dataclasses.replace(static, plan=plan)


def _step(static: Static, batch: int, known: int, shown: int) -> int:
  static = one_step(static, known, shown)
  params = abstract_params(static.config)
  carry, fixed = jax.eval_shape(lambda p: _begun(static, p, batch), params)
  numbers = (
    jax.ShapeDtypeStruct((1,), "float32"),
    jax.ShapeDtypeStruct((), "float32"),
    walk_of(static, 0),
  )
  run = functools.partial(reveal.run_segment, static, 0, False)
  return flops.count(run, params, carry, fixed, *numbers)


def _begun(static: Static, params, batch: int):
  ids = jnp.arange(batch)
  draws = draw_batch(keys.root(0), ids, static.config.backbone)
  return reveal.begin(static, params, ids, draws)


@functools.cache
def _sample(
  static: Static, batch: int, shown: int, steps: int | None = None
) -> int:
  static = one_step(static, 0, shown, steps)
  walk = walk_of(static, 0)

  def sample(params, z):
    _, fixed = _begun(static, params, batch)
    return static.config.build().apply(
      {"params": params},
      z,
      walk,
      noise=cut(fixed.noise, 0, shown),
      temperature=1.0,
      guidance=(z, 1.0) if static.is_guided else None,
      method="sample",
    )

  shape = (batch, shown, static.config.backbone.width)
  z = jax.ShapeDtypeStruct(shape, "float32")
  return flops.count(sample, abstract_params(static.config), z)


def walk_of(static: Static, index: int):
  """How a segment draws its tokens, as the head's own arrays."""
  steps = static.plan.segments[index].num_head_steps
  own = static.config.head.Settings()
  if own.num_steps > 1:
    own = dataclasses.replace(own, num_steps=steps)
  return own.walk()


def _head_loss(config: ModelConfig, count: int) -> int:
  """Forward FLOPs of the head's loss on `count` tokens of one image."""

  def loss(params, z, target):
    key = jax.random.key(0)
    return config.head.build().apply(
      {"params": params}, z, target, key=key, method="loss"
    )

  shapes = (
    jax.ShapeDtypeStruct((1, count, width), "float32")
    for width in (config.backbone.width, config.head.token_dim)
  )
  return flops.count(loss, abstract_params(config)["head"], *shapes)


@functools.cache
def abstract_params(config: ModelConfig) -> PyTree:
  """Shapes of the parameters."""
  return jax.eval_shape(lambda: nn.unbox(init_params(config, keys.root(0))))
