"""Moments that are summed batch by batch are those of all rows at once."""

import jax
import numpy as np
import pytest
from evaluate.networks import moments_of

from marjax.evaluate.scores import frechet, moments


def rows_far_from_zero(count=700, size=24):
  """Rows whose spread is a thousandth of their distance from 0."""
  rng = np.random.default_rng(0)
  mixed = rng.normal(size=(count, size)) @ rng.normal(size=(size, size))
  return (mixed / 1000 + rng.uniform(1, 3, size)).astype(np.float32)


def summed(rows, batch=64):
  """Moments through the device, the last batch filled up with NaN."""
  program = jax.jit(moments.batch_sums)
  total = moments.empty(rows.shape[1])
  for start in range(0, len(rows), batch):
    part = rows[start : start + batch]
    padded = np.full((batch, rows.shape[1]), np.nan, np.float32)
    padded[: len(part)] = part
    total = moments.add(total, program(padded, np.arange(batch) < len(part)))
  return total


def close(one, other, relative):
  scale = np.abs(other.scatter).max()
  assert one.count == other.count
  np.testing.assert_allclose(one.mean, other.mean, rtol=relative)
  np.testing.assert_allclose(
    one.scatter, other.scatter, rtol=0, atol=relative * scale
  )


def test_sums_of_batches_are_the_moments_of_all_rows():
  rows = rows_far_from_zero()
  expected = moments_of(rows)
  # float32 holds a row to 6e-8 of its size, which is far more than its spread.
  close(summed(rows), expected, 4e-6)
  close(summed(rows, 37), expected, 4e-6)
  wide = rows.astype(np.float64)
  np.testing.assert_allclose(
    expected.covariance, np.cov(wide, rowvar=False), rtol=1e-9
  )


def test_covariances_in_float32_are_seen_to_be_wrong():
  # What sums of rows and of their products, in float32, would have given: the
  # reason for shifting, and for adding in float64.
  rows = rows_far_from_zero()
  expected = moments_of(rows).covariance
  second = np.einsum("nd,ne->de", rows, rows, dtype=np.float32) / len(rows)
  mean = rows.mean(0, dtype=np.float32)
  wrong = np.abs(second - np.outer(mean, mean) - expected).max()
  right = np.abs(summed(rows).covariance - expected).max()
  assert right < 4e-6 * np.abs(expected).max()
  assert wrong > 1e-2 * np.abs(expected).max()


def test_a_large_matrix_is_added_in_parts_to_the_same_bits():
  count, size = 200, 2 * moments.PART + 22
  rng = np.random.default_rng(1)
  rows = rng.normal(3, 1, (count, size)).astype(np.float32)
  sums = jax.jit(moments.batch_sums)(rows[120:], np.arange(80) < 77)
  before = summed(rows[:120])
  after = moments.add(before, sums)
  shift, first, second = (np.asarray(part, np.float64) for part in sums[1:])
  apart = shift + first / 77 - before.mean
  expected = before.scatter + (second - np.outer(first, first / 77))
  expected += np.outer(apart, apart * (120 * 77 / 197))
  np.testing.assert_array_equal(after.scatter, expected)
  close(after, moments_of(rows[:197]), 4e-6)


def test_padding_alone_adds_nothing():
  total = summed(rows_far_from_zero(90))
  nothing = np.full((8, 24), np.nan, np.float32), np.zeros(8, bool)
  sums = jax.jit(moments.batch_sums)(*nothing)
  assert moments.add(total, sums) is total
  assert moments.add(moments.empty(24), sums).count == 0


def test_one_image_has_no_covariance():
  one = moments_of(np.ones((1, 3)))
  with pytest.raises(ValueError, match="moments of 1 images; expected two"):
    frechet.distance(one, one)
