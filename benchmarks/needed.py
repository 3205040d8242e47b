"""Arithmetic that is needed: no padding, neither of the encoder nor the head.

1. A generation step that has K tokens, n of which are new, and reveals r costs

       steps(K, n, r) = polynomial      head(r) = e + f·r

   A masked backbone's is of degree 2 in K, because of the encoder's attention,
   and 1 in r. Behind a cache there are products of n and r with K only: each
   new slot and each query looks back once at all slots. The coefficients come
   from a few one-step plans, which have exact lengths, counted by
   `marjax.train.flops`.
2. A generation is the sum over its steps, and what comes before the first.
3. Training is three forward passes. Of images that know K tokens, a masked
   backbone predicts the other L - K; the mean is over the distribution of K.
   Other backbones predict every token once, from those before it: the same as
   a generation of one token a step, which has no padding above the diagonal.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from marjax import keys
from marjax.arrays import token_dtype
from marjax.backbone.masked import MaskedConfig
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
  total, heads, new = of_start(static, batch), 0, 0
  for segment in static.plan.segments:
    head = _head(static, batch, segment.num_head_steps)
    for known, shown in zip(
      segment.num_known, segment.num_revealed, strict=True
    ):
      total += transformer(known, new, shown)
      heads += head(shown)
      new = shown
  return total + heads, heads


def of_start(static: Static, batch: int) -> int:
  """FLOPs of what comes before the first step: the prefix of a cache."""
  params = abstract_params(static.config)
  return flops.count(lambda params: _begun(static, params, batch), params)


def of_training(config: ModelConfig, batch: int) -> tuple[int, int]:
  """FLOPs of one step without padding: all, and the head's; expected values."""
  length = config.backbone.num_tokens
  settings = Settings().for_model(config)
  static = reveal.static_for(config, settings)
  transformer = _transformer(static, 1)
  head = _line(functools.partial(_head_loss, config), *_sizes(length))
  if not isinstance(config.backbone, MaskedConfig):
    total = of_start(static, 1) + sum(
      transformer(known, min(known, 1), 1) for known in range(length)
    )
    heads = head(length)
    return 3 * batch * (total + heads), 3 * batch * heads
  quantiles = (jnp.arange(_QUANTILES) + 0.5) / _QUANTILES
  ratios = np.asarray(config.backbone.masking.ratio(quantiles), np.float64)
  unknown = np.ceil(np.round(length * ratios, 4)).astype(int)
  counts = zip(*np.unique(unknown, return_counts=True), strict=True)
  total = heads = 0
  for count, times in ((int(n), int(times)) for n, times in counts):
    total += times * transformer(length - count, 0, count)
    heads += times * head(count)
  scale = Fraction(3 * batch, _QUANTILES)
  return round(scale * (total + heads)), round(scale * heads)


def _transformer(static: Static, batch: int) -> Callable[[int, int, int], int]:
  """FLOPs of the transformer in a step: K tokens, n of them new, r revealed.

  Through as many counts as its polynomial has coefficients. The first step is
  counted by itself: with nothing known there is less to do.
  """
  backbone = static.config.backbone
  near, far = _sizes(backbone.num_tokens)

  @functools.cache
  def count(known, new, shown):
    step = _step(static, batch, known, new, shown)
    return step - _sample(static, batch, shown)

  is_masked = isinstance(backbone, MaskedConfig)
  grid = (
    (near, far, near + far) if is_masked else (near, far),
    (0,) if is_masked or backbone.is_sequential else (0, 1),
    (1,) if backbone.is_sequential else (near, far),
  )

  @functools.cache
  def through(known, new, shown):
    weights = [
      _weights(nodes, at)
      for nodes, at in zip(grid, (known, new, shown), strict=True)
    ]
    return round(
      sum(
        math.prod(factors) * count(*place)
        for factors, place in zip(
          itertools.product(*weights), itertools.product(*grid), strict=True
        )
      )
    )

  return lambda known, *rest: (through if known else count)(known, *rest)


def _weights(nodes: tuple[int, ...], at: int) -> list[Fraction]:
  """Of values at the nodes, for that of their polynomial elsewhere."""
  return [
    math.prod(
      (Fraction(at - other, node - other) for other in nodes if other != node),
      start=Fraction(1),
    )
    for node in nodes
  ]


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
  static: Static,
  known: int,
  shown: int,
  steps: int | None = None,
  new: int = 0,
) -> Static:
  """The same with a plan of one AR step, of exact lengths."""
  length, first = static.config.backbone.num_tokens, static.plan.segments[0]
  segment = dataclasses.replace(
    first,
    first_step=0,
    num_known=(known,),
    num_revealed=(shown,),
    num_new=new,
    num_head_steps=steps or first.num_head_steps,
  )
  plan = Plan(length, 1, (segment,), (length,))
  return dataclasses.replace(static, plan=plan)


def _step(static: Static, batch: int, known: int, new: int, shown: int) -> int:
  static = one_step(static, known, shown, new=new)
  params = abstract_params(static.config)
  carry, fixed = jax.eval_shape(lambda p: _begun(static, p, batch), params)
  numbers = (
    jax.ShapeDtypeStruct((1,), "float32"),
    jax.ShapeDtypeStruct((), "float32"),
    walk_of(static, 0),
  )
  run = functools.partial(reveal.run_segment, static, 0)
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
  walk, params = walk_of(static, 0), abstract_params(static.config)
  _, fixed = jax.eval_shape(lambda p: _begun(static, p, batch), params)

  def sample(params, fixed, z):
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
  return flops.count(sample, params, fixed, z)


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

  c = config.head
  z = jax.ShapeDtypeStruct((1, count, config.backbone.width), "float32")
  dtype = token_dtype(c.num_codes)
  target = jax.ShapeDtypeStruct((1, count, *c.token_shape), dtype)
  return flops.count(loss, abstract_params(config)["head"], z, target)


@functools.cache
def abstract_params(config: ModelConfig) -> PyTree:
  """Shapes of the parameters."""
  return jax.eval_shape(lambda: nn.unbox(init_params(config, keys.root(0))))
