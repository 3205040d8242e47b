"""A model's images through a network: the same on any mesh and batch."""

import dataclasses
import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from evaluate.networks import Projection, noise_images

from marjax.evaluate import begun, stream
from marjax.evaluate.part import Clock, Part
from marjax.evaluate.scores.gathered import Gatherer, Plan
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline

NETWORK = Projection(channels=1)
NEEDS = frozenset({"moments", "classes", "features", "hits"})
N = 40


def make_stream(
  mesh, batch_size, experiment=small.EXPERIMENT, needs=NEEDS, num_images=N
):
  params = jax.device_put(small.params(), mesh.devices.flat[0])
  pipe = Pipeline.of_experiment(experiment, params, mesh)
  pipe = dataclasses.replace(pipe, params=placed(params, mesh))
  plan = Plan(NETWORK, needs, num_images)
  gatherer = Gatherer(plan, NETWORK.params(), mesh)
  return stream.Stream(pipe, plan, gatherer.params, 3, batch_size), gatherer


def placed(params, mesh):
  from marjax.parallel.rules import replicated

  return jax.device_put(params, replicated(mesh))


def one_device():
  return make_mesh(1, devices=jax.devices()[:1])


def seen(a_stream, gatherer, settings=None, start=0):
  """What was gathered, and all images."""
  images = []
  for batch in a_stream.run(a_stream.pipe.settings(settings), start):
    gatherer.add(batch.sums)
    images.append(np.asarray(batch.images)[: batch.count])
  return gatherer.gathered(), np.concatenate(images)


@pytest.fixture(scope="module")
def alone():
  """One device, batches of 16: 40 images are two batches and a half."""
  return seen(*make_stream(one_device(), 16))


def test_images_are_those_of_the_pipeline(alone):
  a_stream, gatherer = make_stream(one_device(), 16)
  labels = np.arange(N) % 10
  images = a_stream.pipe.generate(labels, seed=3, batch_size=16)
  np.testing.assert_array_equal(alone[1], images)
  assert images.std() > 10
  index = np.arange(N)
  gatherer.add(gatherer.sums(images, index, index >= 0, labels))
  compare(alone[0], gatherer.gathered())
  # Every image once, four of each class, padding nowhere.
  assert alone[0].hits[:, 1].tolist() == [4] * 10
  assert alone[0].count == N


def compare(one, other):
  """Statistics are equal to 1e-6 of their size, features to rounding."""
  for name in ("mean", "scatter"):
    mine, theirs = (getattr(part.moments, name) for part in (one, other))
    np.testing.assert_allclose(mine, theirs, atol=1e-6 * np.abs(theirs).max())
  for mine, theirs in zip(one.classes, other.classes, strict=True):
    np.testing.assert_allclose(mine, theirs, atol=1e-6 * np.abs(theirs).max())
  np.testing.assert_array_equal(one.hits, other.hits)
  np.testing.assert_allclose(one.features, other.features, atol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_see_what_one_does(alone, sizes):
  mesh = make_mesh(*sizes)
  together, images = seen(*make_stream(mesh, 16))
  np.testing.assert_array_equal(images, alone[1])
  compare(together, alone[0])


def test_other_batches_see_the_same(alone):
  compare(seen(*make_stream(one_device(), 24))[0], alone[0])


class Noise(stream.Stream):
  """Noise in the place of a model's images."""

  def _batch(self, static, settings, start):
    count = min(self.batch_size, self.plan.num_images - start)
    index = np.arange(start, start + self.batch_size)
    is_real = index < start + count
    images = noise_images(start, self.batch_size, channels=1)
    labels = self.labels(index)
    sums = self.program(self.params, images, index, is_real, labels)
    is_fine = np.ones((2, self.batch_size), bool)
    return stream.Seen(start, count, sums, jnp.asarray(images)), is_fine

  @functools.cached_property
  def program(self):
    return jax.jit(self.plan.sums)


def peak(folder, num_images):
  """Bytes of the host, at most, while a run goes on and saves its sums."""
  needs = frozenset({"moments", "spatial", "classes"})
  network = Projection(channels=1, num_features=256)
  pipe = Pipeline.of_experiment(small.EXPERIMENT, {}, one_device())
  plan = Plan(network, needs, num_images)
  a_stream = Noise(pipe, plan, network.params(), 0, 500)
  settings = small.EXPERIMENT.sampling.for_model(small.MODEL)
  began = begun.Begun(folder, saved_at=-1e9)
  tracemalloc.start()
  part = Part(a_stream, settings, began, str(num_images), "noise")
  seen, shown = part.run(Clock(), None, is_saving=False)
  highest = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert seen.count == num_images
  assert shown.shape == (20, 8, 8, 1)
  return highest


def test_memory_of_the_host_is_that_of_a_batch(tmp_path):
  peak(tmp_path, 1000)  # what tracing takes, and imports
  few, many = (peak(tmp_path, count) for count in (2_000, 50_000))
  # A few bytes of an image say whether it was seen and in which split it is;
  # its pixels would be 64, its features 1024.
  assert many - few < 10 * 50_000
