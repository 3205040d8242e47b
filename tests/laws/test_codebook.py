"""What a patch codebook must do, whatever its code vectors are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.latents.codebook import CodebookConfig
from marjax.latents.codes import nearest
from marjax.latents.images import check_latents
from marjax.latents.pixels import PixelsConfig

CONFIG = CodebookConfig(
  12, channels=3, patch=2, num_codes=40, mean=-0.2, std=0.6
)


@pytest.fixture(scope="module")
def params():
  return CONFIG.init_params(jax.random.key(0))


def images_of(count, size=12):
  shape = (count, size, size, 3)
  return jax.random.uniform(jax.random.key(1), shape, minval=-1.0, maxval=1.0)


def test_the_nearest_code_is_the_nearest():
  random = np.random.default_rng(0)
  vectors, codes = (
    np.float32(random.standard_normal(shape)) for shape in ((3, 50, 7), (90, 7))
  )
  far = np.square(vectors[:, :, None].astype(np.float64) - codes).sum(-1)
  np.testing.assert_array_equal(
    nearest(jnp.asarray(vectors), jnp.asarray(codes)), far.argmin(-1)
  )
  # Of two equal ones the first.
  twice = jnp.asarray(np.concatenate([codes, codes]))
  assert nearest(jnp.asarray(vectors), twice).max() < 90


def test_ids_survive_a_round_trip(params):
  ids = jax.random.randint(jax.random.key(2), (5, 6, 6), 0, 40)
  images = CONFIG.decode(params, ids)
  assert images.shape == (5, 12, 12, 3)
  np.testing.assert_array_equal(CONFIG.encode(params, images), ids)
  assert len(np.unique(ids)) == 40


def test_encoding_is_idempotent_and_the_best_there_is(params):
  images = images_of(4)
  ids = CONFIG.encode(params, images)
  once = CONFIG.decode(params, ids)
  np.testing.assert_array_equal(CONFIG.encode(params, once), ids)
  error = np.square(once - images).mean()
  for step in range(1, 4):
    other = CONFIG.decode(params, (ids + step) % 40)
    assert error < np.square(other - images).mean()


def test_patches_are_those_of_the_pixels_codec(params):
  pixels = PixelsConfig(12, 3, 2, CONFIG.mean, CONFIG.std)
  images = images_of(2)
  tokens = pixels.to_tokens(pixels.encode({}, images))
  vectors = CONFIG.vectors(images).reshape(2, 36, 12)
  np.testing.assert_array_equal(vectors, tokens)
  ids = CONFIG.encode(params, images)
  theirs = params["codes"][CONFIG.to_tokens(ids)]
  decoded = pixels.decode({}, pixels.to_latents(theirs))
  np.testing.assert_array_equal(CONFIG.decode(params, ids), decoded)


def test_a_change_inside_a_patch_changes_its_id_alone(params):
  images = np.array(images_of(1))
  before = np.asarray(CONFIG.encode(params, jnp.asarray(images)))
  images[0, 4:6, 8:10] = np.asarray(
    CONFIG.decode(params, jnp.full((1, 1, 1), (before[0, 2, 4] + 1) % 40))
  )[0]
  changed = np.asarray(CONFIG.encode(params, jnp.asarray(images))) != before
  assert np.argwhere(changed).tolist() == [[0, 2, 4]]


def test_other_sizes_will_do(params):
  ids = CONFIG.encode(params, images_of(2, 20))
  assert ids.shape == (2, 10, 10)
  assert CONFIG.decode(params, ids).shape == (2, 20, 20, 3)


@pytest.mark.parametrize(
  ("ids", "message"),
  [
    (np.zeros((1, 6, 6)), "type float64; expected integers"),
    (np.zeros((1, 36), int), r"shape \(1, 36\)"),
    (np.full((1, 6, 6), 40), "codes go from 40 to 40; expected integers"),
    (np.full((1, 6, 6), -1), "from -1 to -1; expected .* from 0 to 39"),
  ],
)
def test_what_are_no_ids_is_refused(ids, message):
  with pytest.raises(ValueError, match=message):
    check_latents(ids, CONFIG)
  good = np.full((1, 6, 6), 39, np.uint8)
  kept = check_latents(good, CONFIG)
  assert kept.dtype == np.int32


def test_floats_are_not_decoded(params):
  with pytest.raises(ValueError, match="codes have type float32"):
    CONFIG.decode(params, jnp.zeros((1, 6, 6)))


def test_sizes_must_fit():
  with pytest.raises(ValueError, match="image_size is 12; expected a multiple"):
    dataclasses.replace(CONFIG, patch=5)
