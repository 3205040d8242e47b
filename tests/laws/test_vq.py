"""What a VQ autoencoder must do, whatever its weights are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from protocols.parts import VQ, noisy

from marjax import schema
from marjax.latents.vq import VQConfig, normalised

CONTINUOUS = dataclasses.replace(VQ, continuous=True, latent_scale=0.5)
NORMALISED = dataclasses.replace(VQ, is_normalised=True)


@pytest.fixture(scope="module")
def params():
  return noisy(jax.jit(VQ.init_params)(jax.random.key(0)), 0.02)


def z_of(seed=1):
  return jax.random.normal(jax.random.key(seed), (2, 4, 4, 4))


def test_the_nearest_code_is_taken(params):
  z, codes = z_of(), np.asarray(params["codes"])
  far = np.square(np.asarray(z)[..., None, :] - codes).sum(axis=-1)
  np.testing.assert_array_equal(VQ.quantise(params, z), far.argmin(axis=-1))


def test_normalised_codes_are_chosen_by_the_cosine(params):
  z, codes = z_of(), np.asarray(params["codes"])
  cosine = normalised(z) @ (codes / np.linalg.norm(codes, axis=1)[:, None]).T
  ids = NORMALISED.quantise(params, z)
  np.testing.assert_array_equal(ids, cosine.argmax(axis=-1))
  for scale in (7.0, 1e-7):
    again = NORMALISED.quantise(params, scale * z)
    np.testing.assert_array_equal(again, ids)
  longer = {**params, "codes": 3 * params["codes"]}
  image, again = (NORMALISED.decode(p, ids) for p in (params, longer))
  np.testing.assert_allclose(again, image, atol=1e-5)
  assert not np.allclose(VQ.decode(longer, ids), VQ.decode(params, ids))
  assert np.isfinite(normalised(jnp.zeros((1, 4)))).all()


def test_continuous_latents_are_quantised_when_they_are_decoded(params):
  z = z_of()
  ids = VQ.quantise(params, z)
  image = VQ.decode(params, ids)
  np.testing.assert_array_equal(CONTINUOUS.decode(params, 0.5 * z), image)
  codes = params["codes"][ids]
  np.testing.assert_array_equal(CONTINUOUS.decode(params, 0.5 * codes), image)
  # Floats that are as near to the same codes make the same image.
  moved = codes + 1e-4 * z
  np.testing.assert_array_equal(CONTINUOUS.decode(params, 0.5 * moved), image)


def test_its_tokens(params):
  assert (VQ.token_shape, VQ.num_codes, VQ.latent_shape) == ((), 24, (4, 4))
  patches = dataclasses.replace(CONTINUOUS, patch=2)
  assert (patches.token_shape, patches.num_codes) == ((16,), 0)
  assert (patches.latent_shape, patches.num_tokens) == ((4, 4, 4), 4)
  ids = VQ.quantise(params, z_of())
  np.testing.assert_array_equal(VQ.to_tokens(ids), ids.reshape(2, 16))


def test_the_published_one():
  codec = VQConfig()
  assert (codec.stride, codec.num_tokens, codec.num_codes) == (16, 256, 16384)
  shapes = jax.eval_shape(codec.init_params, jax.random.key(0))
  assert shapes["codes"].shape == (16384, 8)
  assert "attentions_2" in shapes["decoder"]["levels_4"]
  assert "attentions_0" not in shapes["decoder"]["levels_3"]
  without = dataclasses.replace(codec, has_level_attention=False)
  shapes = jax.eval_shape(without.init_params, jax.random.key(0))
  assert "attentions_0" not in shapes["decoder"]["levels_4"]
  assert "attentions_0" not in shapes["encoder"]["levels_4"]


@pytest.mark.parametrize("change", [{"patch": 2}, {"latent_scale": 0.5}])
def test_ids_have_neither_patches_nor_a_scale(change):
  with pytest.raises(ValueError, match=r"expected 1 and 1\.0, as ids have nei"):
    dataclasses.replace(VQ, **change)
  assert schema.to_dict(dataclasses.replace(CONTINUOUS, **change))


def test_what_is_no_latent_is_one_sentence(params):
  with pytest.raises(ValueError, match="codes have type float32"):
    VQ.decode(params, z_of())
  with pytest.raises(ValueError, match="latents have type int32"):
    CONTINUOUS.decode(params, jnp.zeros((1, 4, 4), jnp.int32))
  with pytest.raises(ValueError, match=r"expected floats \[B, rows, columns"):
    CONTINUOUS.decode(params, jnp.zeros((1, 4, 4, 5)))
