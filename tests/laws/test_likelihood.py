"""The flow head's log-likelihood against closed forms, and its own sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from protocols.parts import noisy

from marjax.head.flow import FlowHeadConfig, FlowSettings
from marjax.head.likelihood import log_likelihood
from marjax.head.noise import RecordedNoise

MEAN = np.array([1.5, -0.5, 0.3])
FACTOR = np.array([[0.6, 0.0, 0.0], [0.3, 0.8, 0.0], [-0.2, 0.1, 0.5]])
COVARIANCE = FACTOR @ FACTOR.T


def best_velocity(x, t):
  """E[data - noise | x_t] of data N(MEAN, COVARIANCE), whose axes are mixed."""
  variance = (1 - t) ** 2 * jnp.eye(3) + t**2 * COVARIANCE
  gain = (t * COVARIANCE - (1 - t) * jnp.eye(3)) @ jnp.linalg.inv(variance)
  return MEAN + (x - t * MEAN) @ gain.T


def density(x, mean, covariance):
  """log N(x; mean, covariance) in float64, [*batch]."""
  away = np.asarray(x, np.float64) - mean
  square = np.sum(away @ np.linalg.inv(covariance) * away, axis=-1)
  logdet = np.linalg.slogdet(2 * np.pi * covariance)[1]
  return -0.5 * (square + logdet)


def errors(num_steps):
  """Of the log-likelihood of 200 tokens of that Gaussian."""
  x = MEAN + jax.random.normal(jax.random.key(0), (200, 3)) @ FACTOR.T
  run = jax.jit(lambda x: log_likelihood(best_velocity, x, num_steps))
  return np.asarray(run(x) - density(x, MEAN, COVARIANCE))


def test_a_gaussian_has_its_density():
  assert np.abs(errors(32)).max() < 1e-5  # nats, in float32


def test_the_error_falls_as_its_order_says():
  counts = np.array([2, 4, 8])
  found = [np.sqrt(np.mean(errors(int(n)) ** 2)) for n in counts]
  slope = np.polyfit(np.log2(counts), np.log2(found), 1)[0]
  assert -5.0 < slope < -3.5


@pytest.fixture(scope="module")
def head():
  """A head of one number, with parameters that bend its density."""
  head = FlowHeadConfig(token_dim=1, width=32, depth=2, time_scale=4.0).build()
  z = jnp.ones((1, 3))
  params = head.init(jax.random.key(0), z, z[:, :1], key=jax.random.key(1))
  return head, noisy(params)


def along(head, z, x, **how):
  """log p of each x [N], all of the same z [3]."""
  module, params = head
  z, x = jnp.broadcast_to(z, (len(x), 3)), jnp.asarray(x)[:, None]
  apply = jax.jit(
    lambda z, x: module.apply(params, z, x, method="log_likelihood", **how)
  )
  return np.asarray(apply(z, x), np.float64)


@pytest.mark.parametrize("z", [(1.0, 0.0, -1.0), (0.3, -2.0, 0.5)])
def test_it_is_the_density_of_what_the_head_draws(head, z):
  module, params = head
  z = jnp.array(z)
  noise = np.linspace(-6, 6, 601, dtype=np.float32)
  drawn = module.apply(
    params,
    jnp.broadcast_to(z, (601, 3)),
    FlowSettings(200, "midpoint"),
    noise=RecordedNoise(jnp.asarray(noise)[:, None], jnp.zeros((601, 200, 1))),
    method="sample",
  )[:, 0]
  drawn = np.asarray(drawn, np.float64)
  logp = along(head, z, np.float32(drawn))
  # A change of variables: where noise is stretched, it is thinned out.
  stretch = np.gradient(drawn, np.float64(noise))
  assert np.ptp(np.log(stretch)) > 0.1
  normal = density(noise[:, None], np.zeros(1), np.eye(1))
  near = slice(100, -100)
  np.testing.assert_allclose(
    logp[near], (normal - np.log(stretch))[near], atol=2e-2
  )
  assert np.trapezoid(np.exp(logp), drawn) == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_any_leading_shape_and_no_row_sees_another():
  head = FlowHeadConfig(token_dim=3, width=16, depth=1).build()
  z = jax.random.normal(jax.random.key(0), (2, 5, 4))
  x = jax.random.normal(jax.random.key(1), (2, 5, 3))
  params = noisy(head.init(jax.random.key(2), z, x, key=jax.random.key(3)))

  def call(z, x):
    return head.apply(params, z, x, num_steps=4, method="log_likelihood")

  whole = call(z, x)
  assert whole.shape == (2, 5)
  np.testing.assert_allclose(call(z[1, 3], x[1, 3]), whole[1, 3], rtol=1e-4)
  np.testing.assert_allclose(call(z[:1], x[:1])[0], whole[0], rtol=1e-4)
  moved = call(z.at[0, 0].set(9.0), x.at[0, 0].set(4.0))
  np.testing.assert_allclose(moved[0, 1:], whole[0, 1:], rtol=1e-4)
  assert abs(moved[0, 0] - whole[0, 0]) > 0.1
  # Its gradient is there, too: of parameters and of what z is made of.
  by_params = jax.grad(
    lambda params: head.apply(
      params, z, x, num_steps=2, method="log_likelihood"
    ).mean()
  )(params)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(by_params))


@pytest.mark.slow
def test_a_trained_head_has_the_density_of_its_data():
  head = FlowHeadConfig(token_dim=2, width=64, depth=2, repeats=8).build()
  mean, factor = MEAN[:2], FACTOR[:2, :2]
  z = jnp.ones((128, 1))

  def tokens(key, count=128):
    return mean + jax.random.normal(key, (count, 2)) @ factor.T

  params = small.fit_head(head, z, tokens, 1000)
  x = tokens(jax.random.key(9), 1000)
  logp = head.apply(params, jnp.ones((1000, 1)), x, method="log_likelihood")
  lost = density(x, mean, factor @ factor.T) - np.asarray(logp)
  # The divergence of the head from its data; below 0 by chance alone.
  assert -0.01 < lost.mean() < 0.02
  assert lost.std() < 0.15
