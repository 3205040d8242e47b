"""Masked autoregressive generation: the reveal loop, in order space.

For each segment of the plan, one `lax.scan` over its steps:

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
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from marjax import keys
from marjax.arrays import NO_LABEL, ImageIds, Labels, Leaf, RootKey, Tokens
from marjax.generate import guidance
from marjax.generate.plan import Plan, make_plan
from marjax.head.noise import KeyedNoise, Noise, RecordedNoise
from marjax.head.reverse import ReverseSettings
from marjax.model import ModelConfig
from marjax.settings import Settings
from marjax.tokens.order import random_orders, to_order_space, to_raster


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draws:
  """Everything random about a batch of images; pass it again to replay them.

  Attributes:
    order: generation order [B, L].
    noise: KeyedNoise with keys [B, L], or RecordedNoise with start [B, L, D]
      and steps [T, B, L, D]; indexed by raster position.
  """

  order: Leaf
  noise: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carry:
  """Between two steps: tokens in order space, padded by the widest step."""

  tokens: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
  """What varies by step, scanned: known tokens before it, guidance scale."""

  num_known: Leaf
  guidance_scale: Leaf


def draw(key: RootKey, image_ids: ImageIds, num_tokens: int) -> Draws:
  """Draws addressed by (key, image id, position, purpose) only."""
  order_keys = keys.at(keys.stream(key, "order"), image_ids)
  noise_keys = keys.at(keys.stream(key, "noise"), image_ids)
  positions = jnp.broadcast_to(
    jnp.arange(num_tokens), (image_ids.shape[0], num_tokens)
  )
  return Draws(
    random_orders(order_keys, num_tokens),
    KeyedNoise(keys.at(noise_keys, positions)),
  )


def plan_for(config: ModelConfig, settings: Settings) -> Plan:
  """The plan that `generate` follows for a model and resolved settings."""
  backbone, head = config.backbone, config.head
  block = 12 * backbone.width**2 * backbone.encoder_depth
  row = (5 * head.depth + 2) * head.width**2 * settings.num_diffusion_steps
  return make_plan(
    backbone.num_tokens,
    settings.num_ar_steps,
    settings.num_buckets,
    backbone.num_buffer,
    head_share=row / block,
  )


@dataclass(frozen=True)
class Static:
  """What is fixed when a generation is traced; hashable.

  Attributes:
    config: of the model. plan: see `plan_for`.
    reverse: of each token. is_guided: also run the pass without a label.
  """

  config: ModelConfig
  plan: Plan
  reverse: ReverseSettings
  is_guided: bool


def static_for(config: ModelConfig, settings: Settings) -> Static:
  """The static part of a generation with resolved settings."""
  return Static(
    config,
    plan_for(config, settings),
    settings.reverse(),
    guidance.is_guided(settings.guidance_scale),
  )


def generate(
  static: Static,
  params: PyTree,
  labels: Labels,
  draws: Draws,
  scales: Float[Array, " S"],
  temperature: Float[Array, ""],
  *,
  keep_steps: bool = False,
) -> tuple[Tokens, Float[Array, "S B L D"] | None]:
  """Labels to tokens; a pure function, to be jitted by the caller.

  Args:
    static: from `static_for`.
    params: of the model.
    labels: [B], -1 for "no class".
    draws: order and noise of each image.
    scales: guidance scale of each step, see `step_scales`.
    temperature: of the reverse process.
    keep_steps: also return the tokens after every step.

  Returns:
    Tokens [B, L, D] in raster order, and, if kept, [S, B, L, D] in raster
    order with unknown tokens as 0.
  """
  plan, order = static.plan, draws.order
  batch, length = order.shape
  noise = _pad(_noise_in_order(draws.noise, order), plan.widest)
  dim = static.config.backbone.token_dim
  carry = Carry(jnp.zeros((batch, length + plan.widest, dim)))
  kept = []
  for segment in plan.segments:
    end = segment.first_step + len(segment.num_known)
    steps = Step(
      jnp.asarray(segment.num_known, jnp.int32),
      scales[segment.first_step : end],
    )

    def run(carry, step, segment=segment):
      """Reveals the next tokens; those before step.num_known are final."""
      z, z_uncond = _next_z(static, params, segment, carry, step, labels, order)
      new = static.config.build().apply(
        {"params": params},
        z,
        static.reverse,
        noise=_slice(noise, step.num_known, segment.head_width),
        temperature=temperature,
        guidance=(z_uncond, step.guidance_scale) if static.is_guided else None,
        method="sample",
      )
      tokens = jax.lax.dynamic_update_slice_in_dim(
        carry.tokens, new, step.num_known, axis=1
      )
      return Carry(tokens), tokens[:, :length] if keep_steps else None

    carry, after = jax.lax.scan(run, carry, steps)
    kept.append(after)
  tokens = to_raster(carry.tokens[:, :length], order)
  return tokens, _kept_in_raster(kept, order, plan) if keep_steps else None


def _next_z(static, params, segment, carry, step, labels, order):
  """z at the positions of this step, with and without the label."""
  known = carry.tokens[:, : segment.encoder_length]
  if static.is_guided:
    # Both passes of an image side by side, so that no image leaves its device.
    known, order = jnp.repeat(known, 2, axis=0), jnp.repeat(order, 2, axis=0)
    nothing = jnp.full_like(labels, NO_LABEL)
    labels = jnp.stack([labels, nothing], axis=1).reshape(-1)
  z = static.config.build().apply(
    {"params": params},
    known,
    jnp.broadcast_to(step.num_known, labels.shape),
    order,
    labels,
    method="z",
  )
  z = jax.lax.dynamic_slice_in_dim(
    _pad(z, static.plan.widest), step.num_known, segment.head_width, axis=1
  )
  if not static.is_guided:
    return z, None
  passes = z.reshape(-1, 2, *z.shape[1:])
  return passes[:, 0], passes[:, 1]


def step_scales(plan: Plan, settings: Settings) -> np.ndarray:
  """Guidance scale per step for resolved settings, float32 [S]."""
  return guidance.scales(
    plan, settings.guidance_scale, settings.guidance_schedule
  )


def _kept_in_raster(kept, order, plan: Plan):
  after = jnp.concatenate(kept)
  ends = jnp.asarray(plan.known_after)[:, None, None]
  is_known = jnp.arange(order.shape[1]) < ends
  after = jnp.where(is_known[..., None], after, 0.0)
  return jax.vmap(to_raster, (0, None))(after, order)


def _noise_in_order(noise: Noise, order) -> Noise:
  if isinstance(noise, KeyedNoise):
    return KeyedNoise(jax.vmap(lambda k, o: k[o])(noise.row_keys, order))
  steps = jax.vmap(to_order_space, (0, None))(noise.steps, order)
  return RecordedNoise(to_order_space(noise.start, order), steps)


def _token_axis(noise: Noise, function) -> Noise:
  """Applies function(array, axis) along the token axis of every array."""
  if isinstance(noise, KeyedNoise):
    return KeyedNoise(function(noise.row_keys, 1))
  return RecordedNoise(function(noise.start, 1), function(noise.steps, 2))


def _pad(values, amount: int):
  """Repeats the last token `amount` times, so no slice runs off the end."""

  def extend(array, axis):
    last = jax.lax.slice_in_dim(array, -1, None, axis=axis)
    return jnp.concatenate([array, *[last] * amount], axis=axis)

  if isinstance(values, KeyedNoise | RecordedNoise):
    return _token_axis(values, extend)
  return extend(values, 1)


def _slice(noise: Noise, start, width: int) -> Noise:
  def cut(array, axis):
    return jax.lax.dynamic_slice_in_dim(array, start, width, axis)

  return _token_axis(noise, cut)
