"""A small model with weights that are neither zero nor tame, for any test.

Freshly initialised heads output exactly 0; noise on every parameter makes all
paths count. The scale keeps a reverse process bounded.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from marjax.backbone.causal import CausalConfig
from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.guided import GuidedConfig
from marjax.backbone.masked import MaskedConfig
from marjax.experiment import DataConfig, Experiment, TrainingConfig
from marjax.generate import reveal
from marjax.generate.plan import make_plan
from marjax.generate.settings import Settings
from marjax.head.categorical import CategoricalHeadConfig
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.reverse import ReverseSettings
from marjax.latents.codebook import CodebookConfig
from marjax.latents.kl import KLConfig
from marjax.latents.pixels import PixelsConfig
from marjax.model import ModelConfig, init_params
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.release import directory
from marjax.release.card import Card
from marjax.tokens.masking import MaskConfig

MODEL = ModelConfig(
  MaskedConfig(
    num_tokens=16,
    token_dim=4,
    width=32,
    encoder_depth=1,
    decoder_depth=1,
    num_heads=4,
    num_buffer=4,
    condition=ClassesConfig(num_classes=10),
    masking=MaskConfig(num_strata=2, lowest=0.1, std=0.5),
  ),
  DiffusionHeadConfig(token_dim=4, width=32, depth=1),
)

EXPERIMENT = Experiment(
  name="small",
  codec=PixelsConfig(image_size=8, channels=1, patch=2),
  model=MODEL,
  data=DataConfig("synthetic", image_size=8, channels=1, num_classes=10),
  training=TrainingConfig(
    batch_size=16, num_steps=4, learning_rate=1e-3, ema_rate=0.9
  ),
  sampling=Settings(
    num_ar_steps=6, num_buckets=2, head=ReverseSettings(num_steps=8, start=900)
  ),
)


CODEBOOK = CodebookConfig(8, channels=1, patch=2, num_codes=12, std=0.5)

_SHAPE = {
  "num_tokens": 16,
  "width": 32,
  "num_heads": 4,
  "condition": MODEL.backbone.condition,
}


def of_kind(name: str, is_coded: bool = False) -> Experiment:
  """The run with another backbone: masked, raster, random or guided.

  With codes its codec is `CODEBOOK` and its head categorical.
  """
  shape = _SHAPE | ({"num_codes": 12} if is_coded else {"token_dim": 4})
  backbone = {
    "masked": dataclasses.replace(
      MODEL.backbone, num_codes=shape.get("num_codes", 0)
    ),
    "raster": CausalConfig(**shape, depth=2),
    "random": CausalConfig(**shape, depth=2, order="random"),
    "guided": GuidedConfig(**shape, memory_depth=1, query_depth=1),
  }[name]
  sampling = Settings(
    num_ar_steps=None if backbone.is_sequential else 4,
    num_buckets=2,
    guidance_scale=1.5,
    head=None if is_coded else EXPERIMENT.sampling.head,
  )
  return dataclasses.replace(
    EXPERIMENT,
    codec=CODEBOOK if is_coded else EXPERIMENT.codec,
    model=ModelConfig(
      backbone, CategoricalHeadConfig(12) if is_coded else MODEL.head
    ),
    sampling=sampling,
  )


def plan(length, steps, buckets=None, num_buffer=64, row_cost=1.0, **head):
  """A plan where the encoder's and the decoder's slots cost 1 each."""
  return make_plan(
    length,
    steps,
    buckets,
    step_cost=lambda known: 2 * num_buffer + known + length,
    row_cost=row_cost,
    **head,
  )


def params(scale: float = 0.1, model: ModelConfig = MODEL):
  """Initial parameters plus noise; new arrays, for a step may take them."""
  return jax.tree.map(jnp.array, _params(scale, model))


@functools.cache
def _params(scale: float, model: ModelConfig):
  """The same, on the host: tracing is what takes long."""

  def make():
    fresh = nn.unbox(init_params(model, jax.random.key(0)))
    leaves, structure = jax.tree.flatten(fresh)
    noisy = [
      leaf + scale * jax.random.normal(key, leaf.shape)
      for leaf, key in zip(
        leaves, jax.random.split(jax.random.key(1), len(leaves)), strict=True
      )
    ]
    return jax.tree.unflatten(structure, noisy)

  return jax.device_get(jax.jit(make)())


def images(count: int):
  """Reproducible images [count, 8, 8, 1] in [-1, 1], labels and ids."""
  pixels = jax.random.uniform(
    jax.random.key(2), (count, 8, 8, 1), minval=-1.0, maxval=1.0
  )
  return {
    "image": pixels,
    "label": jnp.arange(count, dtype=jnp.int32) % 10,
    "id": jnp.arange(count, dtype=jnp.int32),
  }


CODEC = KLConfig(
  image_size=8,
  base_width=32,
  multipliers=(1, 1),
  num_blocks=1,
  latent_channels=4,
  latent_scale=0.5,
  has_level_attention=False,
)


def codec_params():
  """Initial parameters of the small autoencoder."""
  return jax.jit(CODEC.init_params)(jax.random.key(4))


def card(**changes) -> Card:
  """A small model whose images go through the small autoencoder."""
  fields = {
    "name": "small",
    "codec": CODEC,
    "model": MODEL,
    "sampling": EXPERIMENT.sampling,
    "presets": {
      "quick": Settings(num_ar_steps=2, head=ReverseSettings(num_steps=3))
    },
    "class_names": tuple(f"thing {i}, object {i}" for i in range(10)),
    "licence": "CC0",
  }
  return Card(**{**fields, **changes})


def one_device():
  """The mesh of the first device."""
  return make_mesh(devices=jax.devices()[:1])


def pipe():
  """The small model on it."""
  return Pipeline.of_experiment(EXPERIMENT, params(), one_device())


def save_release(folder):
  """A released model with its autoencoder inside; returns the folder."""
  directory.save(folder, card(), params(), codec_params())
  return folder


def fit_head(head, z, tokens, num_steps):
  """Parameters of a head that learned tokens(key) [*batch, D] given z."""
  import optax

  key = jax.random.key(2)
  params = jax.jit(head.init)(
    jax.random.key(0), z, tokens(jax.random.key(1)), key=key
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))

  def step(carry, key):
    params, state = carry

    def loss(params):
      return head.apply(params, z, tokens(key), key=key)["loss"]

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(3), num_steps)
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])
  return run((params, optimizer.init(params)))[0]


def tokens_after(static, params, condition, draws, numbers, given=None):
  """Tokens after each step of a generation, those not known yet as 0."""
  numbers = jax.tree.map(jnp.asarray, numbers)
  begin = jax.jit(reveal.begin, static_argnums=0)
  run = jax.jit(reveal.run_segment, static_argnums=(0, 1))
  carry, fixed = begin(static, params, condition, draws, given)
  after = []
  for index, segment in enumerate(static.plan.segments):
    rest = (fixed, numbers.scales, numbers.temperature, numbers.walks[index])
    for step, num_known in enumerate(segment.num_known):
      span = jnp.array([step, step + 1])
      carry = run(static, index, params, carry, *rest, span)
      num_known += segment.num_revealed[step]
      after.append(np.asarray(reveal.finish(carry, fixed, num_known)))
  return after
