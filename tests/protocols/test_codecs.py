"""What every codec must hold to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax import schema
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import batch_sharding
from marjax.protocols import Codec
from protocols.parts import VARIANTS, kinds, noisy

CODECS = kinds(Codec) | VARIANTS[Codec]


@pytest.fixture(scope="module", params=CODECS)
def codec(request):
  config = CODECS[request.param]
  params = jax.jit(config.init_params)(jax.random.key(0))
  return config, noisy(params, 0.02)


def dtype_of(config):
  return jnp.int32 if config.num_codes else jnp.float32


def images_of(config, count=8):
  shape = (count, config.image_size, config.image_size, config.channels)
  return jax.random.uniform(jax.random.key(1), shape, minval=-1.0, maxval=1.0)


def test_its_config_is_complete(codec):
  config, params = codec
  assert isinstance(config, Codec)
  assert schema.from_dict(type(config), schema.to_dict(config)) == config
  assert config.has_params() == bool(jax.tree.leaves(params))
  cells = config.image_size // config.cell
  assert cells**2 == config.num_tokens
  assert (config.token_shape == ()) == (config.num_codes > 0)


def test_shapes_there_and_back(codec):
  config, params = codec
  latents = jax.jit(config.encode)(params, images_of(config))
  assert latents.shape == (8, *config.latent_shape)
  assert latents.dtype == dtype_of(config)
  tokens = config.to_tokens(latents)
  assert tokens.shape == (8, config.num_tokens, *config.token_shape)
  np.testing.assert_array_equal(config.to_latents(tokens), latents)
  images = jax.jit(config.decode)(params, latents)
  assert images.shape == images_of(config).shape
  assert images.dtype == jnp.float32


def test_a_record_is_as_its_shapes_say_and_draws_latents(codec):
  config, params = codec
  record = jax.jit(config.record)(params, images_of(config))
  shapes = config.record_shapes()
  assert set(record) == set(shapes)
  for name, shape in shapes.items():
    assert record[name].shape == (8, *shape.shape)
  keys = jax.random.split(jax.random.key(2), 8)
  params = {} if config.is_cached else params
  draw = jax.jit(config.draw)
  latents = draw(params, record, keys)
  assert latents.shape == (8, *config.latent_shape)
  assert latents.dtype == dtype_of(config)
  np.testing.assert_array_equal(latents, draw(params, record, keys))
  # The mean of many draws is what `encode` gives.
  many = [
    draw(params, record, jax.random.split(jax.random.key(n), 8))
    for n in range(64)
  ]
  spread = np.std(many, axis=0).max()
  encoded = config.encode(codec[1], images_of(config))
  assert np.abs(np.mean(many, axis=0) - encoded).max() <= 0.6 * spread + 1e-3


def test_an_image_does_not_depend_on_its_batch_or_mesh(codec):
  config, params = codec
  images = images_of(config)
  latents = jax.jit(config.encode)(params, images)
  alone = jax.jit(config.encode)(params, images[3:5])
  np.testing.assert_allclose(alone, latents[3:5], atol=1e-4)
  mesh = make_mesh(devices=jax.devices()[:8])
  with jax.set_mesh(mesh):
    placed = jax.device_put(images, batch_sharding(mesh))
    on_mesh = jax.jit(config.encode)(params, placed)
  np.testing.assert_allclose(on_mesh, latents, atol=1e-4)


def test_the_gradient_reaches_every_parameter(codec):
  config, params = codec
  if not config.has_params():
    pytest.skip("it has no parameters")

  def loss(params):
    images = images_of(config, 2)
    encode = getattr(config, "features", config.encode)
    latents = config.encode(params, images)
    # Ids have no gradient; what they are made of has.
    before = (encode(params, images), *config.record(params, images).values())
    floats = [x for x in before if jnp.issubdtype(x.dtype, jnp.floating)]
    parts = [config.decode(params, latents), *floats]
    return sum(jnp.sum(jnp.sin(part)) for part in parts)

  gradients = jax.jit(jax.grad(loss))(params)
  for path, leaf in jax.tree.leaves_with_path(gradients):
    assert np.any(np.asarray(leaf)), jax.tree_util.keystr(path)


def test_bad_sizes_are_one_sentence(codec):
  config = schema.to_dict(codec[0])
  with pytest.raises(ValueError, match=r"image_size is 7; expected a multiple"):
    schema.from_dict(type(codec[0]), {**config, "image_size": 7})
