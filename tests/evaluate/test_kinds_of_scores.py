"""Scores by name: what they need, what their numbers are called."""

import numpy as np
import pytest
from evaluate.networks import Projection, noise_images

from marjax.evaluate.scores import kinds, statistics
from marjax.evaluate.scores.gathered import Gatherer, Plan
from marjax.evaluate.scores.options import Options

NETWORK = Projection()
FEW = Options(subset_size=40, num_subsets=5, num_sizes=4)
ALL = "fid,sfid,is,pr,kid,fd_infinity,cmmd,accuracy,copies"


def gather(seed, count, names=ALL, network=NETWORK, options=FEW, low=0):
  needs = kinds.needs(kinds.parse(names), options)
  gatherer = Gatherer(Plan(network, needs, count, options), network.params())
  images = noise_images(seed, count, low=low)
  labels = np.arange(count, dtype=np.int32) % 10
  index = np.arange(count)
  gatherer.add(gatherer.sums(images, index, index >= 0, labels))
  return gatherer.gathered()


@pytest.fixture(scope="module")
def seen():
  """Generated, darker images; real ones; and other real ones."""
  return gather(0, 120, low=30), gather(1, 150), gather(2, 120)


def test_all_scores_have_a_number_and_real_images_beside_it(seen):
  result = kinds.compare(ALL, *seen, FEW)
  assert list(result.scores) == [
    "fd_projection",
    "sfid_projection",
    "class_score_projection",
    "class_score_projection_deviation",
    "class_score_projection_unsplit",
    "precision",
    "recall",
    "kid_projection",
    "kid_projection_deviation",
    "fd_projection_infinity",
    "cmmd_projection",
    "label_accuracy",
    "near_copy_rate",
  ]
  assert list(result.real) == list(result.scores)
  for name in ("fd_projection", "sfid_projection", "kid_projection"):
    assert result.scores[name] > 1.5 * result.real[name]
  assert result.scores["cmmd_projection"] > result.real["cmmd_projection"] > 0
  assert result.real["near_copy_rate"] == pytest.approx(0.01, abs=0.01)
  assert kinds.compare("is,accuracy", seen[0]).real == {}


def test_names_are_plain_for_the_network_of_the_fid_only():
  network = Projection(name="inception", distance="fid", class_score="is")
  generated, real = (gather(seed, 120, "fid,sfid", network) for seed in (0, 1))
  result = kinds.compare("fid,sfid", generated, real)
  assert list(result.scores) == ["fid", "sfid"]


def test_intervals_come_on_request():
  options = Options(num_draws=20)
  names = ("fid", "sfid", "is", "pr", "accuracy")
  rows = {"features", "places", "logits"}
  assert kinds.needs(iter(names), options) >= rows
  assert kinds.needs(("fid", "sfid", "is")) & rows == set()
  seen = [
    gather(seed, count, names, options=options, low=low)
    for seed, count, low in ((0, 120, 30), (1, 150, 0), (2, 120, 0))
  ]
  scores, real = kinds.compare(names, *seen, options)
  distances = ["fd_projection", "sfid_projection", "class_score_projection"]
  for name in (*distances, "precision", "recall", "label_accuracy"):
    assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    assert real[f"{name}_low"] <= real[name] <= real[f"{name}_high"]
  for name in distances:
    assert scores[f"{name}_low"] < scores[f"{name}_high"]
  # Sums alone were gathered for no interval.
  few = gather(0, 120, names)
  with pytest.raises(ValueError, match="generated images places are missing"):
    kinds.compare("sfid", few, seen[1], options=options)
  with pytest.raises(ValueError, match="generated images logits are missing"):
    kinds.compare("is", few, options=options)


def test_statistics_do_for_distances_of_moments_only(seen):
  generated, real, _ = seen
  kept = statistics.of_gathered(real).gathered(NETWORK)
  full = kinds.compare("fid,sfid", generated, real).scores
  assert kinds.compare("fid,sfid", generated, kept).scores == full
  line = kinds.compare("fd_infinity", generated, kept, options=FEW).scores
  assert line["fd_projection_infinity"] < full["fd_projection"]
  with pytest.raises(ValueError, match="of the real images features are missi"):
    kinds.compare("kid", generated, kept)
  assert kinds.needs_of_real(("fid", "sfid")) == {"moments", "spatial"}
  assert kinds.needs_of_real(("is", "accuracy")) == set()


def test_sets_that_are_missing_are_named(seen):
  generated, real, _ = seen
  with pytest.raises(ValueError, match="score fid needs real images, and"):
    kinds.compare("fid", generated)
  with pytest.raises(ValueError, match="score copies needs unseen real images"):
    kinds.compare("copies", generated, real)
  with pytest.raises(ValueError, match="generated images features are missing"):
    kinds.compare("pr", generated._replace(features=None), real)
  other = real._replace(network=Projection(name="other"))
  with pytest.raises(ValueError, match="seen by the network other, and"):
    kinds.compare("fid", generated, other)


def test_what_cannot_be_scored_is_refused_before_long_work():
  def refused(message, names, count=1000, **fields):
    network = Projection(**fields)
    with pytest.raises(ValueError, match=message):
      kinds.check_scores(names, network, count, num_classes=10)

  refused("there is no score 'fit'; expected some of fid, sfid", "fid,fit")
  refused("no score is named", "")
  refused("15 images for fid, a distance of 16 features", "fid", 15)
  refused("2047 images for fid", ["fid"], 2047, num_features=2048)
  refused("11 images for sfid", "sfid", 11)
  refused("12 classes apart, and the images have 10", "accuracy", num_logits=12)
  refused("999 images for kid, whose subsets have 1000", "kid", 999)
  few = Options(allow_few=True, subset_size=5)
  kinds.check_scores("fid,sfid,is,kid,pr", NETWORK, 11, few)


def test_few_images_are_refused_on_either_side():
  sets = [gather(seed, 12, "fid") for seed in (0, 1)]
  with pytest.raises(ValueError, match="12 images for fid, a distance of 16"):
    kinds.compare("fid", *sets)
  known = statistics.of_gathered(sets[1]).gathered(NETWORK)
  many = gather(2, 40, "fid")
  with pytest.raises(ValueError, match="12 images for fid, a distance of 16"):
    kinds.compare("fid", many, known)
  allowed = Options(allow_few=True)
  assert kinds.compare("fid", many, known, options=allowed).scores


def test_labels_that_the_network_does_not_know_are_refused(seen):
  generated = seen[0]
  hits = generated.hits - generated.hits * (np.arange(10) == 9)[:, None]
  with pytest.raises(ValueError, match="12 images have no label that the netw"):
    kinds.compare("accuracy", generated._replace(hits=hits))


def test_options_are_checked():
  with pytest.raises(ValueError, match="num_splits"):
    Options(num_splits=0)
  with pytest.raises(ValueError, match="order"):
    Options(order="sorted")
