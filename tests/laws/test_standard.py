"""Targets are standardised, and come back, and likelihoods keep their units."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.head.flow import FlowHeadConfig
from marjax.head.standard import Standard, fit_standard

TARGETS = 1000 + jax.random.normal(jax.random.key(0), (50, 4, 3)) * jnp.array(
  [0.01, 1.0, 100.0]
)


def test_standardised_targets_have_mean_0_and_deviation_1():
  standard = fit_standard(TARGETS)
  y = np.asarray(standard.standardised(TARGETS), np.float64)
  # The first number's deviation is 160 of float32's steps at 1000.
  assert np.all(np.abs(y.mean((0, 1))) < [1e-2, 1e-4, 1e-5])
  np.testing.assert_allclose(y.std((0, 1)), 1, rtol=1e-2)
  restored = standard.restored(standard.standardised(np.asarray(TARGETS)))
  np.testing.assert_allclose(restored, TARGETS, rtol=1e-6)


def test_what_weighs_nothing_does_not_count():
  weights = jnp.zeros((50, 4)).at[7:9].set(2.0)
  one, other = fit_standard(TARGETS, weights), fit_standard(TARGETS[7:9])
  jax.tree.map(np.testing.assert_array_equal, one, other)
  assert abs(one.mean[2] - fit_standard(TARGETS).mean[2]) > 1


def test_equal_numbers_are_left_as_they_are():
  standard = fit_standard(jnp.full((5, 2), 0.1).at[:, 1].set(0.0))
  np.testing.assert_array_equal(standard.std, [1.0, 1.0])
  np.testing.assert_array_equal(standard.mean, np.float32([0.1, 0.0]))


def test_it_is_saved_with_the_parameters(tmp_path):
  standard = fit_standard(TARGETS)
  state = {"params": {"kernel": jnp.ones(3)}, "standard": standard}
  data = flax.serialization.to_bytes(state)
  empty = jax.tree.map(jnp.zeros_like, state)
  again = flax.serialization.from_bytes(empty, data)["standard"]
  assert isinstance(again, Standard)
  jax.tree.map(np.testing.assert_array_equal, again, standard)
  np.savez(tmp_path / "standard.npz", **standard._asdict())
  again = Standard(**np.load(tmp_path / "standard.npz"))
  jax.tree.map(np.testing.assert_array_equal, again, standard)
  assert again.mean.dtype == again.std.dtype == jnp.float32


def test_the_density_of_targets_is_that_of_standardised_ones_by_their_volume():
  """Of a head that is new, so N(0, 1): of targets it is N(mean, std²)."""
  standard = fit_standard(TARGETS[..., 1:])
  head = FlowHeadConfig(token_dim=2, width=8, depth=1).build()
  z, x = jnp.ones((5, 1)), TARGETS[0, :1, 1:]
  x = jnp.concatenate([x, TARGETS[1, :4, 1:]])
  key = jax.random.key(0)
  params = head.init(key, z, x, key=key)
  logp = head.apply(
    params, z, standard.standardised(x), num_steps=2, method="log_likelihood"
  )
  away = (np.asarray(x, np.float64) - standard.mean) / standard.std
  expected = -0.5 * away**2 - np.log(standard.std) - 0.5 * np.log(2 * np.pi)
  np.testing.assert_allclose(
    logp - standard.log_volume, expected.sum(-1), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((jnp.ones(3),), r"targets has shape \(3,\); expected \[\*batch, D\]"),
    ((jnp.ones((0, 3)),), r"targets has shape \(0, 3\)"),
    ((jnp.full((2, 3), jnp.nan),), r"targets\[0, 0\] is nan"),
    ((jnp.ones((2, 3)), jnp.ones(3)), r"weights has shape \(3,\); .* \(2,\)"),
    ((jnp.ones((2, 3)), jnp.zeros(2)), "weights are negative or all 0"),
    ((jnp.ones((2, 3)), jnp.array([1.0, -1.0])), "weights are negative"),
  ],
)
def test_others_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    fit_standard(*arguments)


def test_it_is_fitted_outside_of_programs():
  with pytest.raises(ValueError, match="targets is traced"):
    jax.jit(fit_standard)(TARGETS)
