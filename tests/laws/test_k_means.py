"""k-means finds what is there, never gets worse, and is deterministic."""

import numpy as np
import pytest

from marjax.latents import k_means


def blobs(count=5, size=200, dim=3, spread=0.05, seed=0):
  """Vectors around `count` points that are far from each other."""
  random = np.random.default_rng(seed)
  centres = 4 * random.standard_normal((count, dim))
  noise = spread * random.standard_normal((count, size, dim))
  return np.float32(centres[:, None] + noise).reshape(-1, dim), centres


def fitted(vectors, count, seed=0, start=None):
  centres = k_means.start(vectors, count, seed) if start is None else start
  errors = list(k_means.iterations(vectors, centres))
  return centres, errors


def test_the_error_never_rises_and_ends_at_a_fixed_point():
  random = np.random.default_rng(1)
  vectors = np.float32(random.uniform(-1, 1, (3000, 4)))
  centres, errors = fitted(vectors, 32)
  assert len(errors) > 5
  assert np.all(np.diff(errors) <= 1e-8 * errors[0])
  assert errors[-1] < 0.9 * errors[0]
  ids = k_means.assigned(vectors, centres)
  for i in range(32):
    np.testing.assert_allclose(
      centres[i], vectors[ids == i].mean(axis=0), atol=1e-6
    )


def test_an_assignment_is_the_nearest_centre():
  random = np.random.default_rng(2)
  vectors, centres = (
    np.float32(random.standard_normal((n, 6))) for n in (500, 40)
  )
  distances = np.square(vectors[:, None] - centres).sum(axis=-1)
  ids = k_means.assigned(vectors, centres)
  np.testing.assert_array_equal(ids, distances.argmin(axis=1))


def test_chunks_change_nothing(monkeypatch):
  vectors, _ = blobs()
  whole = k_means.assigned(vectors, vectors[::100].copy())
  monkeypatch.setattr(k_means, "CHUNK_NUMBERS", 10 * 77)
  parts = k_means.assigned(vectors, vectors[::100].copy())
  np.testing.assert_array_equal(whole, parts)


def test_it_finds_groups_that_are_there():
  vectors, truth = blobs()
  centres, errors = fitted(vectors, 5)
  distances = np.square(truth[:, None] - centres).sum(axis=-1)
  assert sorted(distances.argmin(axis=1)) == [0, 1, 2, 3, 4]
  assert distances.min(axis=1).max() < 1e-3
  assert errors[-1] == pytest.approx(3 * 0.05**2, rel=0.1)


def test_a_seed_decides():
  random = np.random.default_rng(3)
  vectors = np.float32(random.uniform(-1, 1, (1000, 4)))
  one, again, other = (fitted(vectors, 16, seed)[0] for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert not np.array_equal(one, other)


def test_the_start_takes_different_vectors_in_proportion_to_distance():
  vectors = np.float32([[0], [0], [0], [1], [3]])
  firsts, pairs = [], []
  for seed in range(600):
    first, second = k_means.start(vectors, 2, seed)[:, 0]
    firsts.append(first)
    pairs.append((first, second))
  assert np.mean(np.equal(firsts, 0)) == pytest.approx(3 / 5, abs=0.06)
  after_zero = [second for first, second in pairs if first == 0]
  # 1² against 3²
  assert np.mean(np.equal(after_zero, 3)) == pytest.approx(0.9, abs=0.05)
  assert all(first != second for first, second in pairs)


def test_every_different_vector_can_be_a_centre_and_no_more():
  vectors = np.float32([[0], [1], [1], [2], [2], [2]])
  assert sorted(k_means.start(vectors, 3, 0)[:, 0]) == [0, 1, 2]
  with pytest.raises(ValueError, match=r"are 3 different vectors; expected"):
    k_means.start(vectors, 4, 0)


def test_centres_without_vectors_move_to_the_farthest():
  vectors, _ = blobs(count=4, spread=0.01)
  # All but one are where nothing is nearest to them.
  centres = np.float32([[0, 0, 0], *(100 * np.eye(3))])
  _, errors = fitted(vectors, 4, start=centres)
  assert np.all(np.diff(errors) <= 1e-8 * errors[0])
  assert errors[-1] < 1e-2 * errors[0]
  assert len(np.unique(k_means.assigned(vectors, centres))) == 4


def test_it_is_no_worse_than_scikit_learns():
  cluster = pytest.importorskip("sklearn.cluster")
  random = np.random.default_rng(4)
  vectors = np.float32(random.standard_normal((2000, 4)))
  theirs = cluster.KMeans(24, n_init=1, random_state=0).fit(vectors)
  ours = min(fitted(vectors, 24, seed)[1][-1] for seed in range(3))
  assert ours <= 1.05 * theirs.inertia_ / len(vectors)


def test_products_choose_what_differences_choose(monkeypatch):
  """The same centres, among vectors that are equal and all but equal, too."""
  rng = np.random.default_rng(0)
  some = rng.normal(3, 1, size=(200, 48)).astype(np.float32)
  close = some + 1e-4 * rng.normal(size=some.shape).astype(np.float32)
  vectors = np.concatenate([some, some[:50], close])
  centres = k_means.start(vectors, 380, 7)
  assert len(np.unique(centres, axis=0)) == 380
  with pytest.raises(ValueError, match="are 400 different vectors"):
    k_means.start(vectors, 401, 7)

  def plain(vectors, norms, other):
    return k_means._squares(vectors, other)

  monkeypatch.setattr(k_means, "_squares_of", plain)
  np.testing.assert_array_equal(centres, k_means.start(vectors, 380, 7))
