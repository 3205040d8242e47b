"""Scores of small images with known answers."""

import numpy as np
import pytest

from marjax.evaluate.scores import pixels


def noise_images(rng, count, size=8, low=0, high=256):
  shape = (count, size, size, 1)
  return rng.integers(low, high, shape).astype(np.uint8)


def frechet_ratio(*sets):
  return pixels.frechet_ratio(*(pixels.seen(each).moments for each in sets))


def test_frechet_ratio_of_the_training_images_is_one():
  rng = np.random.default_rng(4)
  train, test = noise_images(rng, 300), noise_images(rng, 100)
  ratio = frechet_ratio(train, train, test)
  assert ratio.ratio == pytest.approx(1, rel=1e-9)
  assert ratio.num_components == pixels.NUM_COMPONENTS >= 20
  assert 0 < ratio.variance_kept < 1


def test_frechet_ratio_sees_a_shift_and_a_missing_half():
  rng = np.random.default_rng(5)
  train, test = noise_images(rng, 300), noise_images(rng, 100)
  darker = (noise_images(rng, 300) // 2).astype(np.uint8)
  assert frechet_ratio(darker, train, test).ratio > 5
  ramp = np.linspace(0, 255, 300).astype(np.uint8)[:, None, None, None]
  train = train // 4 + ramp // 2
  test = train[rng.permutation(300)[:100]]
  half = train[:150]
  assert frechet_ratio(half, train, test).ratio > 5


def test_frechet_ratio_refuses_too_few_images():
  rng = np.random.default_rng(6)
  train, test = noise_images(rng, 300), noise_images(rng, 20)
  with pytest.raises(ValueError, match="in a set is 20; expected more"):
    frechet_ratio(train, train, test)
  with pytest.raises(ValueError, match="same moments"):
    frechet_ratio(train, train, train)


def test_repeated_images_are_drawn_by_class_and_score_above_one():
  rng = np.random.default_rng(10)
  train, test = noise_images(rng, 300), noise_images(rng, 100)
  train_labels = np.arange(300) % 3
  train[train_labels == 1] //= 8
  labels = np.repeat([0, 2, 7], 40)
  # Drawing the dark class 1 would put the ratio far off.
  bright = train[train_labels != 1]
  few = pixels.repeated_ratio(train, train_labels, test, labels, 5)
  again = pixels.repeated_ratio(train, train_labels, test, labels, 5)
  assert few == again
  own = [
    frechet_ratio(bright[rng.choice(200, 80)], train, test).ratio
    for _ in range(5)
  ]
  assert few[0] == pytest.approx(np.mean(own), rel=0.2)


def test_classifier_scores_real_digits_and_counts_wrong_labels():
  datasets = pytest.importorskip("sklearn.datasets")
  digits = datasets.load_digits()
  images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
  train, test = slice(None, 1400), slice(1400, None)
  classifier = pixels.fit_classifier(images[train], digits.target[train])
  labels = digits.target[test].copy()
  accuracy = pixels.label_accuracy(classifier, images[test], labels)
  assert accuracy > 0.95
  by_class = pixels.accuracy_by_class(classifier, images[test], labels)
  weighted = [np.mean(labels == label) * by_class[label] for label in range(10)]
  assert sum(weighted) == pytest.approx(accuracy)
  wrong = (labels + 1) % 10
  assert pixels.label_accuracy(classifier, images[test], wrong) < 0.05
