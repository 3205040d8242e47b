"""What every backbone must hold to."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax import schema
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.model import ModelConfig, draw, in_matmul_dtype, init_params
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import RULES, batch_sharding
from marjax.protocols import BackboneConfig
from marjax.tokens.order import to_order_space
from protocols.parts import kinds, noisy

BACKBONES = kinds(BackboneConfig)
KEYS = jax.random.split(jax.random.key(0), 8)
LABELS = jnp.arange(8) % 5


@pytest.fixture(scope="module", params=BACKBONES)
def model(request):
  """A model around the backbone, its parameters, tokens and draws."""
  backbone = BACKBONES[request.param]
  dim = backbone.token_shape[-1]
  config = ModelConfig(backbone, DiffusionHeadConfig(dim, width=16, depth=1))
  params = jax.jit(lambda: nn.unbox(init_params(config, jax.random.key(1))))()
  shape = (8, backbone.num_tokens, *backbone.token_shape)
  tokens = jax.random.normal(jax.random.key(2), shape)
  draws = jax.jit(lambda: draw(config, KEYS, LABELS))()
  return config, noisy(params), tokens, draws


@functools.partial(jax.jit, static_argnums=(0, 4))
def training_z(config, params, tokens, draws, deterministic=True):
  x = to_order_space(tokens, draws.backbone.order)
  return config.build().apply(
    {"params": params},
    x,
    draws.backbone,
    draws.condition,
    deterministic,
    method=lambda module, *args: module.backbone.training_z(*args),
    rngs={"dropout": jax.random.key(3)},
  )


@functools.partial(jax.jit, static_argnums=0)
def steps(config, params, x, order, condition):
  """z of the next tokens at each of several steps, up to 4 known tokens."""
  module, variables = config.build(), {"params": params}
  state = module.apply(variables, condition, order, method="start")
  taken, width = [], width_of(config)
  for count in range(0, 5, width):
    known, window = jnp.full(len(x), count), count + jnp.arange(width)
    args = (state, x, known, window, width)
    z, state = module.apply(variables, *args, method="step")
    taken.append(z)
  return taken


def width_of(config):
  """Tokens of a step."""
  return 1 if config.backbone.is_sequential else 2


def test_its_config_is_complete(model):
  backbone = model[0].backbone
  assert isinstance(backbone, BackboneConfig)
  assert schema.from_dict(type(backbone), schema.to_dict(backbone)) == backbone
  costs = [backbone.step_cost(known) for known in (0, 4, 15)]
  assert 0 < costs[0] <= costs[1] <= costs[2]


def test_draws_are_of_each_image(model):
  config, _, _, draws = model
  length = config.backbone.num_tokens
  order = np.sort(draws.backbone.order, axis=1)
  np.testing.assert_array_equal(order, np.tile(np.arange(length), (8, 1)))
  some = config.backbone.batch_multiple
  first = draw(config, KEYS[:some], LABELS[:some])
  for one, other in zip(
    jax.tree.leaves(first.backbone),
    jax.tree.leaves(draws.backbone),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other[:some])


def test_z_and_weights_of_training(model):
  config, params, tokens, draws = model
  z, weights = training_z(config, params, tokens, draws)
  length, width = config.backbone.num_tokens, config.backbone.width
  assert z.shape == (8, length, width)
  assert weights.shape == (8, length)
  assert jnp.sum(weights) == config.backbone.num_predicted(draws.backbone)
  rows = config.build().apply(
    {"params": params}, weights, method=lambda m, v: m.backbone.rows(v)
  )
  assert jnp.sum(rows) == jnp.sum(weights)  # no predicted token is left out


def test_what_is_predicted_does_not_depend_on_itself_or_later(model):
  config, params, tokens, draws = model
  z, weights = training_z(config, params, tokens, draws)
  x = to_order_space(tokens, draws.backbone.order)
  first = jnp.argmax(weights, axis=1)  # of each image, in order space
  is_later = jnp.arange(x.shape[1]) >= first[:, None]
  back = jnp.argsort(draws.backbone.order, axis=1)
  changed = to_order_space(jnp.where(is_later[..., None], 9.0, x), back)
  other, _ = training_z(config, params, changed, draws)
  image = jnp.arange(8)
  np.testing.assert_allclose(z[image, first], other[image, first], atol=1e-5)


def test_the_gradient_reaches_every_parameter(model):
  config, params, tokens, draws = model

  def loss(params):
    return config.build().apply({"params": params}, tokens, draws)["loss"]

  gradients = jax.jit(jax.grad(loss))(params)["backbone"]
  for path, leaf in jax.tree.leaves_with_path(gradients):
    assert np.any(np.asarray(leaf)), jax.tree_util.keystr(path)


def test_steps_do_not_depend_on_the_batch(model):
  config, params, tokens, draws = model
  order = draws.backbone.order
  x = to_order_space(tokens, order)
  whole = steps(config, params, x, order, LABELS)
  part = steps(config, params, x[2:4], order[2:4], LABELS[2:4])
  for one, other in zip(part, whole, strict=True):
    assert other.shape == (8, width_of(config), config.backbone.width)
    np.testing.assert_allclose(one, other[2:4], atol=1e-4)


def test_a_step_sees_what_is_known_and_nothing_else(model):
  config, params, tokens, draws = model
  order = draws.backbone.order
  x = to_order_space(tokens, order)
  plain = steps(config, params, x, order, LABELS)
  hidden = x.at[:, 4:].set(9.0)
  for one, other in zip(
    steps(config, params, hidden, order, LABELS), plain, strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5)
  seen = steps(config, params, x.at[:, 1].set(9.0), order, LABELS)
  assert np.abs(seen[-1] - plain[-1]).max() > 1e-3
  nothing = config.backbone.condition.nothing(8)
  unasked = steps(config, params, x, order, nothing)
  assert np.abs(unasked[0] - plain[0]).max() > 1e-3


def test_it_is_the_same_on_a_mesh(model):
  config, params, tokens, draws = model

  def loss(params, tokens, draws):
    with nn.logical_axis_rules(RULES):
      return config.build().apply({"params": params}, tokens, draws)["loss"]

  expected = jax.jit(loss)(params, tokens, draws)
  mesh = make_mesh(devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    placed = jax.device_put((tokens, draws), batch_sharding(mesh))
    on_mesh = jax.jit(loss)(params, *placed)
  np.testing.assert_allclose(on_mesh, expected, rtol=1e-4)


def test_dropout_matters_and_comes_again(model):
  config, params, tokens, draws = model
  plain, _ = training_z(config, params, tokens, draws)
  dropped, _ = training_z(config, params, tokens, draws, False)
  again, _ = training_z(config, params, tokens, draws, False)
  np.testing.assert_array_equal(dropped, again)
  assert np.abs(dropped - plain).max() > 1e-3


def test_layers_of_float32_stay_so(model):
  config, params, _, _ = model
  import dataclasses

  half = dataclasses.replace(config.backbone, dtype="bfloat16")
  rounded = in_matmul_dtype(dataclasses.replace(config, backbone=half), params)
  kinds_of = {leaf.dtype.name for leaf in jax.tree.leaves(rounded["backbone"])}
  assert kinds_of == {"bfloat16", "float32"}


def test_a_batch_that_it_cannot_take_is_one_sentence(model):
  config = model[0]
  if config.backbone.batch_multiple == 1:
    pytest.skip("it takes any batch")
  with pytest.raises(ValueError, match="expected a multiple") as caught:
    draw(config, KEYS[:1], LABELS[:1])
  assert "\n" not in str(caught.value)
