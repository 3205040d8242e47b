"""Scoring sets of images that are there, and statistics of them."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from evaluate.networks import Projection, moments_of, noise_images
from PIL import Image
from sentences import refuses

from marjax.cli import main
from marjax.cli.score import place
from marjax.evaluate import score_set, set_statistics, sets
from marjax.evaluate.networks import kinds as networks
from marjax.evaluate.networks import weights
from marjax.evaluate.scores import frechet, statistics
from marjax.evaluate.scores.options import Options
from marjax.evaluate.seen import Taken, load_eye, look

NETWORK = Projection()
OPTIONS = Options(subset_size=20, num_subsets=5)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """The weights of the network."""
  path = tmp_path_factory.mktemp("weights") / "projection.safetensors"
  weights.write(path, NETWORK, NETWORK.params(), {})
  return path


@pytest.fixture(scope="module")
def eye(file):
  """The network, on all devices."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(networks.NETWORKS, "projection", NETWORK)
    return load_eye("projection", str(file), OPTIONS)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """Archives of images by name: real ones, darker ones, other sizes."""
  folder = tmp_path_factory.mktemp("sets")
  arrays = {
    "real": noise_images(0, 130),
    "more": noise_images(1, 60),
    "dark": noise_images(2, 50, high=120),
    "large": noise_images(3, 60, size=9),
  }
  for name, images in arrays.items():
    np.savez(folder / f"{name}.npz", images)
  return {name: folder / f"{name}.npz" for name in arrays}


@pytest.fixture(scope="module")
def report(eye, places):
  """Of darker images against real ones."""
  return score_set.score(places["dark"], places["real"], eye, "fid,kid,copies")


def images_of(path):
  """Whatever lies in an archive."""
  with np.load(path) as file:
    return file["arr_0"]


def distance(one, other):
  """The Fréchet distance of images, without batches."""
  rows = (
    np.asarray(NETWORK(NETWORK.params(), images).pooled)
    for images in (one, other)
  )
  return frechet.distance(*map(moments_of, rows))


def test_scores_are_those_of_the_images(report, places):
  dark, real = (images_of(places[name]) for name in ("dark", "real"))
  chosen = sets.choose(130, 50)
  rest = sets.others(130, chosen, 50)
  expected = distance(dark, real[chosen])
  floor = distance(real[rest], real[chosen])
  assert expected > 2 * floor
  scores, beside = report["scores"], report["real_against_real"]
  np.testing.assert_allclose(scores["fd_projection"], expected, rtol=1e-5)
  np.testing.assert_allclose(beside["fd_projection"], floor, rtol=1e-5)
  assert scores.keys() == beside.keys()
  assert {"kid_projection", "near_copy_rate"} <= scores.keys()


def test_a_report_says_what_was_compared(report, places):
  json.dumps(report)
  counts = [report[part]["count"] for part in ("images", "against", "control")]
  assert counts == [50, 50, 50]
  assert report["against"]["of"] == 130
  hashes = {
    report[x]["pixels_sha256"] for x in ("images", "against", "control")
  }
  assert len(hashes) == 3
  table = score_set.table(report)
  value = report["real_against_real"]["fd_projection"]
  assert f"{value:.5g}" in table
  assert score_set.NO_CONTROL not in table


def test_a_folder_scores_as_an_archive_does(report, eye, places, tmp_path):
  for i, image in enumerate(images_of(places["dark"])):
    folder = tmp_path / "dark" / f"{i // 25}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{i:02d}.png")
  again = score_set.score(
    tmp_path / "dark",
    places["real"],
    eye,
    "fid",
    control=places["more"],
    taken=Taken(batch_size=40),
  )
  one, other = report["images"], again["images"]
  assert one["pixels_sha256"] == other["pixels_sha256"]
  name = "fd_projection"
  np.testing.assert_allclose(
    again["scores"][name], report["scores"][name], rtol=1e-5
  )
  assert "more.npz" in again["control"]["source"]
  assert again["control"]["count"] == 50


def test_too_few_real_images_for_a_control(eye, places):
  report = score_set.score(places["dark"], places["more"], eye, "fid")
  assert report["control"] is None
  assert report["real_against_real"] == {}
  assert score_set.NO_CONTROL in score_set.table(report)
  refuses(
    lambda: score_set.score(places["dark"], places["more"], eye, "copies"),
    "near copies .* 50 real images .*expected --control",
  )


@pytest.fixture(scope="module")
def reference(eye, places, tmp_path_factory):
  """Statistics of the real images, with some of them inside."""
  out = tmp_path_factory.mktemp("statistics") / "real.npz"
  set_statistics.write(places["real"], eye, out, num_samples=60)
  return out


def test_statistics_stand_for_images(reference, eye, places):
  about = statistics.read(reference).about
  assert (about.network, about.count, about.image_size) == (
    "projection",
    130,
    8,
  )
  assert about.weights == eye.digest
  real = images_of(places["real"])
  every = Taken().choose(sets.open_set(places["real"]), None)
  seen = look(every, eye, frozenset({"moments"}), Taken())
  assert seen.about["pixels_sha256"] in about.source
  assert about.crop.startswith("none")
  dark = images_of(places["dark"])
  report = score_set.score(
    places["dark"], reference, eye, "fid,sfid", control=places["more"]
  )
  name = "fd_projection"
  np.testing.assert_allclose(
    report["scores"][name], distance(dark, real), rtol=1e-5
  )
  control = images_of(places["more"])[sets.choose(60, 50)]
  np.testing.assert_allclose(
    report["real_against_real"][name], distance(control, real), rtol=1e-5
  )
  assert report["against"]["count"] == 130
  assert "pixels_sha256" not in report["against"]  # not looked at again


def test_distances_by_moments_and_recall_by_the_images_beside(
  reference, eye, places, tmp_path
):
  np.savez(tmp_path / "inside.npz", images_of(reference))
  assert len(images_of(reference)) == 60
  both = score_set.score(places["dark"], reference, eye, "fid,pr")
  alone = score_set.score(
    places["dark"],
    tmp_path / "inside.npz",
    eye,
    "fid,pr",
    taken=Taken(num_real=60),
  )
  for name in ("precision", "recall"):
    assert both["scores"][name] == alone["scores"][name]
  expected = distance(images_of(places["dark"]), images_of(places["real"]))
  name = "fd_projection"
  np.testing.assert_allclose(both["scores"][name], expected, rtol=1e-5)
  assert both["scores"][name] != alone["scores"][name]


def test_what_cannot_be_compared_is_refused(reference, eye, places, tmp_path):
  def score(images, against, names="fid", **taken):
    return lambda: score_set.score(
      places[images], against, eye, names, taken=Taken(**taken)
    )

  real = places["real"]
  refuses(
    score("large", real), "cannot take images of 9 × 9|are 8 × 8 in RGB, "
  )
  refuses(score("large", reference), "images of 8 pixels, .* are 9 × 9 in RGB")
  refuses(score("real", real), "is named twice, .* real ones; expected two")
  again = real.parent / ".." / real.parent.name / "dark.npz"
  refuses(score("dark", again), "is named twice")
  refuses(
    lambda: score_set.score(places["dark"], real, eye, "fid", control=again),
    "is named twice, as the images and as the control",
  )
  refuses(score("dark", real, num_images=15), "15 images for fid, .*of 16 feat")
  refuses(score("dark", real, num_images=51), "51 images .* at most 50: lower")
  refuses(
    score("dark", None), "need moments of real images; expected --against"
  )
  refuses(score("dark", None, ""), "nothing to compare .* with; expected")
  refuses(score("dark", real, "accuracy"), "tells 10 classes .* images have 0")
  np.savez(tmp_path / "plain.npz", mu=np.zeros(16), sigma=np.eye(16))
  refuses(score("dark", tmp_path / "plain.npz"), "does not say which")
  with np.load(reference) as file:
    arrays = {name: file[name] for name in file.files if name != "arr_0"}
  np.savez(tmp_path / "moments.npz", **arrays)
  message = "fid, pr need features .* statistics do not have them"
  refuses(score("dark", tmp_path / "moments.npz", "fid,pr"), message)
  refuses(
    lambda: set_statistics.write(
      real, eye, tmp_path / "new.npz", Taken(num_images=15)
    ),
    "15 images for statistics of 16 features",
  )
  with pytest.raises(FileExistsError, match="already exists"):
    set_statistics.write(real, eye, reference)


def test_features_that_are_no_numbers(eye, places):
  params = jax.tree.map(lambda leaf: leaf * np.nan, eye.params)
  blind = eye._replace(params=params)
  refuses(
    lambda: score_set.score(places["dark"], places["real"], blind, "fid"),
    "image 0 is not finite; expected finite features",
  )


def test_the_suiting_scores(eye, places, reference):
  report = score_set.score(places["dark"], places["real"], eye)
  names = set(report["scores"])
  assert {"fd_projection", "sfid_projection", "kid_projection"} <= names
  assert {"precision", "recall", "near_copy_rate"} <= names
  few = eye._replace(options=dataclasses.replace(OPTIONS, subset_size=51))
  report = score_set.score(places["dark"], places["real"], few)
  assert set(report["scores"]) == names - {
    "kid_projection",
    "kid_projection_deviation",
  }


def test_commands(file, places, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(networks.NETWORKS, "projection", NETWORK)
  network = ["--network", "projection", "--weights", str(file)]
  out, report = tmp_path / "real.npz", tmp_path / "report.json"
  made = ["statistics", str(places["real"]), "--out", str(out), *network]
  assert main.main(made) == 0
  assert main.main(made) == 2
  assert "already exists" in capsys.readouterr().err
  command = ["score", str(places["dark"]), "--against", str(out)]
  command += ["--out", str(report), "--num_images", "40", *network]
  assert main.main(command) == 0
  content = json.loads(report.read_text())
  assert content["images"]["count"] == 40
  assert f"{content['scores']['fd_projection']:.5g}" in capsys.readouterr().out
  wrong = [*command[:-1], str(tmp_path / "nowhere"), "--overwrite"]
  assert main.main(wrong) == 2
  said = capsys.readouterr().err
  assert "nowhere does not exist; expected the weights of projection" in said


def test_a_config_stands_for_its_data():
  root = Path(__file__).parents[2]
  data = place(f"{root / 'configs' / 'digits.py'}:laptop")
  assert data.source == "digits"
  assert place(str(root / "configs")) == root / "configs"
