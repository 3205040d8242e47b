"""Precision, recall and copies where their answers are known."""

import numpy as np
import pytest

from marjax.arrays import kept
from marjax.evaluate.scores import neighbours, pairs
from marjax.evaluate.scores.neighbours import precision_recall


def by_definition(generated, real, k=3):
  """Precision and recall of small sets, in float64, from all distances."""

  def distances(one, other):
    return np.sqrt(((one[:, None] - other[None]) ** 2).sum(2))

  def share(points, centres):
    own = np.sort(distances(centres, centres), axis=1)[:, k]
    return np.mean((distances(points, centres) <= own).any(1))

  generated, real = (rows.astype(np.float64) for rows in (generated, real))
  return share(generated, real), share(real, generated)


def cluster(seed, count, width, size=6, shift=5.0):
  rng = np.random.default_rng(seed)
  return (rng.normal(0, width, (count, size)) + shift).astype(np.float32)


def test_a_narrow_cluster_is_precise_and_recalls_little():
  # Swapped, the two numbers would change places: a set is named, not counted.
  narrow, wide = cluster(0, 300, 0.3), cluster(1, 400, 1.0)
  good = precision_recall(generated=narrow, real=wide)
  assert good.precision > 0.95
  assert good.recall < 0.2
  varied = precision_recall(generated=wide, real=narrow)
  assert varied.precision < 0.2
  assert varied.recall > 0.95
  assert (len(good.is_precise), len(good.is_recalled)) == (300, 400)


@pytest.mark.parametrize("tile", [2048, 64])
def test_they_are_their_definition_whatever_the_tiles(monkeypatch, tile):
  monkeypatch.setattr(pairs, "TILE", tile)
  generated, real = cluster(2, 150, 0.9, 3), cluster(3, 170, 1.0, 3)
  result = precision_recall(generated=generated, real=real)
  expected = by_definition(generated, real)
  assert result[:2] == pytest.approx(expected, abs=1e-9)
  assert 0.1 < expected[0] < 1
  other = precision_recall(generated=generated, real=real, num_neighbours=1)
  assert other[:2] == pytest.approx(by_definition(generated, real, 1), abs=1e-9)
  assert other[:2] != result[:2]


def test_a_set_that_is_the_real_one_is_inside_it_with_repeats_too():
  real = cluster(4, 100, 1.0)
  assert precision_recall(generated=real, real=real)[:2] == (1, 1)
  repeated = np.repeat(real[:20], 5, axis=0)
  result = precision_recall(generated=repeated, real=real)
  assert result.precision == 1
  assert result.recall == pytest.approx(0.2)


@pytest.mark.parametrize("tile", [2048, 16])
def test_the_nearest_are_found_with_their_numbers(monkeypatch, tile):
  monkeypatch.setattr(pairs, "TILE", tile)
  # So far from 0 that lengths in float32 would hide the distances.
  points, others = cluster(5, 40, 1.0, 6, 300), cluster(6, 70, 1.0, 6, 300)
  apart = np.sqrt(((points[:, None] - others[None]) ** 2).sum(2))
  distance, number = neighbours.nearest(points, others)
  np.testing.assert_array_equal(number, apart.argmin(1))
  np.testing.assert_allclose(distance, apart.min(1), rtol=1e-5)


def test_copies_are_found_and_unseen_images_hardly_any():
  train, unseen = cluster(7, 500, 1.0), cluster(8, 300, 1.0)

  def share(generated):
    return neighbours.is_near_copy(
      generated=generated, train=train, unseen=unseen
    ).mean()

  assert share(train + 1e-3) == 1
  assert share(unseen) == pytest.approx(0.01)
  assert share(cluster(9, 300, 1.0)) < 0.05
  mixed = np.concatenate([train[:100] + 1e-3, cluster(9, 100, 1.0)])
  assert share(mixed) == pytest.approx(0.5, abs=0.05)


def test_sets_that_cannot_be_compared_are_refused():
  train = cluster(10, 50, 1.0)
  with pytest.raises(ValueError, match="3 images and 3 neighbours"):
    precision_recall(generated=train[:3], real=train)
  with pytest.raises(ValueError, match="is also a training image"):
    neighbours.is_near_copy(generated=train, train=train, unseen=train)
  # A few copies are enough, though rounding puts them a little apart.
  unseen = cluster(11, 200, 1.0)
  unseen[:4] = train[:4] + 1e-3
  with pytest.raises(ValueError, match="is also a training image"):
    neighbours.is_near_copy(generated=unseen, train=train, unseen=unseen)


def test_what_is_known_of_real_images_is_computed_once(monkeypatch):
  rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
  real = rows[:30].view()
  real.flags.writeable = False
  asked = []
  nearest = neighbours._nearest

  def counted(*args, **kwargs):
    asked.append(1)
    return nearest(*args, **kwargs)

  monkeypatch.setattr(neighbours, "_nearest", counted)
  first = neighbours.precision_recall(generated=rows[30:], real=real)
  again = neighbours.precision_recall(generated=rows[30:], real=real)
  assert len(asked) == 3  # the real side once, the other twice
  assert first[:2] == again[:2]


def test_what_may_change_is_not_kept():
  rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
  before = neighbours.radii(rows, 3)
  rows *= 2
  np.testing.assert_allclose(neighbours.radii(rows, 3), 4 * before, rtol=1e-4)


def test_what_was_kept_goes_with_its_array():
  made = []

  @kept
  def double(array, times):
    made.append(times)
    return array * times

  for expected in (1, 2):  # another array, perhaps at the same address
    array = np.ones(3)
    array.flags.writeable = False
    assert double(array, 2) is double(array, 2)
    assert double(array, times=3) is double(array, times=3)
    assert double(array, 3).sum() == 9
    assert made == [2, 3, 3] * expected
    del array
