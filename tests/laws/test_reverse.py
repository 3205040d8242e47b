"""The reverse process against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.head import mlp, reverse
from marjax.head.diffusion import DiffusionHead, DiffusionHeadConfig
from marjax.head.noise import KeyedNoise, RecordedNoise
from marjax.head.process import cosine_alpha_bar
from marjax.head.reverse import ReverseSettings
from marjax.head.timesteps import spaced


def recovered_std(settings: ReverseSettings, sigma: float) -> float:
  """Std of the samples when data are N(0, σ²) and the denoiser is optimal.

  Every step is then linear in x and in its noise, so the samples' variance is
  the sum of squared responses to each noise alone: no Monte Carlo.
  """
  steps = settings.num_steps
  alpha_bar = cosine_alpha_bar()[list(settings.process().timesteps)]
  gain = np.sqrt(1 - alpha_bar) / (alpha_bar * sigma**2 + 1 - alpha_bar)
  alone = np.eye(steps + 1, dtype=np.float32)
  noise = RecordedNoise(
    jnp.asarray(alone[0][:, None]), jnp.asarray(alone[1:].T[..., None])
  )
  responses = reverse.sample(
    lambda x, k, index: (k[index] * x, -jnp.ones_like(x)),
    noise,
    settings,
    token_dim=1,
    per_step=jnp.asarray(gain, jnp.float32),
  )
  return float(jnp.sqrt(jnp.sum(jnp.square(responses))))


@pytest.mark.parametrize(
  ("sampler", "sigma", "order"),
  [
    ("ancestral", 0.5, 1),
    ("ancestral", 1.5, 1),
    ("ddim", 0.5, 1),
    ("ddim", 1.5, 1),
    ("dpm-solver++", 0.3, 2),
    ("dpm-solver++", 0.5, 2),
  ],
)
def test_gaussian_is_recovered_with_the_order_as_slope(sampler, sigma, order):
  counts = np.array([32, 64, 128, 256])
  errors = [
    abs(recovered_std(ReverseSettings(int(n), sampler=sampler), sigma) - sigma)
    for n in counts
  ]
  slope = np.polyfit(np.log2(counts), np.log2(errors), 1)[0]
  assert errors[-1] < 0.02 * sigma
  assert -1.25 * order < slope < -0.8 * order


def test_two_steps_of_dpm_solver_are_those_of_ddim():
  other = [
    recovered_std(ReverseSettings(2, 950, sampler=sampler), 0.5)
    for sampler in ("ddim", "dpm-solver++")
  ]
  assert other[0] == pytest.approx(other[1], rel=1e-5)


@pytest.mark.parametrize("sigma", [0.65, 0.3, 0.1, 0.05])
def test_few_steps_of_dpm_solver_keep_all_deviations(sigma):
  settings = ReverseSettings(25, 950, "quadratic", "dpm-solver++")
  assert recovered_std(settings, sigma) == pytest.approx(sigma, rel=0.03)


def head_and_params(width=32):
  head = DiffusionHead(DiffusionHeadConfig(token_dim=3, width=width, depth=2))
  z = jax.random.normal(jax.random.key(0), (5, 8))
  fresh = jax.jit(head.init)(
    jax.random.key(1), z, jnp.zeros((5, 3)), key=jax.random.key(2)
  )
  leaves, tree = jax.tree.flatten(fresh)
  noisy = tree.unflatten(
    leaf + 0.1 * jnp.sin(place + jnp.arange(leaf.size)).reshape(leaf.shape)
    for place, leaf in enumerate(leaves)
  )
  return head, noisy, z


def test_guidance_one_equals_no_guidance():
  head, params, z = head_and_params()
  settings = ReverseSettings(8, start=900)
  other = jax.random.normal(jax.random.key(5), z.shape)
  key = jax.random.key(3)

  @jax.jit
  def draw(**kwargs):
    return head.apply(params, z, settings, key=key, method="sample", **kwargs)

  plain = draw()
  np.testing.assert_allclose(draw(guidance=(other, 1.0)), plain, atol=1e-5)
  assert jnp.abs(draw(guidance=(other, 2.0)) - plain).max() > 1e-3


def test_temperature_zero_leaves_only_the_initial_noise():
  head, params, z = head_and_params()
  settings = ReverseSettings(8, start=900)

  @jax.jit
  def draw(seed, temperature):
    start = KeyedNoise(jax.random.split(jax.random.key(0), 5)).initial((3,))
    steps = jax.random.normal(jax.random.key(seed), (5, 8, 3))
    return head.apply(
      params,
      z,
      settings,
      noise=RecordedNoise(start, steps),
      temperature=temperature,
      method="sample",
    )

  np.testing.assert_array_equal(draw(1, 0.0), draw(2, 0.0))
  assert jnp.abs(draw(1, 1.0) - draw(2, 1.0)).max() > 1e-3


def test_a_token_does_not_depend_on_its_neighbours():
  head, params, z = head_and_params()
  settings = ReverseSettings(8, start=900)
  row_keys = jax.random.split(jax.random.key(3), 5)

  @jax.jit
  def draw(z, row_keys):
    return head.apply(params, z, settings, key=row_keys, method="sample")

  together = draw(z, row_keys)
  alone = draw(z[2:3], row_keys[2:3])
  np.testing.assert_allclose(together[2:3], alone, atol=1e-5)


def test_loss_needs_weights_only_of_what_counts():
  head, params, z = head_and_params()
  target = jax.random.normal(jax.random.key(7), (5, 3))
  weights = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0])
  row_keys = jax.random.split(jax.random.key(3), 5)
  apply = jax.jit(head.apply)
  loss = apply(params, z, target, weights, key=row_keys)["loss"]
  changed = target.at[2].set(100.0)
  assert apply(params, z, changed, weights, key=row_keys)["loss"] == loss
  kept = jnp.array([0, 1, 3])
  alone = apply(params, z[kept], target[kept], key=row_keys[kept])["loss"]
  np.testing.assert_allclose(loss, alone, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 0.1, 0.02])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_quadratic_spacing_keeps_more_of_small_details(sampler, sigma):
  even, quadratic = (
    1 - recovered_std(ReverseSettings(50, 950, spacing, sampler), sigma) / sigma
    for spacing in ("even", "quadratic")
  )
  assert 0 < quadratic < 0.7 * even


@pytest.mark.parametrize("spacing", ["even", "quadratic"])
@pytest.mark.parametrize("start", [999, 980, 950])
@pytest.mark.parametrize("steps", [2, 20, 500, 951])
def test_spacing_ascends_to_where_asked(steps, start, spacing):
  visited = spaced(steps, start, spacing)
  assert visited[0] == 0
  assert visited[-1] == start
  assert len(visited) == steps
  assert np.all(np.diff(visited) > 0)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"num_steps": 1}, "num_steps is 1; expected 2 to 1000"),
    ({"num_steps": 20, "start": 1000}, "start is 1000; expected 1 to 999"),
    ({"sampler": "euler"}, "sampler is 'euler'; expected"),
    ({"ddim_eta": 2.0}, "ddim_eta is 2.0; expected 0 to 1"),
    ({"spacing": "odd"}, "spacing is 'odd'; expected"),
  ],
)
def test_bad_settings_are_one_sentence(arguments, message):
  with pytest.raises(ValueError, match=message):
    ReverseSettings(**arguments)


def test_steps_prepared_at_once_change_nothing():
  keys = jax.random.split(jax.random.key(0), (2, 3))
  settings = ReverseSettings(12, start=900)

  def run(steps_at_once):
    return reverse.sample(
      lambda x, e, index: (0.1 * x + e[index], jnp.zeros_like(x)),
      KeyedNoise(keys),
      settings,
      token_dim=4,
      per_step=jnp.linspace(0.0, 1.0, 12),
      prepare=jnp.sin,
      steps_at_once=steps_at_once,
    )

  for steps_at_once in (3, 4, 12):
    np.testing.assert_allclose(run(steps_at_once), run(1), rtol=1e-5)


def test_so_many_steps_at_once_as_keep_a_chip_busy(monkeypatch):
  assert mlp.steps_at_once(100, rows=80) == 1  # a CPU
  monkeypatch.setattr(mlp, "platform", lambda: "tpu")
  assert mlp.steps_at_once(100, rows=80) == 100
  assert mlp.steps_at_once(100, rows=512) == 25
  assert mlp.steps_at_once(100, rows=2560) == 5
  assert mlp.steps_at_once(100, rows=16385) == 1
  assert mlp.steps_at_once(97, rows=200) == 1
