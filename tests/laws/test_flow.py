"""The flow head against closed forms: data that are one Gaussian, N(1.5, 0.4²).

Its best velocity is known, v = E[x - eps | x_t], a straight line in x_t; so x
at t = 1 is linear in the noise, and mean and spread follow without Monte Carlo.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax.head import flow, scan
from marjax.head.flow import FlowHeadConfig, FlowSettings, integrator
from marjax.head.noise import KeyedNoise, RecordedNoise

MEAN, STD = 1.5, 0.4
SAMPLERS = ("euler", "euler-maruyama", "midpoint")


def best_velocity(x, entries, index, now):
  t = now.time
  variance = (1 - t) ** 2 + (t * STD) ** 2
  return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def recovered(settings, temperature=1.0):
  """Mean and std of samples, by the response to each noise alone."""
  walk, count = settings.walk(), settings.num_steps
  alone = jnp.concatenate([jnp.zeros((1, count + 1)), jnp.eye(count + 1)])
  noise = RecordedNoise(alone[:, :1], alone[:, 1:, None])
  start = temperature * noise.initial((1,))
  step = integrator(best_velocity, temperature)
  _, x = scan.evaluations(step, (start, start), walk, walk.time, noise, (1,))
  x = np.asarray(x[:, 0], np.float64)
  return x[0], np.sqrt(np.sum((x[1:] - x[0]) ** 2))


@pytest.mark.parametrize(
  ("sampler", "expected"),
  [
    ("euler", (0.340, 0.375, 0.393)),
    ("euler-maruyama", (0.395, 0.395, 0.397)),
  ],
)
def test_spread_after_so_many_steps(sampler, expected):
  for count, std in zip((10, 25, 100), expected, strict=True):
    mean, found = recovered(FlowSettings(count, sampler))
    assert mean == pytest.approx(MEAN, abs=1e-3)
    assert found == pytest.approx(std, abs=1.5e-3)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("midpoint", 2)])
def test_the_error_falls_as_its_order_says(sampler, order):
  counts = np.array([16, 32, 64, 128])
  errors = [
    abs(recovered(FlowSettings(int(n), sampler))[1] - STD) for n in counts
  ]
  measured = np.polyfit(np.log2(counts), np.log2(errors), 1)[0]
  # The error of a midpoint's spread falls faster here than its order says.
  assert -order - 1.2 < measured < 0.3 - order


def test_the_stochastic_sampler_is_near_at_any_number_of_steps():
  errors = [
    abs(recovered(FlowSettings(n, "euler-maruyama"))[1] - STD)
    for n in (8, 16, 32, 64, 128)
  ]
  assert max(errors) < 0.02 * STD + 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_walks_end_at_one_and_visit_what_was_asked(sampler):
  walk = FlowSettings(10, sampler, shift=0.3).walk()
  assert len(walk.time) == 10
  steps = walk.length[walk.is_end > 0]
  assert np.sum(steps) == pytest.approx(1.0, abs=1e-6)
  assert np.all(np.diff(walk.time) < 0)  # by how many are left
  assert walk.time[-1] == 0
  plain = FlowSettings(10, sampler).walk()
  assert np.all(walk.time <= plain.time)  # a shift below 1 stays near noise
  assert bool(np.any(walk.is_noisy)) == (sampler == "euler-maruyama")
  assert walk.is_noisy[0] == 0


def test_midpoint_takes_two_evaluations():
  with pytest.raises(ValueError, match="num_steps is 9; expected an even"):
    FlowSettings(9, "midpoint")


@pytest.fixture(scope="module")
def trained():
  """A head after some steps on tokens N(m(z), 0.4²), and z of two kinds."""
  head = FlowHeadConfig(token_dim=1, width=32, depth=2, repeats=8).build()
  z = jnp.repeat(jnp.eye(2), 32, axis=0)

  def tokens(key):
    means = z @ jnp.array([[MEAN], [-1.0]])
    return means + STD * jax.random.normal(key, means.shape)

  return head, small.fit_head(head, z, tokens, 600)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_trained_head_draws_both_gaussians(trained, sampler):
  head, params = trained
  z = jnp.repeat(jnp.eye(2), 500, axis=0)
  drawn = head.apply(
    params, z, FlowSettings(50, sampler), key=jax.random.key(5), method="sample"
  ).reshape(2, 500)
  np.testing.assert_allclose(drawn.mean(1), [MEAN, -1.0], atol=0.08)
  np.testing.assert_allclose(drawn.std(1), STD, atol=0.08)


def test_guidance_of_one_is_none_and_starts_where_asked(trained):
  head, params = trained
  z, other, key = jnp.eye(2)[:1], jnp.eye(2)[1:], jax.random.key(0)

  @jax.jit
  def draw(settings, **how):
    return head.apply(params, z, settings, key=key, method="sample", **how)

  whole = FlowSettings(10).walk()
  late = FlowSettings(10, guidance_start=0.99).walk()
  plain = draw(whole)
  np.testing.assert_allclose(
    draw(whole, guidance=(other, 1.0)), plain, atol=1e-5
  )
  assert abs(draw(whole, guidance=(other, 2.0)) - plain).max() > 0.1
  np.testing.assert_allclose(
    draw(late, guidance=(other, 2.0)), plain, atol=1e-5
  )


def test_temperature_scales_all_noise():
  for sampler in SAMPLERS:
    mean, std = recovered(FlowSettings(20, sampler), temperature=0.0)
    assert std == pytest.approx(0.0, abs=1e-6)
    assert mean == pytest.approx(MEAN, abs=1e-2)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 1.5)])
def test_times_are_logit_normal(mean, std):
  head = FlowHeadConfig(1, repeats=4, time_mean=mean, time_std=std)
  draws = head.draw(jax.random.split(jax.random.key(0), 5000))
  times = np.asarray(draws.timesteps, np.float64)
  logits = np.log(times / (1 - times))
  assert times.shape == (5000, 4)
  assert abs(logits.mean() - mean) < 0.03
  assert logits.std() == pytest.approx(std, abs=0.03)


def test_a_token_does_not_depend_on_its_neighbours(trained):
  head, params = trained
  z, keys = jnp.eye(2), jax.random.split(jax.random.key(3), 2)
  draw = jax.jit(lambda z, k: head.apply(params, z, key=k, method="sample"))
  np.testing.assert_allclose(
    draw(z, keys)[1:], draw(z[1:], keys[1:]), atol=1e-5
  )
  assert isinstance(flow.FlowSettings().walk(), flow.Walk)
  assert KeyedNoise(keys).initial((1,)).shape == (2, 1)
