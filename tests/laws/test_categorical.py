"""The categorical head against its formulas: exact sets, exact frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from marjax.head import categorical
from marjax.head.categorical import (
  CategoricalHeadConfig,
  CategoricalSettings,
  gumbel,
  narrowed,
)
from marjax.head.noise import RecordedNoise

LOGITS = np.float32([1.0, -0.5, 2.0, 0.0, 1.5, -2.0, 0.3, -1.0])
V, COUNT = len(LOGITS), 100_000


def softmax(logits):
  shares = np.exp(np.float64(logits) - np.max(logits))
  return shares / shares.sum()


def head_of(logits, **fields):
  """A head whose logits are z · logits, z [*batch, 1]."""
  head = CategoricalHeadConfig(len(logits), **fields).build()
  kernel, bias = jnp.asarray(logits)[None], jnp.zeros(len(logits))
  return head, {"params": {"linear": {"kernel": kernel, "bias": bias}}}


HEAD, PARAMS = head_of(LOGITS)


@jax.jit
def draw_all(walk, temperature, factor):
  return HEAD.apply(
    PARAMS,
    factor * jnp.ones((COUNT, 1)),
    walk,
    key=jax.random.key(3),
    temperature=temperature,
    method="sample",
  )


def counts_of(temperature=1.0, factor=1.0, **settings):
  walk = CategoricalSettings(**settings).walk()
  drawn = draw_all(walk, temperature, factor)
  assert drawn.dtype == jnp.int32
  return np.bincount(drawn, minlength=V)


def assert_drawn_from(counts, shares):
  """A chi-square test, of a fixed seed; no code of share 0 is ever drawn."""
  is_drawn = shares > 0
  assert counts[is_drawn].sum() == COUNT
  expected = COUNT * shares[is_drawn]
  if len(expected) > 1:
    assert stats.chisquare(counts[is_drawn], expected).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_drawn_as_the_softmax_says(temperature):
  shares = softmax(LOGITS / temperature)
  counts = counts_of(temperature)
  assert_drawn_from(counts, shares)
  others = softmax(LOGITS / (1.05 * temperature))
  assert stats.chisquare(counts, COUNT * others).pvalue < 1e-6


@pytest.mark.parametrize("top_k", [1, 2, 5, V, 2 * V])
def test_top_k_draws_from_the_likeliest_alone(top_k):
  best = np.argsort(-LOGITS)[:top_k]
  shares = np.zeros(V)
  shares[best] = softmax(LOGITS[best])
  assert_drawn_from(counts_of(top_k=top_k), shares)


@pytest.mark.parametrize(
  ("top_p", "temperature", "top_k"),
  [
    *[(0.5, 1.0, 0), (0.9, 1.0, 0), (0.9, 2.0, 0), (1e-6, 1.0, 0)],
    *[(0.5, 1.0, 3), (0.5, 1.0, 2 * V)],
  ],
)
def test_top_p_draws_from_the_fewest_that_reach_it(top_p, temperature, top_k):
  """Of what the temperature made, and of what top_k left."""
  best = np.argsort(-LOGITS)[: top_k or V]
  ranked = softmax(LOGITS[best] / temperature)
  size = int(np.searchsorted(np.cumsum(ranked), top_p)) + 1
  shares = np.zeros(V)
  shares[best[:size]] = ranked[:size] / ranked[:size].sum()
  counts = counts_of(temperature, top_p=top_p, top_k=top_k)
  assert_drawn_from(counts, shares)
  assert np.sum(counts > 0) == size


@pytest.mark.parametrize("top_k", [0, 1, 7, 300])
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_what_is_left_is_the_smallest_set(top_k, top_p):
  logits = 3 * np.random.default_rng(0).normal(size=(40, 300))
  logits = np.float32(logits)
  left = np.asarray(jax.jit(narrowed)(logits, top_k, np.float32(top_p)))
  for row, rest in zip(logits, left, strict=True):
    best = np.argsort(-row)[: top_k or 300]
    before = np.cumsum(softmax(row[best])) - softmax(row[best])
    sure, possible = before < top_p - 1e-6, before < top_p + 1e-6
    sure[0] = True
    assert np.isfinite(rest[best[sure]]).all()
    assert np.isneginf(np.delete(rest, best[possible])).all()
    np.testing.assert_array_equal(
      rest[np.isfinite(rest)], row[np.isfinite(rest)]
    )
    if top_p == 1:
      assert np.isfinite(rest).sum() == (top_k or 300)


def test_a_top_p_of_one_leaves_what_rounding_takes_for_nothing():
  left = narrowed(-jnp.arange(100.0), 99, jnp.float32(1.0))
  assert np.isfinite(left).sum() == 99


def test_codes_that_tie_with_the_last_stay():
  left = narrowed(jnp.array([1.0, 3.0, 1.0, 0.0]), 2, 1.0)
  np.testing.assert_array_equal(left, [1.0, 3.0, 1.0, -np.inf])


def test_guidance_extrapolates_logits():
  """uncond + 3 · (cond - uncond) of z = 2 and 1 are the logits of z = 4."""
  z = jnp.ones((500, 1))
  keys = jax.random.split(jax.random.key(5), 500)

  def drawn(z, **how):
    return HEAD.apply(PARAMS, z, key=keys, method="sample", **how)

  guided = drawn(2 * z, guidance=(z, 3.0))
  np.testing.assert_array_equal(guided, drawn(4 * z))
  assert np.any(guided != drawn(2 * z))
  same = drawn(2 * z, guidance=(z, 1.0))
  np.testing.assert_array_equal(same, drawn(2 * z))
  other = drawn(2 * z, guidance=(z, 0.0))
  np.testing.assert_array_equal(other, drawn(z))


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-38, 1e-30])
@pytest.mark.parametrize("top_p", [0.3, 1.0])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_cold_is_the_likeliest_code(temperature, top_p, factor):
  """However close the logits are, or far apart."""
  counts = counts_of(temperature, factor, top_p=top_p)
  assert counts[np.argmax(LOGITS)] == COUNT


def test_heat_leaves_every_code_alike():
  assert_drawn_from(counts_of(1e30), np.full(V, 1 / V))


def test_logits_that_are_no_numbers_draw_no_code():
  z = jnp.array([[1.0], [3e38]])
  guidance = (-z, jnp.array(1e3))
  drawn = HEAD.apply(
    PARAMS, z, key=jax.random.key(0), guidance=guidance, method="sample"
  )
  assert drawn[0] == np.argmax(LOGITS)
  assert drawn[1] == -1


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_loss_is_that_of_its_formula(smoothing):
  """Also PyTorch's, which smooths in the same way."""
  head, params = head_of(LOGITS, label_smoothing=smoothing)
  z = jax.random.normal(jax.random.key(0), (50, 1)) * 3
  target = jax.random.randint(jax.random.key(1), (50,), 0, V)
  weights = jax.random.uniform(jax.random.key(2), (50,))
  ours = head.apply(params, z, target, weights)
  log_p = np.log([softmax(row) for row in np.asarray(z) * LOGITS])
  smoothed = (1 - smoothing) * np.eye(V)[target] + smoothing / V
  each = -np.sum(smoothed * log_p, axis=1)
  plain = -log_p[np.arange(50), target]
  np.testing.assert_allclose(
    ours["loss"], np.average(each, weights=weights), rtol=1e-5
  )
  np.testing.assert_allclose(
    ours["cross_entropy"], np.average(plain, weights=weights), rtol=1e-5
  )
  assert ("smoothing" in ours) == (smoothing > 0)
  theirs = torch.nn.functional.cross_entropy(
    torch.tensor(np.asarray(z) * LOGITS),
    torch.tensor(np.asarray(target), dtype=torch.long),
    label_smoothing=smoothing,
  )
  ours = head.apply(params, z, target)["loss"]
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_gradient_is_softmax_less_target():
  z, target = jnp.ones((1, 1)), jnp.array([4])

  def loss(bias):
    params = {"linear": {**PARAMS["params"]["linear"], "bias": bias}}
    return HEAD.apply({"params": params}, z, target)["loss"]

  ours = jax.grad(loss)(jnp.zeros(V))
  np.testing.assert_allclose(ours, softmax(LOGITS) - np.eye(V)[4], atol=1e-6)


def test_a_traced_target_that_is_no_code_makes_the_loss_nan():
  apply = jax.jit(HEAD.apply)
  z = jnp.ones((2, 1))
  assert np.isfinite(apply(PARAMS, z, jnp.array([0, V - 1]))["loss"])
  for wrong in (-1, V):
    assert np.isnan(apply(PARAMS, z, jnp.array([0, wrong]))["loss"])


def test_bfloat16_rounds_factors_and_not_logits():
  config = CategoricalHeadConfig(300, dtype="bfloat16")
  head = config.build()
  z = jax.random.normal(jax.random.key(0), (20, 64))
  kernel = jax.random.normal(jax.random.key(1), (64, 300))
  bias = jax.random.normal(jax.random.key(2), (300,))
  params = {"params": {"linear": {"kernel": kernel, "bias": bias}}}
  ours = head.apply(params, z, method="logits")
  assert ours.dtype == jnp.float32
  factors = [np.float64(a.astype(jnp.bfloat16)) for a in (z, kernel)]
  expected = np.matmul(*factors) + np.float64(bias)
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  assert not config.is_float32(("linear", "kernel"))
  assert config.is_float32(("linear", "bias"))


def test_normal_numbers_become_gumbel_numbers():
  """Ten million: none infinite, moments and both tails as the law says."""
  parts = [
    np.asarray(gumbel(jax.random.normal(key, (2_500_000,))))
    for key in jax.random.split(jax.random.key(0), 4)
  ]
  drawn = np.concatenate(parts)
  assert np.isfinite(drawn).all()
  assert drawn.mean(dtype=np.float64) == pytest.approx(np.euler_gamma, abs=2e-3)
  assert drawn.var(dtype=np.float64) == pytest.approx(np.pi**2 / 6, rel=2e-3)
  for point in (-2.0, 8.0, 11.0):
    share = stats.gumbel_r.sf(point) if point > 0 else stats.gumbel_r.cdf(point)
    count = np.sum(drawn > point if point > 0 else drawn < point)
    assert abs(count - share * 1e7) < 4 * np.sqrt(share * 1e7)


def test_gumbel_numbers_are_exact_where_normal_ones_reach():
  x = np.linspace(-10, 10, 2001, dtype=np.float32)
  exact = -np.log(-stats.norm.logcdf(np.float64(x)))
  np.testing.assert_allclose(gumbel(jnp.asarray(x)), exact, atol=1e-5)


def test_recorded_noise_may_be_beyond_all_that_is_drawn():
  start = jnp.zeros((2, V)).at[0, 3].set(40.0).at[1].set(-40.0)
  noise = RecordedNoise(start, start[:, None])
  drawn = HEAD.apply(PARAMS, jnp.ones((2, 1)), noise=noise, method="sample")
  np.testing.assert_array_equal(drawn, [3, np.argmax(LOGITS)])


def test_other_numbers_need_no_other_program(monkeypatch):
  """Neither settings nor temperature nor guidance trace anything anew."""
  traced = []
  original = categorical.narrowed
  monkeypatch.setattr(
    categorical, "narrowed", lambda *a: traced.append(1) or original(*a)
  )
  z, key = jnp.ones((4, 1)), jax.random.key(0)

  @jax.jit
  def draw(walk, temperature, scale):
    how = {"temperature": temperature, "guidance": (z, scale)}
    return HEAD.apply(PARAMS, z, walk, key=key, method="sample", **how)

  for top_k, top_p, temperature in [(0, 1.0, 1.0), (3, 0.5, 0.0), (99, 0.9, 2)]:
    walk = CategoricalSettings(top_k=top_k, top_p=top_p).walk()
    draw(walk, np.float32(temperature), np.float32(1 + top_k))
  assert len(traced) == 1


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"top_p": 0}, "top_p is 0.*; expected more than 0, and at most 1"),
    ({"top_p": 1.5}, "top_p is 1.5; expected more than 0, and at most 1"),
    ({"top_k": -1}, "top_k is -1; expected 0 to"),
    ({"num_steps": 2}, "num_steps is 2; expected 1\\."),
  ],
)
def test_settings_have_ranges(settings, message):
  with pytest.raises(ValueError, match=message):
    CategoricalSettings(**settings)
