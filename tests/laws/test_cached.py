"""Backbones with a cache: it changes nothing, and nobody sees ahead."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax.backbone.causal import CausalConfig
from marjax.backbone.guided import GuidedConfig
from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.generate.settings import Settings
from marjax.head import mlp, scan
from marjax.head.reverse import ReverseSettings
from marjax.model import ModelConfig, draw
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.preflight import costs
from marjax.preflight.hlo import parse
from marjax.requests import batching, compiled
from marjax.tokens.order import to_order_space

SHAPE = {
  "num_tokens": 16,
  "token_dim": 4,
  "width": 32,
  "num_heads": 4,
  "condition": small.MODEL.backbone.condition,
}
BACKBONES = {
  "raster": CausalConfig(**SHAPE, depth=3),
  "raster, no targets": CausalConfig(**SHAPE, depth=2, target_positions="none"),
  "random": CausalConfig(**SHAPE, depth=2, order="random", num_prefix=3),
  "middle": CausalConfig(
    **SHAPE, depth=3, order="random", target_positions="middle"
  ),
  "guided": GuidedConfig(**SHAPE, memory_depth=2, query_depth=2, num_prefix=2),
}
LABELS = jnp.arange(3)
SAMPLING = Settings(
  guidance_scale=2.0,
  num_buckets=3,
  head=ReverseSettings(num_steps=6, start=900),
)


SLOW = ("raster, no targets", "middle")


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in BACKBONES
  ],
)
def model(request):
  return ModelConfig(BACKBONES[request.param], small.MODEL.head)


@pytest.fixture(scope="module", params=["random", "guided"])
def editable(request):
  return ModelConfig(BACKBONES[request.param], small.MODEL.head)


def short(model):
  """The same with fewer tokens: each step of a loop is traced by itself."""
  backbone = dataclasses.replace(model.backbone, num_tokens=7)
  return dataclasses.replace(model, backbone=backbone)


def batch_of(model, count=3):
  """Parameters, tokens in order space, and training draws."""
  draws = draw(model, jax.random.split(jax.random.key(0), count), LABELS)
  shape = (count, model.backbone.num_tokens, 4)
  tokens = jax.random.normal(jax.random.key(1), shape)
  return small.params(model=model), tokens, draws


@functools.partial(jax.jit, static_argnums=0)
def taught(model, params, x, draws):
  return model.build().apply(
    {"params": params},
    x,
    draws.backbone,
    draws.condition,
    True,
    method=lambda module, *args: module.backbone.training_z(*args)[0],
  )


@functools.partial(jax.jit, static_argnums=(0, 4))
def stepped(model, params, x, draws, counts, prefilled=None):
  """z of all tokens by steps that know so many, and the final state."""
  module, variables = model.build(), {"params": params}
  order = draws.backbone.order
  state = module.apply(
    variables, draws.condition, order, prefilled, method="start"
  )
  parts = []
  ends = (*counts[1:], x.shape[1])
  # After a prefill nothing but the last token may be written once more.
  start = 0 if prefilled is None else counts[0] - 1
  for before, count, end in zip((start, *counts), counts, ends, strict=False):
    args = (state, x[:, : count + 1], jnp.full(3, count))
    z, state = module.apply(
      variables, *args, jnp.arange(count, end), count - before, method="step"
    )
    parts.append(z)
  return jnp.concatenate(parts, axis=1)


def test_one_token_a_step_equals_teacher_forcing(model):
  model = short(model)
  params, x, draws = batch_of(model)
  expected = taught(model, params, x, draws)
  z = stepped(model, params, x, draws, tuple(range(7)))
  np.testing.assert_allclose(z, expected, atol=1e-5)


def test_nobody_sees_its_own_token_or_a_later_one(model):
  model = short(model)
  params, x, draws = batch_of(model)

  def z_of_first(x):
    return taught(model, params, x, draws)[0]

  jacobian = jax.jit(jax.jacrev(z_of_first))(x)[:, :, 0]
  reach = np.abs(jacobian).max(axis=(1, 3))  # [L of z, L of tokens]
  assert not np.triu(reach).any()
  below = np.tril_indices(len(reach), -1)
  assert (reach[below] > 0).all()


def test_several_tokens_a_step_see_what_was_known_before_the_step():
  model = ModelConfig(BACKBONES["guided"], small.MODEL.head)
  params, x, draws = batch_of(model)
  counts = (0, 1, 3, 4, 9)
  z = stepped(model, params, x, draws, counts)
  ends = (*counts[1:], 16)
  for count, end in zip(counts, ends, strict=True):
    # Each by itself, as training asks for it, with no more than that known.
    for index in range(count, end):
      order = draws.backbone.order
      swapped = order.at[:, count].set(order[:, index])
      swapped = swapped.at[:, index].set(order[:, count])
      own = dataclasses.replace(
        draws, backbone=dataclasses.replace(draws.backbone, order=swapped)
      )
      alone = taught(model, params, x, own)[:, count]
      np.testing.assert_allclose(z[:, index], alone, atol=1e-5)


def test_what_is_known_from_the_start_may_be_skipped(editable):
  model = short(editable)
  params, x, draws = batch_of(model)
  expected = taught(model, params, x, draws)
  hidden = x.at[:, 4:].set(9.0)
  z = stepped(model, params, x, draws, tuple(range(3, 7)), hidden)
  np.testing.assert_allclose(z, expected[:, 3:], atol=1e-5)


def test_an_order_that_is_the_rasters_is_raster_order():
  raster = ModelConfig(BACKBONES["raster"], small.MODEL.head)
  backbone = dataclasses.replace(raster.backbone, order="random")
  free = dataclasses.replace(raster, backbone=backbone)
  params, x, draws = batch_of(raster)
  assert (draws.backbone.order == jnp.arange(16)).all()
  np.testing.assert_array_equal(
    taught(raster, params, x, draws), taught(free, params, x, draws)
  )
  other = batch_of(free)[2]
  assert (other.backbone.order != jnp.arange(16)).any()


def pipe_of(model, mesh=None, buckets=2, scale=2.0):
  """A pipeline of the model, with the programs that people use."""
  sampling = dataclasses.replace(
    SAMPLING, num_buckets=buckets, guidance_scale=scale
  )
  steps = None if model.backbone.is_sequential else 6
  sampling = dataclasses.replace(sampling, num_ar_steps=steps)
  card = small.card(
    codec=small.EXPERIMENT.codec, model=model, sampling=sampling, presets={}
  )
  mesh = small.one_device() if mesh is None else mesh
  return Pipeline(card, small.params(model=model), mesh, {})


def generated(pipe, count, size=None):
  """Latents of images of one seed."""
  return pipe.latents(np.arange(count) % 10, seed=3, batch_size=size)


@pytest.mark.parametrize(
  "model",
  [
    "raster",
    "guided",
    *(pytest.param(x, marks=pytest.mark.slow) for x in (*SLOW, "random")),
  ],
  indirect=True,
)
def test_the_image_of_a_seed_is_the_same_however_it_is_drawn(model):
  expected = generated(pipe_of(model, buckets=1), 7, 7)
  for count, mesh, size in ((1, None, 1), (7, make_mesh(), 8)):
    other = generated(pipe_of(model, mesh), count, size)
    np.testing.assert_allclose(other, expected[:count], atol=2e-4)


def test_known_pixels_stay_and_the_others_follow_them(editable):
  pipe = pipe_of(editable)
  images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
  mask = np.zeros((8, 8), bool)
  mask[2:6, 2:8] = True
  edited = pipe.edit(images, mask, [1, 2], seed=5)
  before = np.asarray(pipe.encode(images))
  known = ~mask
  np.testing.assert_array_equal(edited.latents[:, known], before[:, known])
  assert np.abs(edited.latents[:, mask] - before[:, mask]).max() > 0.1
  other = pipe.edit(255 - images, mask, [1, 2], seed=5)
  assert np.abs(other.latents - edited.latents)[:, mask].max() > 1e-3


def test_an_edit_of_some_equals_a_generation_that_stands_there(editable):
  """Given what a generation drew first, an edit draws the rest as it did."""
  pipe = pipe_of(editable)
  latents = generated(pipe, 2)
  draws = pipe.draws(3, 2)
  tokens = pipe.card.codec.to_tokens(np.asarray(latents))
  settings = pipe.settings(None)
  plan = reveal.plan_for(editable, settings)
  count = plan.known_after[1]
  given = reveal.Given(np.asarray(tokens), np.full(2, count, np.int32))
  static = reveal.static_for(editable, settings, is_edit=True)
  request = batching.Request(static, settings, np.arange(2), draws, given)
  again = batching.generate(
    compiled.Programs(), pipe.mesh, pipe.params, request, 2, False
  )
  np.testing.assert_allclose(again, tokens, atol=2e-4)


def test_without_guidance_there_is_one_pass():
  model = ModelConfig(BACKBONES["random"], small.MODEL.head)
  for scale, passes in ((1.0, 1), (2.0, 2)):
    pipe = pipe_of(model, scale=scale)
    static = reveal.static_for(model, pipe.settings(None))
    carry, _ = jax.eval_shape(
      lambda params, static=static: reveal.begin(
        static,
        params,
        jnp.arange(2),
        draw_batch(jax.random.key(0), jnp.arange(2), model.backbone),
      ),
      pipe.params,
    )
    assert carry.state.caches[0].keys.shape == (2, 2 * passes, 18, 4, 8)


def test_no_step_copies_the_cache(model):
  """The compiled program writes new slots into it, where it lies."""
  settings = dataclasses.replace(SAMPLING, num_buckets=1).for_model(model)
  static = reveal.static_for(model, settings)
  draws = draw_batch(jax.random.key(3), jnp.arange(2), model.backbone)
  params, numbers = (
    small.params(model=model),
    reveal.numbers_for(static.plan, settings),
  )
  carry, fixed = reveal.begin(static, params, jnp.arange(2), draws)
  rest = (fixed, numbers.scales, numbers.temperature, numbers.walks[0])
  program = jax.jit(
    batching.run_segment, static_argnums=(0, 1), donate_argnums=3
  )
  text = program.lower(static, 0, params, carry, *rest).compile().as_text()
  caches = {
    leaf.shape: leaf.nbytes
    for leaf in jax.tree.leaves(carry.state)
    if leaf.ndim == 5
  }
  assert caches
  for run, moved in costs.transfers(parse(text)):
    for array in run.instruction.arrays:
      if run.times > 1 and array.shape in caches:
        assert moved / run.times < caches[array.shape], run.instruction


@pytest.mark.parametrize("name", ["random", "guided"])
def test_blocks_without_a_loop_are_the_same_as_in_one(name, monkeypatch):
  """As on GPUs: no loop over blocks, whose weights lie by themselves."""
  model = ModelConfig(BACKBONES[name], small.MODEL.head)
  settings = dataclasses.replace(SAMPLING, num_buckets=1).for_model(model)
  static = reveal.static_for(model, settings)
  draws = draw_batch(jax.random.key(3), jnp.arange(2), model.backbone)
  rest = (jnp.arange(2), draws, reveal.numbers_for(static.plan, settings))

  def drawn():
    program = jax.jit(lambda *args: reveal.generate(static, *args))
    lowered = program.lower(small.params(model=model), *rest)
    loops = lowered.as_text().count("stablehlo.while")
    return loops, lowered.compile()(small.params(model=model), *rest)

  loops, expected = drawn()
  for module in (reveal, scan, mlp):
    monkeypatch.setattr(module, "platform", lambda: "gpu")
  fewer, tokens = drawn()
  assert fewer == loops - (2 if name == "guided" else 1)
  np.testing.assert_allclose(tokens, expected, atol=2e-4)


@pytest.mark.parametrize(
  "name",
  ["raster", pytest.param("raster, no targets", marks=pytest.mark.slow)],
)
def test_raster_models_only_go_on(name):
  model = ModelConfig(BACKBONES[name], small.MODEL.head)
  pipe = pipe_of(model)
  images = np.zeros((1, 8, 8, 1), np.uint8)
  mask = np.zeros((8, 8), bool)
  mask[4:] = True
  edited = pipe.edit(images, mask, 1)
  known = np.asarray(pipe.encode(images))[:, ~mask]
  np.testing.assert_array_equal(edited.latents[:, ~mask], known)
  with pytest.raises(ValueError, match="raster order only") as caught:
    pipe.edit(images, ~mask, 1)
  assert "\n" not in str(caught.value)


def test_bad_shapes_are_one_sentence():
  with pytest.raises(ValueError, match="which token comes next"):
    CausalConfig(**SHAPE, order="random", target_positions="none")
  with pytest.raises(ValueError, match="2 blocks or more"):
    CausalConfig(**SHAPE, depth=1, target_positions="middle")
  model = ModelConfig(BACKBONES["random"], small.MODEL.head)
  with pytest.raises(ValueError, match="one token a step"):
    Settings(num_ar_steps=8).for_model(model)
  assert Settings().for_model(model).num_ar_steps == 16


def test_orders_are_permutations_of_each_image():
  order = batch_of(ModelConfig(BACKBONES["guided"], small.MODEL.head))[2]
  x = jnp.arange(16)[None].repeat(3, 0)
  again = to_order_space(x, order.backbone.order)
  np.testing.assert_array_equal(again, order.backbone.order)
