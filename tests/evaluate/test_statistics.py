"""Files of statistics: all layouts are read, ours says what it is of."""

import io
import pickle

import numpy as np
import pytest
from evaluate.networks import Projection, moments_of, noise_images
from peers import peer

import marjax
from marjax.evaluate.scores import frechet, statistics
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.scores.statistics import About, Statistics

NETWORK = Projection()
FID = Projection(name="inception", distance="fid")


def sets(size=16, count=50):
  rng = np.random.default_rng(0)
  return [moments_of(rng.normal(size=(count, n))) for n in (size, 12)]


def ours(**fields):
  pooled, spatial = sets()
  seen = Gathered(NETWORK, pooled, spatial)
  return statistics.of_gathered(seen, source="photos", crop="ADM", **fields)


def save(path, **arrays):
  np.savez(path, **arrays)
  return path


def test_ours_say_what_they_are_of_and_come_back_to_the_bit(tmp_path):
  path = tmp_path / "ours.npz"
  images = noise_images(0, 3)
  digest = statistics.write(path, ours(image_size=8, weights="ab"), images)
  result = statistics.read(path)
  about = result.about
  expected = About(
    "projection", "ab", "photos", "ADM", 8, 50, marjax.__version__
  )
  assert about == expected
  for one, other in zip(result[1:], ours()[1:], strict=True):
    np.testing.assert_array_equal(one, other)
  with np.load(path) as file:
    assert digest in str(file["about"])
    np.testing.assert_array_equal(file["arr_0"], images)
  again = tmp_path / "again.npz"
  statistics.write(again, ours(image_size=8, weights="ab"), images)
  assert again.read_bytes() == path.read_bytes()
  with pytest.raises(FileExistsError):
    statistics.write(path, ours())


def test_layouts_of_other_programs_are_read(tmp_path):
  pooled, spatial = sets()
  mu, sigma = pooled.mean, pooled.covariance
  places = {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
  images = noise_images(0, 4)
  layouts = {
    "pytorch_fid": {"mu": mu, "sigma": sigma},
    "mar": {"mu": mu.astype(np.float32), "sigma": sigma.astype(np.float32)},
    "meanflow": {"ref_mu": mu, "ref_sigma": sigma},
    "adm": {"mu": mu, "sigma": sigma, **places, "arr_0": images},
  }
  for name, arrays in layouts.items():
    result = statistics.read(save(tmp_path / f"{name}.npz", **arrays))
    real = result.gathered(FID)
    assert frechet.distance(real.moments, pooled) < 1e-4
    assert real.moments.mean.dtype == np.float64
    assert (real.spatial is not None) == (name == "adm")
    assert result.about == About()
    assert real.features is None


def test_others_read_ours(tmp_path):
  pytorch_fid = peer("pytorch_fid.fid_score")
  path = tmp_path / "ours.npz"
  statistics.write(path, ours())
  mean, covariance = pytorch_fid.compute_statistics_of_path(
    str(path), None, 1, 16, "cpu"
  )
  np.testing.assert_array_equal(mean, ours().mean)
  np.testing.assert_array_equal(covariance, ours().covariance)


def test_torch_fidelity_takes_ours_from_its_cache_and_we_take_its(tmp_path):
  torch = pytest.importorskip("torch")
  cached = peer("torch_fidelity.utils").cache_lookup_one_recompute_on_miss
  options = {"cache_root": str(tmp_path), "cache": True, "verbose": False}
  statistics.write(tmp_path / "ours.pt", ours())

  def never():
    raise AssertionError("they were not in the cache")

  theirs = cached("ours", never, **options)
  np.testing.assert_array_equal(theirs["mu"], ours().mean)
  np.testing.assert_array_equal(theirs["sigma"], ours().covariance)
  cached("theirs", lambda: theirs, **options)
  result = statistics.read(tmp_path / "theirs.pt")
  np.testing.assert_array_equal(result.mean, ours().mean)
  np.testing.assert_array_equal(result.covariance, ours().covariance)
  assert result.about == About()
  torch.save({"mu": ours().mean, "sigma": print}, tmp_path / "bad.pt")
  with pytest.raises(ValueError, match="is refused and nothing of it was run"):
    statistics.read(tmp_path / "bad.pt")


def test_statistics_of_another_network_are_refused(tmp_path):
  with pytest.raises(ValueError, match="16 features of projection, and the im"):
    ours().gathered(FID)
  unknown = Statistics(About(), *ours()[1:])
  with pytest.raises(ValueError, match="Inception network and does not say"):
    unknown.gathered(NETWORK)
  with pytest.raises(ValueError, match="inception, which has 20"):
    unknown.gathered(
      Projection(name="inception", distance="fid", num_features=20)
    )
  with pytest.raises(ValueError, match="12 features of the second map and"):
    unknown.gathered(Projection(distance="fid", num_places=3))
  with pytest.raises(ValueError, match="other weights of projection"):
    ours(weights="a" * 64).gathered(NETWORK, "b" * 64)
  assert ours(weights="a").gathered(NETWORK, "a").count == 50


BAD = {
  "arrays x": {"x": np.ones(2)},
  "no .npz file": {"mu": np.array([{}], dtype=object), "sigma": np.eye(1)},
  "of type <U3": {"mu": np.array(["one"]), "sigma": np.eye(1)},
  r"shapes \(3,\) and \(2, 2\)": {"mu": np.ones(3), "sigma": np.eye(2)},
  "not finite": {"mu": np.ones(2), "sigma": np.diag([1, np.nan])},
  "is no covariance": {"mu": np.ones(2), "sigma": np.array([[1, 2], [0, 1.0]])},
  "no negative variances": {"mu": np.ones(2), "sigma": np.diag([1, -1.0])},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_refused(tmp_path, message):
  path = save(tmp_path / "bad.npz", **BAD[message])
  with pytest.raises(ValueError, match=message):
    statistics.read(path)


def test_pickles_and_damaged_files_are_refused(tmp_path):
  path = tmp_path / "some.npz"
  with pytest.raises(FileNotFoundError, match="there are no statistics at"):
    statistics.read(path)
  for content in (pickle.dumps({"fid": {"mu": 1}}), b"", b"PK\x03\x04 and"):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no \.npz file of arrays"):
      statistics.read(path)
  array = io.BytesIO()
  np.save(array, np.eye(3))
  path.write_bytes(array.getvalue())
  with pytest.raises(ValueError, match=r"no \.npz file of arrays"):
    statistics.read(path)
  path.unlink()
  statistics.write(path, ours())
  content = bytearray(path.read_bytes())
  content[600] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match="is damaged"):
    statistics.read(path)


def test_numbers_that_were_changed_are_refused(tmp_path):
  path = tmp_path / "ours.npz"
  statistics.write(path, ours())
  with np.load(path) as file:
    arrays = dict(file)
  save(path, **{**arrays, "mu": arrays["mu"] + 1e-9})
  with pytest.raises(ValueError, match="are not those that were written"):
    statistics.read(path)
  about = str(arrays["about"]).replace("photos", "flowers")
  save(path, **{**arrays, "about": np.array(about)})
  with pytest.raises(ValueError, match="was changed or damaged"):
    statistics.read(path)
