"""Dropout's masks: their share, their independence, their gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.layers.dropout import drop, entry_seeds, is_kept, mix

SHAPE = (64, 40, 50)
COUNT = 64 * 40 * 50


def seeds(number):
  return jax.random.bits(jax.random.key(number), (2,), jnp.uint32)


def mask_of(seeds, shape, rate):
  return is_kept(entry_seeds(seeds, shape[0]), shape, rate)


def kept(number, shape=SHAPE, rate=0.1):
  return np.asarray(mask_of(seeds(number), shape, rate))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_the_rate(rate):
  share = 1.0 - kept(0, rate=rate).mean()
  spread = np.sqrt(rate * (1 - rate) / COUNT)
  assert abs(share - rate) < 4 * spread


def test_neighbours_entries_and_seeds_are_independent():
  rate, mask = 0.1, kept(1)
  spread = 4 / np.sqrt(COUNT)

  def correlation(a, b):
    return np.mean((a - (1 - rate)) * (b - (1 - rate))) / (rate * (1 - rate))

  for axis in range(3):
    for shift in (1, 2, 3, 7, 8, 16, 32):
      moved = np.roll(mask, shift, axis)
      assert abs(correlation(mask, moved)) < spread, (axis, shift)
  for number in range(2, 12):
    assert abs(correlation(mask, kept(number))) < spread, number
  first, second = (np.asarray(seeds(1)).copy() for _ in range(2))
  second[1] += 1  # the smallest change of a seed
  near = np.asarray(mask_of(jnp.asarray(second), SHAPE, rate))
  assert abs(correlation(mask, near)) < spread
  assert first[1] != second[1]


def test_rows_and_columns_vary_as_coin_tosses_do():
  mask, rate = kept(3, (256, 320, 320)), 0.1
  for axes in [(1, 2), (0, 2), (0, 1)]:
    counts = (~mask).sum(axis=axes)
    tosses = mask.size / counts.size
    chi = np.mean((counts - rate * tosses) ** 2) / (rate * (1 - rate) * tosses)
    assert abs(chi - 1) < 5 * np.sqrt(2 / counts.size), (axes, chi)


def test_pairs_of_rows_and_columns_are_as_alike_as_the_docstring_says():
  rate = 0.1
  mask = kept(4, (1, 3000, 1024))[0].astype(np.float32)
  mask = (mask - (1 - rate)) / np.sqrt(rate * (1 - rate))
  for along, most, worst in ((mask, 1.02, 0.35), (mask.T, 1.03, 0.2)):
    count, length = along.shape
    correlations = (along @ along.T / length)[np.triu_indices(count, 1)]
    assert np.mean(correlations**2) * length < most
    assert np.abs(correlations).max() < worst


def test_every_input_bit_moves_every_output_bit():
  x = np.arange(4096, dtype=np.uint32) * np.uint32(2654435761)
  for bit in range(32):
    moved = np.asarray(mix(jnp.asarray(x)) ^ mix(jnp.asarray(x ^ (1 << bit))))
    flips = np.array([((moved >> out) & 1).mean() for out in range(32)])
    assert (abs(flips - 0.5) < 0.1).all(), (bit, flips)


def test_a_mask_is_that_of_the_same_index_in_a_longer_batch():
  assert np.array_equal(kept(5, (3, 4, 5)), kept(5, (9, 4, 5))[:3])


def test_the_gradient_passes_where_the_value_did():
  x = jax.random.normal(jax.random.key(0), (8, 16)) + 3.0
  y, pull = jax.vjp(lambda x: drop(x, entry_seeds(seeds(0), 8), 0.25), x)
  (gradient,) = pull(jnp.ones_like(x))
  np.testing.assert_allclose(y, x * gradient, rtol=1e-6)
  assert set(np.unique(np.asarray(gradient)).tolist()) == {
    0.0,
    np.float32(4 / 3).item(),
  }


def test_without_seeds_or_a_rate_nothing_is_dropped():
  x = jnp.ones((4, 1000))
  assert drop(x, None, 0.5) is x
  assert drop(x, entry_seeds(seeds(0), 4), 0.0) is x


def test_calls_have_masks_of_their_own():
  pairs = jax.random.bits(jax.random.key(0), (3, 2), jnp.uint32)
  together = entry_seeds(pairs, 5)
  assert len(np.unique(together)) == 15
  for one, pair in zip(together, pairs, strict=True):
    np.testing.assert_array_equal(one, entry_seeds(pair, 5))
