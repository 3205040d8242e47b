"""What one MLP learns of tokens of many numbers: the measure, and its rows."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rows, token_dim

PAGE = Path(__file__).parents[2] / "docs" / "head_library.md"


@pytest.mark.parametrize("dim", [1, 5])
def test_the_mixture_is_standardised(dim):
  mixture = token_dim.Mixture(dim)
  x = np.asarray(mixture.draw(jax.random.key(0), 20000), np.float64)
  np.testing.assert_allclose(x.mean(0), 0, atol=0.03)
  np.testing.assert_allclose(x.std(0), 1, atol=0.03)


def test_its_density_is_one():
  mixture = token_dim.Mixture(2)
  side = np.linspace(-6, 6, 601)
  x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
  mass = np.exp(mixture.log_density(x)).sum() * (side[1] - side[0]) ** 2
  assert mass == pytest.approx(1, abs=1e-3)
  drawn = np.asarray(mixture.draw(jax.random.key(0), 20000))
  # Its own points have the entropy of the mixture, by the same grid.
  logs = mixture.log_density(x)
  entropy = -(np.exp(logs) * logs).sum() * (side[1] - side[0]) ** 2
  assert -mixture.log_density(drawn).mean() == pytest.approx(entropy, abs=0.03)


def test_a_shift_is_a_distance():
  one = jnp.array(np.random.default_rng(0).normal(size=(500, 1)))
  assert token_dim.distance(one, one) == 0
  assert token_dim.distance(one, one + 0.5) == pytest.approx(0.5)


def test_the_page_has_the_rows():
  table = token_dim.of_heads(rows.read(token_dim.RESULTS))
  assert len(table.splitlines()) == 2 + len(token_dim.CASES) // 2
  assert table in PAGE.read_text()
