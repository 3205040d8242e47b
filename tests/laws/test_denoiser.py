"""The denoiser as other heads use it: float times, and their own outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.head.denoiser import Denoiser

X, Z = jnp.zeros((3, 4)), jnp.zeros((3, 16))
STEPS = jnp.array([0, 250, 999])


@pytest.fixture(scope="module")
def params():
  return Denoiser(4, 32, 1).init(jax.random.key(0), X, STEPS, Z)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_times_may_be_floats_of_any_scale(params, scale):
  wanted = Denoiser(4, 32, 1).apply(params, STEPS, method="embed_time")
  net = Denoiser(4, 32, 1, time_scale=scale)
  embedded = net.apply(params, STEPS / scale, method="embed_time")
  np.testing.assert_allclose(embedded, wanted, atol=1e-5)
  assert jnp.abs(embedded[1] - embedded[0]).max() > 1e-3


@pytest.mark.parametrize(("features", "wanted"), [(None, 8), (5, 5)])
def test_as_many_numbers_come_out_as_are_asked_for(features, wanted):
  net = Denoiser(4, 32, 1, out_features=features)
  output, _ = net.init_with_output(jax.random.key(0), X, STEPS / 999, Z)
  assert output.shape == (3, wanted)
