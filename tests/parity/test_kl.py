"""The KL autoencoder against the published program, at base width 32.

Measured, of the largest value: moments 1e-6 at 32² and 2e-6 at 48², latents
5e-7, images 6e-6 and 8e-6; the published float32 program is itself 5e-6 off
float64.
"""

import jax
import jax.numpy as jnp
import pytest

from marjax.convert import kl, table
from marjax.latents.kl import KLConfig, Moments
from parity.published import assert_close

CONFIG = KLConfig(image_size=32, base_width=32)


@pytest.fixture(scope="module")
def params(golden):
  target = jax.eval_shape(CONFIG.init_params, jax.random.key(0))
  return table.convert(kl.RULES, golden("vae_small_weights.npz"), target)


@pytest.fixture(scope="module")
def theirs(golden):
  """Their NCHW arrays as NHWC."""
  return {
    name: jnp.asarray(array.transpose(0, 2, 3, 1))
    for name, array in golden("vae_small_io.npz").items()
  }


@pytest.mark.parametrize("size", [32, 48])
def test_moments(params, theirs, size):
  ours = jax.jit(CONFIG.moments)(params, theirs[f"image_{size}"])
  mean, log_variance = jnp.split(theirs[f"moments_{size}"], 2, axis=-1)
  assert_close(ours.mean, mean, 2e-5)
  assert_close(ours.log_variance, log_variance, 2e-5)


@pytest.mark.parametrize("size", [32, 48])
def test_latents(params, theirs, size):
  moments = jax.jit(CONFIG.moments)(params, theirs[f"image_{size}"])
  ours = CONFIG.posterior_draw(moments, theirs[f"posterior_noise_{size}"])
  assert_close(ours, theirs[f"latents_{size}"], 2e-5)


@pytest.mark.parametrize("size", [32, 48])
def test_draw_alone(theirs, size):
  moments = Moments(*jnp.split(theirs[f"moments_{size}"], 2, axis=-1))
  ours = CONFIG.posterior_draw(moments, theirs[f"posterior_noise_{size}"])
  assert_close(ours, theirs[f"latents_{size}"], 1e-6)


@pytest.mark.parametrize("size", [32, 48])
def test_images(params, theirs, size):
  ours = jax.jit(CONFIG.decode)(params, theirs[f"latents_{size}"])
  assert_close(ours, theirs[f"decoded_{size}"], 2e-5)
