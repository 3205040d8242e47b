"""Each score on the same 2 000 images as other programs compute it.

Crops of two photographs against other crops with noise, seen by a random
projection: every program gets the same features and logits, so differences are
those of the formulas. What is measured here stands in docs/scores.md.
"""

import warnings

import numpy as np
import pytest
from evaluate.networks import Projection
from peers import peer

from marjax.evaluate.scores import kinds, pairs
from marjax.evaluate.scores.gathered import Gatherer, Plan
from marjax.evaluate.scores.options import Options

COUNT, SIZE, BATCH = 2000, 32, 500
NETWORK = Projection(image_size=SIZE, num_features=64, num_logits=20)
NAMES = "fid,is,pr,kid"
OPTIONS = Options(num_subsets=20)


def crops(seed, noise):
  """Crops uint8 [COUNT, SIZE, SIZE, 3] of scikit-learn's two photographs."""
  datasets = pytest.importorskip("sklearn.datasets")
  rng = np.random.default_rng(seed)
  photos = [datasets.load_sample_image(f"{n}.jpg") for n in ("china", "flower")]
  images = np.empty((COUNT, SIZE, SIZE, 3), np.uint8)
  for image in images:
    photo = photos[rng.integers(2)]
    row, column = (rng.integers(side - SIZE) for side in photo.shape[:2])
    image[:] = photo[row : row + SIZE, column : column + SIZE]
  noisy = images + rng.normal(0, noise, images.shape) if noise else images
  return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def seen():
  """(generated, real): what was gathered, and features and logits in torch."""
  torch = pytest.importorskip("torch")
  sets = []
  for seed, noise in ((0, 20), (1, 0)):
    needs = kinds.needs(kinds.parse(NAMES))
    plan = Plan(NETWORK, needs, COUNT, OPTIONS)
    gatherer = Gatherer(plan, NETWORK.params())
    images, logits = crops(seed, noise), []
    for start in range(0, COUNT, BATCH):
      index = np.arange(start, start + BATCH)
      batch = images[index]
      gatherer.add(gatherer.sums(batch, index, index >= 0))
      logits.append(np.asarray(NETWORK(gatherer.params, batch).logits))
    gathered = gatherer.gathered()
    tensors = [torch.tensor(gathered.features)]
    tensors.append(torch.tensor(np.concatenate(logits)))
    sets.append((gathered, tensors))
  return sets


@pytest.fixture(scope="module")
def ours(seen):
  (generated, _), (real, _) = seen
  return kinds.compare(NAMES, generated, real, options=OPTIONS).scores


def compare(name, value, other, relative):
  """Within a relative difference, which `pytest -s` shows."""
  print(f"{name:40} {value:.10g} {other:.10g} {value / other - 1:.1e}")
  assert value == pytest.approx(other, rel=relative)


def test_frechet_distances(seen, ours):
  (_, (generated, _)), (_, (real, _)) = seen
  linalg = pytest.importorskip("scipy.linalg")
  rows = [part.numpy().astype(np.float64) for part in (generated, real)]
  means = [part.mean(0) for part in rows]
  covariances = [np.cov(part, rowvar=False) for part in rows]
  value = ours["fd_projection"]
  both = covariances[0] @ covariances[1]
  expected = np.sum((means[0] - means[1]) ** 2)
  expected += np.trace(covariances[0] + covariances[1])
  expected -= 2 * np.trace(linalg.sqrtm(both).real)
  compare("fid scipy.linalg.sqrtm", value, expected, 1e-6)
  fidelity = peer("torch_fidelity.metric_fid")
  statistics = [
    {"mu": mean, "sigma": covariance}
    for mean, covariance in zip(means, covariances, strict=True)
  ]
  theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
  theirs = theirs["frechet_inception_distance"]
  compare("fid torch-fidelity", value, theirs, 1e-6)
  pytorch_fid = peer("pytorch_fid.fid_score")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of sqrtm's `disp`
    try:
      theirs = pytorch_fid.calculate_frechet_distance(
        means[0], covariances[0], means[1], covariances[1]
      )
    except TypeError as error:  # SciPy 1.18 has no `disp`
      assert "disp" in str(error)
      return
  compare("fid pytorch-fid", value, theirs, 1e-6)


def test_class_scores(seen, ours):
  (_, (_, logits)), _ = seen
  fidelity = peer("torch_fidelity.metric_isc")
  theirs = fidelity.isc_features_to_metric(logits)
  mean, deviation = theirs.values()
  compare("is torch-fidelity", ours[NETWORK.class_score], mean, 1e-6)
  name = f"{NETWORK.class_score}_deviation"
  compare("is deviation", ours[name], deviation, 1e-4)
  # Not shuffled, the splits are others.
  theirs = fidelity.isc_features_to_metric(logits, shuffle=False)
  given = next(iter(theirs.values()))
  assert abs(given / mean - 1) > 1e-4


def test_kernel_distances(seen, ours):
  (_, (generated, _)), (_, (real, _)) = seen
  fidelity = peer("torch_fidelity.metric_kid")

  def theirs(*features):
    answer = fidelity.kid_features_to_metric(
      *features, kid_subsets=20, kid_subset_size=1000, verbose=False
    )
    return answer.values()

  mean, deviation = theirs(generated, real)
  # Theirs is float32: its error is of the kernel's size, not the distance's.
  compare("kid torch-fidelity", ours["kid_projection"], mean, 1e-3)
  compare("kid deviation", ours["kid_projection_deviation"], deviation, 1e-3)
  exact, _ = theirs(generated.double(), real.double())
  compare("kid of float64", ours["kid_projection"], exact, 1e-9)


def test_precision_and_recall(seen, ours, monkeypatch):
  (gathered, (generated, _)), (others, (real, _)) = seen
  wide = [part.numpy().astype(np.float64) for part in (generated, real)]

  def distances(one, other):
    lengths = [(rows**2).sum(1) for rows in (one, other)]
    squares = lengths[0][:, None] + lengths[1] - 2 * one @ other.T
    return np.sqrt(np.maximum(squares, 0))

  def share(points, centres):
    own = np.sort(distances(centres, centres), axis=1)[:, 3]
    return (distances(points, centres) <= own).any(1).mean()

  compare("precision numpy", ours["precision"], share(*wide), 1e-3)
  compare("recall numpy", ours["recall"], share(*wide[::-1]), 1e-3)
  fidelity = peer("torch_fidelity.metric_prc")
  answer = fidelity.prc_features_to_metric(generated, real, verbose=False)
  for name in ("precision", "recall"):
    compare(f"{name} torch-fidelity", ours[name], answer[name], 1e-3)
  # Swapped, as torch-fidelity had them before 0.4, they would be seen.
  assert abs(ours["precision"] - ours["recall"]) > 0.05
  monkeypatch.setattr(pairs, "TILE", 512)
  tiled = kinds.compare("pr", gathered, others).scores
  assert tiled["precision"] == pytest.approx(ours["precision"], rel=1e-3)
