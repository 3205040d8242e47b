"""What an autoencoder must do, whatever its weights are."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.convert import kl, table
from marjax.latents.kl import KLConfig, Moments
from marjax.schema import from_dict, to_dict
from marjax.tokens.patches import patchify

LISTING = pathlib.Path(__file__).parents[1] / "golden" / "listing_kl16.json"
KL16 = KLConfig()
KL8 = KLConfig(
  multipliers=(1, 2, 4, 4),
  latent_channels=4,
  latent_scale=0.2,
  has_level_attention=False,
  patch=2,
)
TINY = KLConfig(
  image_size=8,
  base_width=32,
  multipliers=(1, 2),
  num_blocks=1,
  latent_channels=5,
)


encode, decode, moments_of = (
  jax.jit(method, static_argnums=0)
  for method in (KLConfig.encode, KLConfig.decode, KLConfig.moments)
)


def params_of(config: KLConfig):
  """New parameters, with noise on the biases and norms that begin as 0 or 1."""
  random = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: (
      leaf + 0.1 * random.standard_normal(leaf.shape, np.float32)
      if leaf.ndim == 1
      else leaf
    ),
    jax.jit(config.init_params)(jax.random.key(0)),
  )


def images_of(*shape: int):
  return jax.random.uniform(jax.random.key(2), shape, minval=-1.0, maxval=1.0)


def shapes_of(config: KLConfig) -> dict[str, tuple[int, ...]]:
  """Path with slashes → shape, without computing a parameter."""
  tree = jax.eval_shape(config.init_params, jax.random.key(0))
  return {
    "/".join(entry.key for entry in path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.fixture(scope="module")
def tiny_params():
  return params_of(TINY)


@pytest.fixture(scope="module")
def listing() -> dict:
  """Published names of KL-16; the numbers are zeros without memory."""
  shapes = json.loads(LISTING.read_text())
  return {
    name: np.broadcast_to(np.float32(0), shape)
    for name, shape in shapes.items()
  }


def test_kl16_has_the_published_parameters(listing):
  shapes = shapes_of(KL16)
  assert sum(map(math.prod, shapes.values())) == 66_456_019
  assert len(shapes) == len(listing) == 312
  target = jax.eval_shape(KL16.init_params, jax.random.key(0))
  converted = table.convert(kl.RULES, listing, target)
  assert jax.tree.structure(converted) == jax.tree.structure(target)


def test_a_kernel_with_swapped_axes_is_refused(listing):
  target = jax.eval_shape(KL16.init_params, jax.random.key(0))
  name = "encoder.down.2.block.0.conv1.weight"
  swapped = listing | {name: listing[name].transpose(1, 0, 2, 3)}
  with pytest.raises(table.ConversionError, match=name):
    table.convert(kl.RULES, swapped, target)


def test_new_parameters_keep_the_size_of_what_passes(tiny_params):
  kernel = tiny_params["encoder"]["levels_1"]["blocks_0"]["conv2"]["kernel"]
  bound = math.sqrt(6 / (9 * (64 + 64)))
  np.testing.assert_allclose(abs(kernel).max(), bound, rtol=1e-2)
  np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=2e-2)
  kernels = [leaf for leaf in jax.tree.leaves(tiny_params) if leaf.ndim == 4]
  assert len({float(kernel.ravel()[0]) for kernel in kernels}) == len(kernels)


def test_kl16_is_the_default():
  assert (KL16.stride, KL16.channels) == (16, 3)
  assert KL16.latent_shape == (16, 16, 16)
  assert (KL16.num_tokens, KL16.token_dim) == (256, 16)


def test_kl8_has_the_tokens_of_kl16():
  assert (KL8.stride, KL8.channels) == (8, 3)
  assert KL8.latent_shape == (32, 32, 4)
  assert (KL8.num_tokens, KL8.token_dim) == (256, 16)


def test_attention_is_where_it_belongs():
  middles = {"encoder/middle/attention", "decoder/middle/attention"}
  last = {f"encoder/levels_4/attentions_{i}" for i in range(2)}
  for config, expected in ((KL8, middles), (KL16, middles | last)):
    found = {
      path.removesuffix("/query/kernel")
      for path in shapes_of(config)
      if path.endswith("/query/kernel")
    }
    assert found == expected


def test_kl8_goes_there_and_back():
  config = dataclasses.replace(KL8, image_size=32, base_width=32)
  params = params_of(config)
  latents = encode(config, params, images_of(2, 32, 32, 3))
  assert latents.shape == (2, *config.latent_shape) == (2, 4, 4, 4)
  tokens = patchify(latents, config.patch)
  assert tokens.shape == (2, config.num_tokens, config.token_dim)
  decoded = decode(config, params, latents)
  assert decoded.shape == (2, 32, 32, 3)
  assert 0.1 < decoded.std() < 10


def test_any_image_of_whole_strides_will_do(tiny_params):
  images = images_of(2, 6, 14, 3)
  moments = moments_of(TINY, tiny_params, images)
  assert moments.mean.shape == moments.log_variance.shape == (2, 3, 7, 5)
  decoded = decode(TINY, tiny_params, moments.mean)
  assert decoded.shape == images.shape


def test_images_of_a_batch_do_not_mix(tiny_params):
  images = images_of(2, 8, 8, 3)
  both = encode(TINY, tiny_params, images)
  np.testing.assert_allclose(
    both[:1], encode(TINY, tiny_params, images[:1]), atol=1e-5
  )
  np.testing.assert_allclose(
    decode(TINY, tiny_params, both)[1:],
    decode(TINY, tiny_params, both[1:]),
    atol=1e-5,
  )


def test_encoding_is_a_draw_without_noise(tiny_params):
  images = images_of(1, 8, 8, 3)
  moments = moments_of(TINY, tiny_params, images)
  latents = encode(TINY, tiny_params, images)
  drawn = TINY.posterior_draw(moments, jnp.zeros_like(moments.mean))
  np.testing.assert_allclose(drawn, latents, rtol=1e-6)
  np.testing.assert_allclose(latents, moments.mean * 0.2325, rtol=1e-6)


def test_draws_have_the_moments():
  shape = (1, 100, 100, 4)
  moments = Moments(jnp.full(shape, 3.0), jnp.full(shape, math.log(4.0)))
  drawn = TINY.posterior_draw(
    moments, jax.random.normal(jax.random.key(3), shape)
  )
  unscaled = drawn / TINY.latent_scale
  np.testing.assert_allclose(unscaled.mean(), 3.0, atol=0.05)
  np.testing.assert_allclose(unscaled.std(), 2.0, atol=0.05)


@pytest.mark.parametrize(("bias", "limit"), [(-1e3, -30.0), (1e3, 20.0)])
def test_log_variance_is_clamped(tiny_params, bias, limit):
  to_moments = tiny_params["to_moments"]
  shifted = to_moments | {"bias": to_moments["bias"] + bias}
  params = tiny_params | {"to_moments": shifted}
  moments = moments_of(TINY, params, images_of(1, 8, 8, 3))
  assert (moments.log_variance == limit).all()
  assert (abs(moments.mean) > 100).all()


def test_each_half_needs_its_own_parameters_only(tiny_params):
  encoder = {name: tiny_params[name] for name in ("encoder", "to_moments")}
  decoder = {name: tiny_params[name] for name in ("decoder", "from_latents")}
  latents = encode(TINY, encoder, images_of(1, 8, 8, 3))
  assert decode(TINY, decoder, latents).shape == (1, 8, 8, 3)


@pytest.mark.slow
def test_bfloat16_is_near_float32():
  # Measured here, rms over rms: latents 1.6 %, images 1.6 %; with the width of
  # KL-16 and random weights, images of 128 × 192 pixels: 1.3 %.
  config = KLConfig(image_size=32, base_width=32)
  half = dataclasses.replace(config, dtype="bfloat16")
  params = params_of(config)
  images = images_of(2, 32, 32, 3)
  latents = jax.random.normal(jax.random.key(4), (2, 2, 2, 16))
  for name, x in (("encode", images), ("decode", latents)):
    exact = jax.jit(getattr(config, name))(params, x)
    rounded = jax.jit(getattr(half, name))(params, x)
    assert exact.dtype == rounded.dtype == jnp.float32
    error = jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.mean(exact**2))
    assert 1e-3 < error < 0.03, f"{name}: {error:.4f}"


def test_a_config_survives_json():
  mapping = json.loads(json.dumps(to_dict(KL8)))
  assert from_dict(KLConfig, mapping) == KL8
  assert hash(from_dict(KLConfig, mapping)) == hash(KL8)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"image_size": 250}, "image_size is 250; expected a multiple of 16"),
    ({"image_size": 48, "patch": 2}, "image_size is 48; .* multiple of 32"),
    ({"image_size": 0}, "image_size is 0"),
    ({"base_width": 48}, "base_width is 48; expected a multiple of 32"),
    ({"base_width": 0}, "base_width is 0"),
    ({"multipliers": ()}, "multipliers has 0 entries; expected one for"),
    ({"multipliers": (1, 0)}, r"multipliers\[1\] is 0; expected 1 to"),
    ({"num_blocks": 0}, "num_blocks is 0; expected 1 to 64"),
    ({"latent_channels": 0}, "latent_channels is 0; expected 1 to"),
    ({"patch": 0}, "patch is 0; expected 1 to"),
    ({"latent_scale": 0.0}, "latent_scale is 0.0; expected more than 0"),
    ({"dtype": "float16"}, "dtype is 'float16'; expected one of"),
  ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=f"codec.{message}"):
    from_dict(KLConfig, fields, "codec")


@pytest.mark.parametrize(
  ("call", "shape", "message"),
  [
    ("moments", (1, 9, 8, 3), r"images .* \(1, 9, 8, 3\); .* multiples of 2"),
    ("encode", (1, 8, 9, 3), r"images .* \(1, 8, 9, 3\); .* multiples of 2"),
    ("encode", (1, 8, 8, 1), r"images .* \(1, 8, 8, 1\); .* width, 3\]"),
    ("decode", (1, 4, 4, 4), r"latents .* \(1, 4, 4, 4\); .* columns, 5\]"),
  ],
)
def test_arrays_of_another_shape_are_refused(tiny_params, call, shape, message):
  with pytest.raises(ValueError, match=message):
    getattr(TINY, call)(tiny_params, jnp.zeros(shape))


def test_bytes_are_refused():
  # Below the boundary, whose types already refuse integers under pytest.
  with pytest.raises(ValueError, match=r"images hold uint8; .* divide bytes"):
    TINY.check_images(jnp.zeros((1, 8, 8, 3), jnp.uint8))


def test_noise_of_another_shape_is_refused():
  moments = Moments(jnp.zeros((1, 4, 4, 5)), jnp.zeros((1, 4, 4, 5)))
  with pytest.raises(ValueError, match=r"noise .* expected that of the mean"):
    TINY.posterior_draw(moments, jnp.zeros((1, 4, 1, 5)))
