"""The order of examples: one line, cut into batches, shared by hosts."""

import itertools
from contextlib import closing

import numpy as np
import pytest

from marjax.data import batches, examples


@pytest.fixture
def config(make_config):
  """Ten synthetic images: epochs end inside batches of four."""
  return make_config("synthetic", num_examples=10, flip=True)


def assert_same(left, right):
  assert left.keys() == right.keys()
  for name in left:
    assert left[name].dtype == right[name].dtype
    np.testing.assert_array_equal(left[name], right[name])


def ids_of(found, steps):
  return np.concatenate([found[step]["id"] for step in range(steps)])


def test_a_batch_is_what_training_takes(config):
  batch = batches.Batches(config, "train", 4)[0]
  assert batch["image"].shape == (4, 8, 8, 1)
  assert batch["image"].dtype == np.float32
  assert batch["label"].dtype == batch["id"].dtype == np.int32
  assert batch["label"].shape == batch["id"].shape == (4,)


def test_pixels_run_from_minus_one_to_one(make_config):
  batch = batches.Batches(make_config(), "train", 64)[0]
  assert (batch["image"].min(), batch["image"].max()) == (-1, 1)


def test_images_are_the_source_s_or_their_mirror_images(config):
  images, labels, ids = batches.load_all(config, "train")
  images = images / 127.5 - 1
  mirrored = []
  for step in range(20):
    batch = batches.Batches(config, "train", 4)[step]
    for image, label, i in zip(*batch.values(), strict=True):
      assert (label, i) == (labels[i], ids[i])
      mirrored.append(np.abs(image - images[i]).max() > 1e-6)
      expected = images[i, :, ::-1] if mirrored[-1] else images[i]
      np.testing.assert_allclose(image, expected, atol=1e-6)
  assert 0.3 < np.mean(mirrored) < 0.7


def test_no_flip_unless_asked_and_none_in_order(make_config, config):
  plain = make_config("synthetic", num_examples=10)
  images = batches.load_all(plain, "train").images / 127.5 - 1
  for found in (
    batches.Batches(plain, "train", 10),
    batches.Batches(config, "train", 10, shuffle=False),
  ):
    for step in range(5):
      batch = found[step]
      np.testing.assert_allclose(batch["image"], images[batch["id"]], atol=1e-6)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("from_step", [0, 7])
def test_iterating_is_indexing(make_config, config, num_threads, from_step):
  found = batches.Batches(config, "train", 4)
  threaded = make_config(
    "synthetic", num_examples=10, flip=True, num_threads=num_threads
  )
  iterator = batches.Batches(threaded, "train", 4).iterate(from_step)
  with closing(iterator):
    for step, batch in enumerate(itertools.islice(iterator, 9), from_step):
      assert_same(batch, found[step])
  with pytest.raises(ValueError, match="closed"):
    next(iterator)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2, 3, 6, 7], [5]])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_process_reads_its_rows_of_the_one_batch(config, rows, shuffle):
  whole = batches.Batches(config, "train", 8, shuffle)
  share = batches.Batches(config, "train", 8, shuffle, np.asarray(rows))
  for step in range(6):
    expected = {name: array[rows] for name, array in whole[step].items()}
    assert_same(share[step], expected)


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_each_epoch_visits_each_image_once(config, batch_size):
  ids = ids_of(batches.Batches(config, "train", batch_size), 50)
  epochs = ids[: len(ids) // 10 * 10].reshape(-1, 10)
  for epoch in epochs:
    assert sorted(epoch) == list(range(10))
  assert len(np.unique(epochs, axis=0)) == len(epochs)


def test_digits_epochs(make_config):
  found = batches.Batches(make_config(), "train", 64)
  assert found.num_examples == 1347
  ids = ids_of(found, 43)[: 2 * 1347].reshape(2, 1347)
  expected = np.sort(batches.load_all(make_config(), "train").ids)
  np.testing.assert_array_equal(np.sort(ids), np.stack([expected] * 2))


def test_the_seed_decides_the_order(make_config, config):
  same = ids_of(batches.Batches(config, "train", 4), 5)
  np.testing.assert_array_equal(
    same, ids_of(batches.Batches(config, "train", 4), 5)
  )
  other = make_config("synthetic", num_examples=10, seed=1)
  assert (same != ids_of(batches.Batches(other, "train", 4), 5)).any()
  in_order = batches.Batches(config, "train", 4, shuffle=False)
  np.testing.assert_array_equal(ids_of(in_order, 5), np.arange(20) % 10)


def test_the_order_is_the_same_in_every_version_of_numpy():
  order, coins = batches.plan(8, seed=0, epoch=0)
  assert order.tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
  assert coins.astype(int).tolist() == [1, 1, 1, 0, 1, 0, 1, 0]


def test_every_place_is_as_likely_for_every_image():
  places = np.zeros((6, 6))
  for epoch in range(3000):
    places[np.arange(6), batches.plan(6, 5, epoch)[0]] += 1
  # 500 expected, standard deviation 20.
  assert np.abs(places - 500).max() < 100


def test_small_sets_are_read_once_large_ones_are_not_kept(config, monkeypatch):
  kept = batches.Batches(config, "train", 4)
  monkeypatch.setattr(examples, "MEMORY_LIMIT", 10 * 64 - 1)
  unkept = batches.Batches(config, "train", 4)
  reads = {kept: [], unkept: []}
  for found, indices in reads.items():
    source = found._examples.source
    monkeypatch.setattr(found._examples, "source", Spy(source, indices))
  for step in range(10):
    assert_same(kept[step], unkept[step])
  assert sorted(reads[kept]) == list(range(10))
  assert len(reads[unkept]) == 40


class Spy:
  def __init__(self, source, indices):
    self._source, self._indices = source, indices

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    self._indices.append(index)
    return self._source[index]


def test_a_batch_belongs_to_the_caller(config):
  found = batches.Batches(config, "train", 10)
  before = found[0]
  for array in found[0].values():
    array[:] = 0
  assert_same(found[0], before)


@pytest.mark.parametrize(
  ("batch_size", "rows"), [(0, None), (8, [7, 8]), (8, [-1]), (8, [])]
)
def test_rows_that_are_not_in_the_batch(config, batch_size, rows):
  rows = None if rows is None else np.asarray(rows, int)
  with pytest.raises(ValueError, match="at least one example, and rows in 0"):
    batches.Batches(config, "train", batch_size, rows=rows)


def test_more_images_asked_for_than_there_are(config):
  with pytest.raises(
    ValueError, match="10 images; expected at least one batch of 11: lower"
  ):
    batches.Batches(config, "train", 11)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_stops_the_iterator(folder, make_config, label):
  config = make_config(
    "folder", data_dir=str(folder), num_classes=3, channels=3
  )
  found = batches.Batches(config, "train", 2)
  source = found._examples.source
  source._files = [(path, label) for path, _ in source._files]
  with (
    closing(found.iterate()) as iterator,
    pytest.raises(
      ValueError, match=rf"has label {label}; expected 0 \.\. 2: s"
    ),
  ):
    next(iterator)
