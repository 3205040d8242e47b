"""The Inception Score where its answer is known."""

import jax
import numpy as np
import pytest

from marjax.evaluate.scores import class_score

COUNT, CLASSES = 200, 10


def summed(logits, order="shuffled", num_splits=10, batch=64):
  """Sums through the device, the last batch filled up with NaN."""
  program = jax.jit(class_score.batch_sums, static_argnums=3)
  splits = class_score.splits_of(len(logits), num_splits, order)
  total = class_score.empty(num_splits, logits.shape[1])
  for start in range(0, len(logits), batch):
    part = logits[start : start + batch]
    padded = np.full((batch, logits.shape[1]), np.nan, np.float32)
    padded[: len(part)] = part
    which = np.zeros(batch, np.int32)
    which[: len(part)] = splits[start : start + batch]
    is_real = np.arange(batch) < len(part)
    sums = program(padded, which, is_real, num_splits)
    total = class_score.add(total, sums)
  return class_score.class_score(total)


def sure_logits():
  """Images of one class after the other, each seen as what it is."""
  labels = np.repeat(np.arange(CLASSES), COUNT // CLASSES)
  return (1000 * np.eye(CLASSES)[labels]).astype(np.float32)


def test_sure_and_varied_images_score_the_number_of_classes():
  score = summed(sure_logits())
  assert score.unsplit == pytest.approx(CLASSES, rel=1e-6)
  assert 6 < score.mean < CLASSES


def test_images_that_say_nothing_score_one():
  score = summed(np.ones((COUNT, CLASSES), np.float32))
  assert score == pytest.approx((1, 0, 1), abs=1e-6)


def test_in_the_order_of_classes_the_score_collapses():
  # A split in the order given sees one class: the trap of unshuffled images.
  given = summed(sure_logits(), "given")
  assert given.mean == pytest.approx(1, rel=1e-6)
  assert given.unsplit == pytest.approx(CLASSES, rel=1e-6)
  assert summed(sure_logits()).mean > 6


def test_the_score_is_its_definition():
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (COUNT, CLASSES)).astype(np.float32)
  chances = np.exp(logits.astype(np.float64))
  chances /= chances.sum(1, keepdims=True)
  values = []
  for part in np.split(chances, 10):
    apart = part * (np.log(part) - np.log(part.mean(0)))
    values.append(np.exp(apart.sum(1).mean()))
  score = summed(logits, "given")
  assert score.mean == pytest.approx(np.mean(values), rel=1e-6)
  assert score.deviation == pytest.approx(np.std(values), rel=1e-5)


def test_splits_share_out_the_images():
  for order in ("given", "shuffled"):
    splits = class_score.splits_of(103, 10, order)
    assert sorted(np.bincount(splits)) == [10] * 7 + [11] * 3
  given = class_score.splits_of(103, 10, "given")
  assert np.all(np.diff(given) >= 0)
  assert np.any(class_score.splits_of(103) != given)
  np.testing.assert_array_equal(
    class_score.splits_of(103), class_score.splits_of(103)
  )


def test_too_few_images_for_the_splits_are_refused():
  with pytest.raises(ValueError, match="9 images for 10 splits"):
    class_score.splits_of(9)
  with pytest.raises(ValueError, match="expected 'shuffled' or 'given'"):
    class_score.splits_of(20, 10, "sorted")
  with pytest.raises(ValueError, match="10 of 10 splits"):
    class_score.class_score(class_score.empty(10, 3))
