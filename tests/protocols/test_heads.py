"""What every head must hold to."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax import Pipeline, Settings, model, schema
from marjax.head.noise import KeyedNoise, RecordedNoise
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import RULES, batch_sharding
from marjax.protocols import HeadConfig, HeadSettings
from protocols.parts import kinds, noisy, tokens

HEADS = kinds(HeadConfig)
Z = jax.random.normal(jax.random.key(0), (16, 6))
KEYS = jax.random.split(jax.random.key(2), 16)
assert model.HeadConfig is HeadConfig


@pytest.fixture(scope="module", params=HEADS)
def head(request):
  """A head, its parameters, and settings of few steps."""
  config = HEADS[request.param]
  module = config.build()
  target = tokens(config, 16)
  params = jax.jit(module.init)(jax.random.key(3), Z, target, key=KEYS)
  settings = config.Settings()
  if settings.num_steps > 4:
    settings = config.Settings(num_steps=4)
  return module, noisy(params), settings


@pytest.fixture
def target(head):
  """A token for each z."""
  return tokens(head[0].config, 16)


def draw(head, z, keys, **how):
  module, params, settings = head
  return jax.jit(
    lambda params, z, keys: module.apply(
      params, z, settings, key=keys, method="sample", **how
    )
  )(params, z, keys)


def assert_close(one, other):
  """Within rounding, which first steps from pure noise multiply."""
  scale = 1 + np.abs(np.asarray(other)).max()
  np.testing.assert_allclose(one, other, atol=2e-4 * scale)


def test_its_parameters_are_arrays_and_their_axes_are_apart(head):
  module = head[0]
  call = jax.random.key(3), Z, tokens(module.config, 16)
  fresh = jax.jit(lambda: module.init(*call, key=KEYS))()
  paths = jax.tree_util.tree_leaves_with_path(fresh)
  assert all(isinstance(leaf, jax.Array) for _, leaf in paths)
  names = {type(part).__name__ for path, _ in paths for part in path}
  assert names == {"DictKey"}  # no box on the way
  boxed = jax.eval_shape(lambda: module.boxed_init(*call, key=KEYS))
  specs = jax.tree.leaves(nn.get_partition_spec(boxed))
  assert len(specs) == len(paths)
  assert any(name for spec in specs for name in spec)
  jax.tree.map(np.testing.assert_array_equal, nn.unbox(fresh), fresh)


def test_its_config_is_complete(head):
  config = head[0].config
  assert isinstance(config, HeadConfig)
  assert isinstance(head[2], HeadSettings)
  again = schema.from_dict(type(config), schema.to_dict(config))
  assert again == config
  assert hash(again) == hash(config)
  assert config.row_cost(head[2], z_width=6) > 0
  assert bool(config.num_codes) == (config.token_shape == ())
  for name, changes in config.Settings.PRESETS.items():
    assert schema.from_dict(config.Settings, changes).kind == config.kind, name


def test_a_preset_leaves_nothing_of_other_numbers_of_steps(head):
  """A checkpoint that draws its last tokens in 30 steps is quick all the same.

  So that a head's `PRESETS` need not say it.
  """
  config = head[0].config
  if not config.Settings.PRESETS:
    pytest.skip("it has no presets")
  shape = dataclasses.replace(small.MODEL.backbone, token_dim=3)
  card = small.card(
    model=model.ModelConfig(shape, config),
    codec=dataclasses.replace(small.CODEC, latent_channels=3),
    sampling=Settings(head=config.Settings(50, final_num_steps=30)),
    presets={},
  )
  pipe = Pipeline(card, {}, make_mesh())
  for name, changes in config.Settings.PRESETS.items():
    quick = pipe.settings(name).head
    assert quick == config.Settings(**changes)
    assert quick.final_num_steps is None


def test_losses_are_named_and_their_sum_is_the_loss(head, target):
  module, params, _ = head
  losses = module.apply(params, Z, target, key=KEYS)
  assert {value.shape for value in losses.values()} == {()}
  assert {value.dtype for value in losses.values()} == {jnp.dtype("float32")}
  terms = [value for name, value in losses.items() if name != "loss"]
  np.testing.assert_allclose(losses["loss"], sum(terms), rtol=1e-6)


def test_a_token_that_weighs_nothing_does_not_count(head, target):
  module, params, _ = head
  weights = jnp.ones(16).at[3].set(0.0)
  apply = jax.jit(module.apply)
  loss = apply(params, Z, target, weights, key=KEYS)["loss"]
  changed = target.at[3].set((target[3] + 1) % 7)
  other = apply(params, Z, changed, weights, key=KEYS)["loss"]
  assert loss == other
  rest = np.delete(np.arange(16), 3)
  alone = apply(params, Z[rest], target[rest], key=KEYS[rest])["loss"]
  np.testing.assert_allclose(loss, alone, rtol=1e-5)


def test_recorded_draws_are_the_keys_draws(head, target):
  module, params, _ = head
  draws = module.config.draw(KEYS)
  if not jax.tree.leaves(draws):
    pytest.skip("nothing is random about it")
  by_key = module.apply(params, Z, target, key=KEYS)["loss"]
  replayed = module.apply(params, Z, target, draws=draws)["loss"]
  np.testing.assert_allclose(replayed, by_key, rtol=1e-6)


def test_the_gradient_reaches_every_parameter_and_z(head, target):
  module, params, _ = head

  def loss(params, z):
    return module.apply(params, z, target, key=KEYS)["loss"]

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, Z)
  for path, leaf in jax.tree.leaves_with_path(gradients):
    assert np.any(np.asarray(leaf)), jax.tree_util.keystr(path)
    assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)


def test_samples_have_the_shape_and_come_again(head):
  drawn, config = draw(head, Z, KEYS), head[0].config
  assert drawn.shape == (16, *config.token_shape)
  assert drawn.dtype == (jnp.int32 if config.num_codes else jnp.float32)
  np.testing.assert_array_equal(drawn, draw(head, Z, KEYS))


def test_a_sample_does_not_depend_on_its_batch(head):
  drawn = draw(head, Z, KEYS)
  alone = draw(head, Z[5:7], KEYS[5:7])
  assert_close(alone, drawn[5:7])
  grid = draw(head, Z.reshape(4, 4, 6), KEYS.reshape(4, 4))
  assert_close(grid.reshape(drawn.shape), drawn)


def test_z_matters_and_noise_does_if_it_is_random(head):
  drawn = draw(head, Z, KEYS)
  assert np.abs(draw(head, Z + 1.0, KEYS) - drawn).max() > 1e-3
  others = jax.random.split(jax.random.key(77), 16)
  change = np.abs(draw(head, Z, others) - drawn).max()
  assert (change > 1e-3) == head[0].has_random_samples


def test_temperature_matters_if_it_says_so(head):
  drawn = draw(head, Z, KEYS)
  change = np.abs(draw(head, Z, KEYS, temperature=0.1) - drawn).max()
  assert (change > 1e-3) == head[2].has_temperature


def test_recorded_noise_is_the_keys_noise(head):
  module, params, settings = head
  keyed, shape = KeyedNoise(KEYS), module.config.noise_shape
  steps = keyed.at_steps(jnp.arange(settings.num_steps)[::-1], shape)
  recorded = RecordedNoise(keyed.initial(shape), jnp.moveaxis(steps, 0, 1))
  replayed = module.apply(params, Z, settings, noise=recorded, method="sample")
  assert_close(replayed, draw(head, Z, KEYS))


def test_guidance_of_one_is_none(head):
  drawn = draw(head, Z, KEYS)
  same = draw(head, Z, KEYS, guidance=(Z[::-1], 1.0))
  assert_close(same, drawn)
  assert (
    np.abs(draw(head, Z, KEYS, guidance=(Z[::-1], 3.0)) - drawn).max() > 1e-3
  )


def test_it_is_the_same_on_a_mesh(head, target):
  module, params, settings = head
  mesh = make_mesh(devices=jax.devices()[:8])
  place = batch_sharding(mesh)
  placed = jax.device_put((Z, target, KEYS), place)

  def both(params, z, target, keys):
    with nn.logical_axis_rules(RULES):
      loss = module.apply(params, z, target, key=keys)["loss"]
      return loss, module.apply(params, z, settings, key=keys, method="sample")

  expected = jax.jit(both)(params, Z, target, KEYS)
  with jax.set_mesh(mesh):
    on_mesh = jax.jit(both)(params, *placed)
  for one, other in zip(on_mesh, expected, strict=True):
    assert_close(one, other)


def test_walks_are_other_settings_of_one_program(head):
  module, params, settings = head
  walk = settings.walk()
  by_walk = module.apply(
    params, Z, walk, noise=KeyedNoise(KEYS), method="sample"
  )
  assert_close(by_walk, draw(head, Z, KEYS))


def test_layers_of_float32_stay_so(head):
  module, params, _ = head
  config = module.config
  for path, _ in jax.tree.leaves_with_path(params["params"]):
    names = tuple(entry.key for entry in path)
    if names[-1] not in ("kernel", "bias"):
      assert config.is_float32(names)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"z": jnp.ones((16, 7))}, "z of 7 numbers"),
    ({"target": 4}, "target has shape"),
    ({"z": Z.at[0, 0].set(jnp.nan)}, "is nan"),
    ({"draws": 3, "key": None}, "draws is 3"),
  ],
)
def test_bad_input_is_one_sentence(head, target, arguments, message):
  module, params, _ = head
  if "target" in arguments:
    arguments = {"target": target[: arguments["target"]]}
  asked = {"z": Z, "target": target, "key": KEYS, **arguments}
  with pytest.raises(ValueError, match=message) as caught:
    module.apply(params, **asked)
  assert "\n" not in str(caught.value)
  with pytest.raises(ValueError, match=r"settings is 100.*; expected"):
    module.apply(params, Z, 100, key=KEYS, method="sample")
