"""KID and CMMD where their answers are known."""

import numpy as np
import pytest

from marjax.evaluate.scores import pairs
from marjax.evaluate.scores.cmmd import cmmd
from marjax.evaluate.scores.kid import kernel_distance


def rows(seed, count, shift=0.0, size=8):
  rng = np.random.default_rng(seed)
  return (rng.normal(1 + shift, 1, (count, size))).astype(np.float32)


def test_kid_is_its_definition():
  ours, theirs = rows(0, 30), rows(1, 30, 0.5)
  pair = [a.astype(np.float64) for a in (ours, theirs)]

  def mean(one, other, is_own):
    kernel = (one @ other.T / 8 + 1) ** 3
    return kernel[~np.eye(30, dtype=bool) if is_own else ...].mean()

  expected = mean(pair[0], pair[0], True) + mean(pair[1], pair[1], True)
  expected -= 2 * mean(pair[0], pair[1], False)
  result = kernel_distance(
    generated=ours, real=theirs, num_subsets=3, subset_size=30
  )
  assert result.mean == pytest.approx(expected, rel=1e-10)
  assert result.deviation == pytest.approx(0, abs=1e-12)


def test_kid_of_one_distribution_is_about_nothing_and_may_be_below():
  values = [
    kernel_distance(
      generated=rows(2 * seed, 200),
      real=rows(2 * seed + 1, 200),
      num_subsets=1,
      subset_size=200,
    ).mean
    for seed in range(20)
  ]
  error = np.std(values) / np.sqrt(20)
  assert abs(np.mean(values)) < 4 * error
  assert min(values) < 0 < max(values)


def test_kid_sees_a_shift_and_says_its_error():
  near = kernel_distance(
    generated=rows(0, 400), real=rows(1, 400), num_subsets=20, subset_size=100
  )
  far = kernel_distance(
    generated=rows(0, 400, 0.5),
    real=rows(1, 400),
    num_subsets=20,
    subset_size=100,
  )
  assert abs(near.mean) < 2 * near.deviation
  assert far.mean > 5 * far.deviation > 0


def test_kid_refuses_fewer_images_than_a_subset_has():
  with pytest.raises(ValueError, match="set has 30 images; expected 40"):
    kernel_distance(generated=rows(0, 30), real=rows(1, 50), subset_size=40)


@pytest.mark.parametrize("tile", [2048, 32])
def test_cmmd_is_its_definition_whatever_the_tiles(monkeypatch, tile):
  monkeypatch.setattr(pairs, "TILE", tile)
  ours, theirs = rows(0, 50), rows(1, 70, 0.2)
  units = [
    a / np.linalg.norm(a, axis=1, keepdims=True)
    for a in (ours.astype(np.float64), theirs.astype(np.float64))
  ]

  def mean(one, other):
    apart = ((one[:, None] - other[None]) ** 2).sum(2)
    return np.exp(-apart / 200).mean()

  expected = mean(units[0], units[0]) + mean(units[1], units[1])
  expected = 1000 * (expected - 2 * mean(units[0], units[1]))
  assert cmmd(generated=ours, real=theirs) == pytest.approx(expected, rel=1e-4)
  assert expected > 0


def test_cmmd_of_a_set_with_itself_is_nothing_and_lengths_do_not_matter():
  ours, theirs = rows(0, 50), rows(1, 70, 0.5)
  assert cmmd(generated=ours, real=ours) == pytest.approx(0, abs=1e-5)
  scaled = cmmd(generated=3 * ours, real=theirs)
  assert scaled == pytest.approx(cmmd(generated=ours, real=theirs), rel=1e-4)
  with pytest.raises(ValueError, match="features of image 1 are all 0"):
    cmmd(generated=np.float32([[1, 2], [0, 0]]), real=ours[:, :2])
