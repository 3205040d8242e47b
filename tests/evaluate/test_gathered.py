"""Every image counts once, on any mesh, in any batches, after any kill."""

import dataclasses

import jax
import numpy as np
import pytest
from evaluate.networks import Projection, moments_of, noise_images

from marjax.evaluate.scores import gathered
from marjax.evaluate.scores.gathered import Gatherer, Plan
from marjax.parallel.mesh import make_mesh

NETWORK = Projection()
NEEDS = frozenset(gathered.NEEDS)
COUNT = 90


def images_and_labels():
  return noise_images(0, COUNT), np.arange(COUNT, dtype=np.int32) % 10


def batches(size):
  """Batches of one size, the last filled up with indices that are none."""
  images, labels = images_and_labels()
  for start in range(0, COUNT, size):
    index = np.arange(start, start + size)
    is_real = index < COUNT
    rows = np.where(is_real, index, 0)
    yield images[rows], index, is_real, labels[rows]


def gather(size=16, mesh=None, needs=NEEDS):
  gatherer = Gatherer(Plan(NETWORK, needs, COUNT), NETWORK.params(), mesh)
  for batch in batches(size):
    gatherer.add(gatherer.sums(*batch))
  return gatherer.gathered()


def same(one, other, relative):
  for ours, theirs in zip(
    jax.tree.leaves(one[1:]), jax.tree.leaves(other[1:]), strict=True
  ):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * scale)


def test_what_is_gathered_is_what_the_network_sees():
  images, labels = images_and_labels()
  seen = jax.jit(NETWORK)(NETWORK.params(), images)
  result = gather()
  assert result.count == COUNT
  np.testing.assert_allclose(result.features, seen.pooled, rtol=1e-6)
  np.testing.assert_allclose(result.places, seen.spatial, rtol=0, atol=1e-5)
  np.testing.assert_allclose(result.logits, seen.logits, rtol=0, atol=1e-5)
  for part, rows in ((1, seen.pooled), (2, seen.spatial)):
    expected = moments_of(np.asarray(rows))
    scale = np.abs(expected.scatter).max()
    np.testing.assert_allclose(
      result[part].scatter, expected.scatter, rtol=0, atol=1e-6 * scale
    )
  right = np.argmax(seen.logits, 1) == labels
  expected = [(right[labels == k].sum(), 9) for k in range(10)]
  np.testing.assert_array_equal(result.hits, expected)
  np.testing.assert_array_equal(result.classes.counts, [9] * 10)


@pytest.mark.parametrize(
  ("size", "devices"), [(16, 1), (16, 2), (32, 8), (90, 0), (7, 0)]
)
def test_batches_and_meshes_change_nothing(size, devices):
  mesh = None
  if devices:
    mesh = make_mesh(devices=jax.devices()[:devices])
  same(gather(size, mesh), gather(16), 1e-6)


def test_only_what_is_wanted_is_gathered():
  result = gather(needs=frozenset({"moments"}))
  assert result[2:] == (None,) * 6


def test_a_state_goes_on_to_the_same_bits():
  plan = Plan(NETWORK, NEEDS, COUNT)
  first = Gatherer(plan, NETWORK.params())
  second = Gatherer(plan, NETWORK.params())
  parts = list(batches(16))
  for batch in parts[:3]:
    first.add(first.sums(*batch))
  second.restore({name: a.copy() for name, a in first.state().items()})
  np.testing.assert_array_equal(second.missing(), np.arange(48, COUNT))
  for batch in parts[3:]:
    second.add(second.sums(*batch))
  same(second.gathered(), gather(16), 0)
  other = Gatherer(dataclasses.replace(plan, num_images=91), NETWORK.params())
  with pytest.raises(ValueError, match="gathered before holds other arrays"):
    other.restore(first.state())


def test_images_are_counted_once_and_all_of_them():
  gatherer = Gatherer(Plan(NETWORK, NEEDS, COUNT), NETWORK.params())
  batch = next(batches(16))
  sums = gatherer.sums(*batch)
  gatherer.add(sums)
  with pytest.raises(ValueError, match="image 0 was seen twice"):
    gatherer.add(sums)
  with pytest.raises(ValueError, match="74 of 90 images were not seen"):
    gatherer.gathered()
  with pytest.raises(ValueError, match="image 100 among 90"):
    gatherer.add(gatherer.sums(batch[0], batch[1] + 100, *batch[2:]))


def test_features_that_are_not_finite_name_their_image():
  params = NETWORK.params()
  params["logits"][3, 3] = np.nan
  gatherer = Gatherer(Plan(NETWORK, NEEDS, COUNT), params)
  images, index, is_real, labels = next(batches(16))
  with pytest.raises(ValueError, match="projection sees of image 20 is not"):
    gatherer.add(gatherer.sums(images, index + 20, is_real, labels))


def test_a_network_must_have_what_a_score_needs():
  flat = Projection(num_places=0)
  with pytest.raises(ValueError, match="projection has no map"):
    Plan(flat, frozenset({"spatial"}), 5)
  with pytest.raises(ValueError, match="cannot be gathered"):
    Plan(NETWORK, frozenset({"tastes"}), 5)
  with pytest.raises(ValueError, match="5 images for 10 splits"):
    Plan(NETWORK, frozenset({"classes"}), 5)


def test_sets_with_one_plan_share_a_program(monkeypatch):
  traced = []
  look = Projection.__call__

  def noting(network, *args):
    traced.append(network)
    return look(network, *args)

  monkeypatch.setattr(Projection, "__call__", noting)
  network = Projection(name="of this test")
  plan = Plan(network, frozenset({"moments"}), COUNT)
  mesh = make_mesh(devices=jax.devices()[:2])
  for seed in (0, 1):
    params = network.params(seed)
    gatherer = Gatherer(dataclasses.replace(plan), params, mesh)
    for batch in batches(16):
      gatherer.add(gatherer.sums(*batch))
    seen = look(network, params, noise_images(0, COUNT)).pooled
    mean = np.asarray(seen, np.float64).mean(0)
    np.testing.assert_allclose(gatherer.gathered().moments.mean, mean, 1e-6)
  assert traced == [network]
