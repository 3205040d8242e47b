"""An evaluation around a stand-in for the model: real digits, disturbed."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import sizes
from marjax.data import batches
from marjax.evaluate import run
from marjax.experiment import DataConfig
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.release.workdir import card_of
from marjax.schema import to_dict
from marjax.trajectory import Trajectory

pytest.importorskip("sklearn")

FILES = ["loss.png", "report.json", "reveal.png", "samples.png"]


@dataclasses.dataclass(frozen=True, eq=False)
class Recaller(Pipeline):
  """A pipeline that gives test images of the class asked for, with noise."""

  noise: int = 12
  asked: list = dataclasses.field(default_factory=list)

  def generate(self, labels, seed, settings, *, return_trajectory, progress):
    self.asked.append((len(labels), seed, settings))
    rng = np.random.default_rng(seed)
    known = batches.load_all(self.card.data, "test")
    drawn = np.stack(
      [
        known.images[rng.choice(np.flatnonzero(known.labels == label))]
        for label in labels
      ]
    )
    noisy = drawn + rng.normal(0, self.noise, drawn.shape)
    drawn = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    frames = np.stack([drawn] * 4)
    is_known = np.zeros((4, len(labels), 8, 8), bool)
    for step in range(4):
      is_known[step, :, : 2 * step + 2] = True
    return Trajectory(drawn, frames, is_known, (4, 8, 12, 16))


def make_recaller(data: DataConfig, noise: int = 12) -> Recaller:
  experiment = dataclasses.replace(sizes.experiment("digits"), data=data)
  return Recaller(card_of(experiment, 40), {}, make_mesh(), noise=noise)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return DataConfig(
    source="digits",
    image_size=8,
    channels=1,
    num_classes=10,
    data_dir=str(tmp_path_factory.mktemp("data")),
  )


@pytest.fixture
def workdir(tmp_path):
  folder = tmp_path / "work"
  folder.mkdir()
  rows = [
    {"step": step, "loss": 2 / step, "images_per_second": 320.0}
    for step in (10, 20, 30, 40, 50)
  ]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metrics.jsonl").write_text(lines)
  config = json.dumps(to_dict(sizes.experiment("digits")))
  (folder / "config.json").write_text(config)
  return folder


@pytest.fixture
def recaller(data, monkeypatch):
  pipe = make_recaller(data)
  monkeypatch.setattr(run, "load", lambda directory: pipe)
  return pipe


def test_the_four_files_and_the_report(workdir, tmp_path, recaller, capsys):
  pytest.importorskip("matplotlib")
  out = tmp_path / "new" / "out"
  report = run.evaluate(workdir, out, num_images=200, seed=7)
  assert sorted(path.name for path in out.iterdir()) == FILES
  assert json.loads((out / "report.json").read_text()) == json.loads(
    json.dumps(report)
  )
  assert report["label_accuracy"] > 0.95
  assert report["real_test_accuracy"] > 0.98
  assert report["frechet_ratio"] < 3
  assert report["near_copy_rate"] < 0.1
  assert report["frechet"]["num_components"] >= 20
  assert report["settings"]["start_timestep"] == 950
  # 40 steps of 64 images at 320 per second; the line of step 50 is later.
  assert report["training"] == {"steps": 40, "seconds": 8.0, "loss": 0.05}
  assert {"python", "jax", "flax", "numpy"} <= set(report["versions"])
  # One generation gives all the scores.
  assert recaller.asked == [(200, 7, None)]
  assert "label accuracy" in capsys.readouterr().out


def test_noise_lowers_the_scores(data):
  real = run.load_real(data)
  labels = run.balanced_labels(500, 10)

  def scores_with(noise):
    images = make_recaller(data, noise).generate(
      labels, 0, None, return_trajectory=True, progress=False
    )
    return run.score(images.images, labels, real)

  clean, noisy = scores_with(8), scores_with(120)
  assert clean["label_accuracy"] > 0.95 > noisy["label_accuracy"]
  assert clean["frechet_ratio"] < 2 < noisy["frechet_ratio"]


def test_a_file_in_the_way_is_found_before_loading(workdir, monkeypatch):
  def load(directory):
    raise AssertionError("loaded before looking at the files")

  monkeypatch.setattr(run, "load", load)
  (workdir / "reveal.png").write_bytes(b"mine")
  with pytest.raises(FileExistsError, match=r"reveal\.png.*--overwrite"):
    run.evaluate(workdir, workdir)
  assert (workdir / "reveal.png").read_bytes() == b"mine"


def test_overwrite_replaces_results_and_nothing_else(workdir, recaller):
  pytest.importorskip("matplotlib")
  before = (workdir / "metrics.jsonl").read_bytes()
  (workdir / "report.json").write_text("old")
  run.evaluate(workdir, workdir, num_images=100, overwrite=True)
  assert "label_accuracy" in (workdir / "report.json").read_text()
  assert (workdir / "metrics.jsonl").read_bytes() == before
  assert sorted(path.name for path in workdir.iterdir()) == sorted(
    [*FILES, "metrics.jsonl", "config.json"]
  )


def test_without_metrics_there_is_no_loss_curve(tmp_path, recaller):
  (tmp_path / "work").mkdir()
  report = run.evaluate(tmp_path / "work", tmp_path / "out", num_images=100)
  assert report["training"] == {"steps": 40, "seconds": None, "loss": None}
  found = sorted(path.name for path in (tmp_path / "out").iterdir())
  assert found == FILES[1:]


def test_a_count_that_classes_cannot_share_is_refused(workdir, recaller):
  with pytest.raises(ValueError, match="multiple of 10"):
    run.evaluate(workdir, workdir / "out", num_images=1001)
  assert not recaller.asked
