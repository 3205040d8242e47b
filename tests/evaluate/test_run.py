"""An evaluation around a stand-in for the model: real digits, disturbed."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks import sizes
from marjax.backbone.conditions import ClassesConfig
from marjax.cli import main
from marjax.data import batches, sources
from marjax.evaluate import run
from marjax.evaluate.scores import pixels
from marjax.experiment import DataConfig
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.release.workdir import card_of
from marjax.requests.trajectory import Trajectory
from marjax.schema import to_dict

pytest.importorskip("sklearn")

FILES = ["loss.png", "report.json", "reveal.png", "samples.png"]


@dataclasses.dataclass(frozen=True, eq=False)
class Recaller(Pipeline):
  """A pipeline that gives test images of the class asked for, with noise."""

  noise: int = 12
  asked: list = dataclasses.field(default_factory=list)

  def reveal(self, labels, seed, settings, *, progress):
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


@pytest.fixture(scope="module", autouse=True)
def read_once():
  """Every evaluation reads the same digits, one by one."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(batches, "load_all", functools.cache(batches.load_all))
    yield


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
  assert report["settings"]["head"]["start"] == 950
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
    images = make_recaller(data, noise).reveal(labels, 0, None, progress=False)
    return run.score(images.images, labels, real)

  clean, noisy = scores_with(8), scores_with(120)
  assert clean["label_accuracy"] > 0.95 > noisy["label_accuracy"]
  assert clean["frechet_ratio"] < 2 < noisy["frechet_ratio"]


def test_scores_are_to_the_digit_those_of_published_tables(data):
  """They were measured in principal axes of pixels, by an SVD in float64."""
  real, labels = run.load_real(data), run.balanced_labels(1000, 10)
  images = make_recaller(data, 4).reveal(labels, 0, None, progress=False).images
  scores = run.score(images, labels, real)
  assert scores["label_accuracy"] == 0.988
  assert scores["near_copy_rate"] == 0.02
  assert scores["frechet_ratio"] == pytest.approx(0.5699077016638369, rel=1e-9)
  known, test = real.train, real.test.images
  repeated = pixels.repeated_ratio(known.images, known.labels, test, labels)
  assert repeated == pytest.approx((1.3742901596, 0.1309898031), rel=1e-9)


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


def small_set(root, split, **counts):
  """Grey 8×8 images of classes in a folder."""
  rng = np.random.default_rng(len(split))
  for name, count in counts.items():
    folder = root / split / name
    folder.mkdir(parents=True)
    for i in range(count):
      pixels = rng.integers(0, 256, (8, 8), np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png")


def folder_pipe(root, monkeypatch, names=("cat", "dog"), **changes):
  """A stand-in for a model of two classes, trained on that folder."""
  sizes_of = sizes.experiment("digits")
  backbone = dataclasses.replace(
    sizes_of.model.backbone, condition=ClassesConfig(2)
  )
  experiment = dataclasses.replace(
    sizes_of,
    model=dataclasses.replace(sizes_of.model, backbone=backbone),
    data=DataConfig("folder", 8, 2, 1, data_dir=str(root)),
  )
  card = card_of(experiment, 40, names)
  pipe = Recaller(dataclasses.replace(card, **changes), {}, make_mesh())
  monkeypatch.setattr(run, "load", lambda directory: pipe)
  return pipe


def test_another_split_and_folder(tmp_path, monkeypatch):
  small_set(tmp_path / "a", "train", cat=25, dog=25)
  small_set(tmp_path / "a", "test", cat=25, dog=25)
  pipe = folder_pipe(tmp_path / "a", monkeypatch)
  (tmp_path / "a").rename(tmp_path / "b")
  (tmp_path / "b" / "test").rename(tmp_path / "b" / "val")
  flags = ["--checkpoint", tmp_path, "--out", tmp_path / "out"]
  flags += ["--num_images", "40"]
  assert main.main(["evaluate", *map(str, flags)]) == 2
  moved = ["--data_dir", tmp_path / "b"]
  assert main.main(["evaluate", *map(str, flags + moved)]) == 2
  assert not pipe.asked
  real = dataclasses.replace(
    pipe.card.data, data_dir=str(tmp_path / "b"), test_split="val"
  )
  read, load = [], batches.load_all

  def load_all(config, split):
    """The stand-in for a model reads the split of its own card, "test"."""
    read.append(split)
    return load(real, "val" if split == "test" else split)

  monkeypatch.setattr(batches, "load_all", load_all)
  moved += ["--split", "val"]
  assert main.main(["evaluate", *map(str, flags + moved)]) == 0
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  assert report["num_real_images"] == {"train": 50, "test": 50}
  assert "val" in read


def test_another_folder_is_one_that_is_there(tmp_path, workdir, recaller, data):
  """Digits are not prepared among other pictures."""
  pictures = dataclasses.replace(data, source="folder")
  with pytest.raises(FileNotFoundError, match=r"there is nothing in .*none; "):
    sources.moved(pictures, "", str(tmp_path / "none"))
  own = tmp_path / "own" / "digits"
  own.mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match=r"there is nothing in .*digits;"):
    run.evaluate(workdir, tmp_path / "out", data_dir=str(own.parent))
  assert not [*own.iterdir()]
  sources.open_source(data, "test")  # prepares them
  moved = sources.moved(data, "val", data.data_dir)
  assert (moved.test_split, moved.data_dir) == ("val", data.data_dir)
  assert sources.moved(data, "", "") == data


def test_what_cannot_be_scored_is_told_before_generating(tmp_path, monkeypatch):
  small_set(tmp_path, "train", cat=25, dog=25)
  small_set(tmp_path, "test", cat=25, dog=25)
  small_set(tmp_path, "few", cat=3, dog=3)
  small_set(tmp_path, "half", cat=25)
  shutil.copytree(tmp_path / "test", tmp_path / "seen")
  for path in sorted((tmp_path / "train" / "cat").iterdir())[:10]:
    shutil.copy(path, tmp_path / "seen" / "cat")

  def refused(words, num_images=40, split="", **changes):
    pipe = folder_pipe(tmp_path, monkeypatch, **changes)
    with pytest.raises(ValueError, match=words):
      run.evaluate(tmp_path, tmp_path / "out", num_images, split=split)
    assert not pipe.asked
    assert not list(tmp_path.glob("out/*"))

  data = folder_pipe(tmp_path, monkeypatch).card.data
  model = folder_pipe(tmp_path, monkeypatch).card.model
  refused("num_images is 10; expected more than 20 images", 10)
  refused("num_images is 39; expected a multiple of 2", 39)
  refused("num_images is -30; expected a multiple of 2 above 0, the same", -30)
  refused("images in split 'few' is 6; expected more than 20", split="few")
  refused("'half' has no images of 1 of 2 classes, the first 1", split="half")
  refused("'train', is the one that was trained on; .*--spl", split="train")
  refused("one in a hundred or more of the unseen real images", split="seen")
  refused("class 0 is dog for .* and cat in the real", names=("dog", "cat"))
  refused("does not say what it was trained on", data=None)
  latents = dataclasses.replace(data, source="latents")
  refused("was trained on cached latents, and these scores", data=latents)
  backbone = dataclasses.replace(model.backbone, condition=ClassesConfig(0))
  without = dataclasses.replace(model, backbone=backbone)
  refused("has no classes, and these scores", model=without, class_names=())


@pytest.mark.parametrize("step", ["score", "_reveal"])
def test_a_failing_step_does_not_lose_the_images(
  workdir, tmp_path, recaller, monkeypatch, step
):
  pytest.importorskip("matplotlib")

  def fail(*args):
    raise MemoryError("no room")

  with monkeypatch.context() as context:
    context.setattr(run, step, fail)
    with pytest.raises(ValueError, match=r"images\.npz, but .*MemoryError: no"):
      run.evaluate(workdir, tmp_path / "out", num_images=100)
  with np.load(tmp_path / "out" / "images.npz") as kept:
    assert kept["images"].shape == (100, 8, 8, 1)
    assert kept["labels"].tolist() == 10 * list(range(10))
  with pytest.raises(
    FileExistsError, match=r"(images|samples)\.\w+ already ex"
  ):
    run.evaluate(workdir, tmp_path / "out", num_images=100)
  run.evaluate(workdir, tmp_path / "out", num_images=100, overwrite=True)
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize(
  ("step", "words", "files"),
  [
    ("reveal", "no image is kept", []),
    ("score", r"are in .*images\.npz, .*--overwrite", ["images.npz"]),
  ],
)
def test_an_interrupt_says_what_is_kept(
  workdir, tmp_path, recaller, monkeypatch, step, words, files
):
  def stop(*args, **kwargs):
    raise KeyboardInterrupt

  owner = type(recaller) if step == "reveal" else run
  monkeypatch.setattr(owner, step, stop)
  with pytest.raises(KeyboardInterrupt, match=words):
    run.evaluate(workdir, tmp_path / "out", num_images=100)
  assert [path.name for path in (tmp_path / "out").glob("*")] == files
