"""Masked autoregressive generation: the reveal loop, in order space.

For each segment of the plan, one loop over its steps:

1. the known tokens are the first num_known of the carry: a static slice with a
   length;
2. the backbone gives z, for the label and, when guided, for "no class";
3. the head draws tokens at the next slice, from noise addressed by token;
4. they are written back with one slice update; nothing else changes.

    carry   | known ........ | next | unknown ...... | padding |
                             └ head_width ┘

A segment's slices have its static width; what a step writes beyond the tokens
it reveals is still unknown and is overwritten before it is ever read. The
inverse permutation to raster order happens once, at the end.

Editing: tokens may be given from the start. They come first in the order, so
they are a longer known prefix; each image keeps its own and draws the rest as a
generation would that stands where its given tokens end. Steps before that
change nothing and may be skipped.

`generate` is the whole; `begin`, `run_segment` and `finish` are its parts, for
callers that look at tokens on the way. A segment may be run in spans of steps,
which are numbers to its program; `finish` gives the tokens so far, too.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from marjax.arrays import Leaf, Tokens, token_dtype
from marjax.backbone.stack import apart
from marjax.generate import guidance
from marjax.generate.draws import Draws, cut, noise_in_order, pad
from marjax.generate.plan import Plan, make_plan
from marjax.generate.settings import Settings
from marjax.layers.placed import by_batch, platform
from marjax.model import ModelConfig, in_matmul_dtype
from marjax.tokens.order import to_order_space, to_raster


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carry:
  """Between two steps: tokens in order space, padded by the widest step, and
  the backbone's state, of both passes of an image side by side if guided."""

  tokens: Leaf
  state: Leaf


class Step(NamedTuple):
  """What varies by step: known tokens before it, guidance scale."""

  num_known: Leaf
  guidance_scale: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Given:
  """Tokens that are known from the start, in the order's first places.

  Attributes:
    tokens: [B, L, *token] in raster order; only those that are given matter.
    num_given: how many of each image [B], 0 .. L.
  """

  tokens: Leaf
  num_given: Leaf


def plan_for(
  config: ModelConfig, settings: Settings, is_edit: bool = False
) -> Plan:
  """The plan that `generate` follows for a model and its settings."""
  backbone, head = config.backbone, settings.head
  return make_plan(
    backbone.num_tokens,
    settings.num_ar_steps,
    settings.num_buckets,
    step_cost=backbone.step_cost,
    row_cost=config.head.row_cost(head, backbone.width),
    num_head_steps=head.num_steps,
    final_head_steps=head.final_num_steps,
    is_edit=is_edit,
  )


@dataclass(frozen=True)
class Static:
  """What is fixed when a generation is traced; hashable.

  Attributes:
    config: of the model. plan: see `plan_for`.
    is_guided: also run the pass without a condition.
    is_edit: whether tokens are given.
  """

  config: ModelConfig
  plan: Plan
  is_guided: bool
  is_edit: bool = False


class Numbers(NamedTuple):
  """What settings say in numbers: others need no other program.

  Attributes:
    scales: guidance scale of each step, float32 [S].
    temperature: float32 [].
    walks: of each segment, how the head draws, by the head's own class.
  """

  scales: Leaf
  temperature: Leaf
  walks: list


def static_for(
  config: ModelConfig, settings: Settings, is_edit: bool = False
) -> Static:
  """The static part of a generation, or edit, with a model's settings."""
  plan = plan_for(config, settings, is_edit)
  is_guided = guidance.is_guided(settings.guidance_scale)
  return Static(config, plan, is_guided, is_edit)


def numbers_for(plan: Plan, settings: Settings) -> Numbers:
  """The numbers of a generation with a model's settings, on the host."""

  def walk(num_steps):
    own = {"num_steps": num_steps, "final_num_steps": None}
    return dataclasses.replace(settings.head, **own).walk()

  counts = [segment.num_head_steps for segment in plan.segments]
  walks = {count: walk(count) for count in set(counts)}
  scales = guidance.scales(
    plan, settings.guidance_scale, settings.guidance_schedule
  )
  temperature = np.asarray(settings.temperature, np.float32)
  return Numbers(scales, temperature, [walks[count] for count in counts])


def generate(
  static: Static,
  params: PyTree,
  condition: PyTree,
  draws: Draws,
  numbers: Numbers,
  given: Given | None = None,
) -> Tokens:
  """Conditions to tokens; a pure function, to be jitted by the caller.

  Args:
    static: from `static_for`.
    params: of the model.
    condition: of each image [B, ...], such as labels [B], -1 for "no class".
    draws: order and noise of each image.
    numbers: from `numbers_for`.
    given: tokens to keep, if the static part is that of an edit.

  Returns:
    Tokens [B, L, *token] in raster order.
  """
  numbers = jax.tree.map(jnp.asarray, numbers)
  carry, fixed = begin(static, params, condition, draws, given)
  for index, walk in enumerate(numbers.walks):
    now = (numbers.scales, numbers.temperature, walk)
    carry = run_segment(static, index, params, carry, fixed, *now)
  return finish(carry, fixed)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
  """What no step changes: order, noise in order space, given tokens.

  Attributes:
    order: [B, L]. noise: padded by the widest step.
    num_given: [B], all 0 unless tokens are given.
  """

  order: Leaf
  noise: Leaf
  num_given: Leaf


def begin(
  static: Static,
  params: PyTree,
  condition: PyTree,
  draws: Draws,
  given: Given | None = None,
) -> tuple[Carry, Fixed]:
  """The carry before the first step, and what stays the same."""
  order, widest = draws.order, static.plan.widest
  batch, length = order.shape
  noise = pad(noise_in_order(draws.noise, order), widest)
  backbone = static.config.backbone
  shape = (batch, length + widest, *backbone.token_shape)
  tokens = jnp.zeros(shape, token_dtype(backbone.num_codes))
  num_given = jnp.zeros((batch,), jnp.int32)
  if given is not None:
    num_given = given.num_given
    known = to_order_space(given.tokens, order)
    known = _where(jnp.arange(length) < num_given[:, None], known, 0)
    tokens = tokens.at[:, :length].set(known)
  tokens = by_batch(tokens)
  nothing = backbone.condition.nothing(batch)
  condition = jax.tree.map(lambda *c: _passes(static, *c), condition, nothing)
  state = static.config.build().apply(
    {"params": in_matmul_dtype(static.config, params)},
    condition,
    _passes(static, order, order),
    None if given is None else _passes(static, known, known),
    method="start",
  )
  return Carry(tokens, state), Fixed(order, noise, num_given)


def _passes(static: Static, conditional, unconditional):
  """Both passes of an image side by side, so that none leaves its device."""
  if not static.is_guided:
    return conditional
  both = jnp.stack([conditional, unconditional], axis=1)
  return both.reshape(2 * len(conditional), *conditional.shape[1:])


def run_segment(
  static: Static,
  index: int,
  params: PyTree,
  carry: Carry,
  fixed: Fixed,
  scales: Float[Array, " S"],
  temperature: Float[Array, ""],
  walk: PyTree,
  span: Int[Array, "2"] | None = None,
) -> Carry:
  """The carry after the steps of one segment.

  Args:
    static, params: as in `generate`.
    index: of the segment.
    carry, fixed: from `begin`, and the carry of the steps before.
    scales, temperature, walk: of `Numbers`; the walk is the segment's.
    span: of its steps, the first and the one after the last; None for all.
  """
  segment = static.plan.segments[index]
  params = in_matmul_dtype(static.config, params)
  if static.config.backbone.has_cache and platform() == "gpu":
    params = apart(params)
  known = jnp.asarray(segment.num_known, jnp.int32)
  scales = scales[segment.first_step : segment.end]

  def run(index, carry):
    """Reveals the next tokens; those before step.num_known are final."""
    step = Step(known[index], scales[index])
    z, z_uncond, state = _next_z(static, params, segment, carry, step, fixed)
    new = static.config.build().apply(
      {"params": params},
      z,
      walk,
      noise=cut(fixed.noise, step.num_known, segment.head_width),
      temperature=temperature,
      guidance=(z_uncond, step.guidance_scale) if static.is_guided else None,
      method="sample",
    )
    if static.is_edit:
      new = _keep_given(segment, carry, step, fixed, new)
    tokens = jax.lax.dynamic_update_slice_in_dim(
      carry.tokens, new, step.num_known, axis=1
    )
    return Carry(by_batch(tokens), state)

  first, end = (0, len(known)) if span is None else span
  return jax.lax.fori_loop(first, end, run, carry)


def finish(carry: Carry, fixed: Fixed, num_known: Leaf | None = None) -> Tokens:
  """The tokens in raster order.

  Of those, if num_known is not None, only so many were drawn; the others are 0,
  which is also a code.
  """
  length = fixed.order.shape[1]
  tokens = carry.tokens[:, :length]
  if num_known is not None:
    ends = jnp.maximum(num_known, fixed.num_given)[:, None]
    tokens = _where(jnp.arange(length) < ends, tokens, 0)
  return to_raster(tokens, fixed.order)


def _next_z(static, params, segment, carry, step, fixed):
  """z at the positions of this step, with and without condition, and state."""
  known, order = carry.tokens[:, : segment.encoder_length], fixed.order
  num_known = jnp.broadcast_to(step.num_known, order.shape[:1])
  if static.is_edit:
    # Before its own steps begin, an image's z is not used; its length stays
    # within the prefix that the segment encodes.
    most = jnp.minimum(fixed.num_given, segment.encoder_length)
    num_known = jnp.maximum(num_known, most)
  # What runs off the end is the last token again, and is never read.
  window = step.num_known + jnp.arange(segment.head_width)
  window = jnp.minimum(window, order.shape[1] - 1)
  z, state = static.config.build().apply(
    {"params": params},
    carry.state,
    _passes(static, known, known),
    _passes(static, num_known, num_known),
    window,
    segment.num_new,
    method="step",
  )
  if not static.is_guided:
    return z, None, state
  passes = z.reshape(-1, 2, *z.shape[1:])
  return passes[:, 0], passes[:, 1], state


def _keep_given(segment, carry, step, fixed, new):
  """The new tokens, but where the carry holds given ones."""
  width = segment.head_width
  place = step.num_known + jnp.arange(width)
  old = jax.lax.dynamic_slice_in_dim(carry.tokens, step.num_known, width, 1)
  return _where(place < fixed.num_given[:, None], old, new)


def _where(is_one, one, other):
  """Of tokens [..., *token], those of one where it is True [...]."""
  is_one = is_one.reshape(*is_one.shape, *(1,) * (one.ndim - is_one.ndim))
  return jnp.where(is_one, one, other)
