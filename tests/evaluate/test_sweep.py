"""Whole runs: swept, interrupted, saved, refused."""

import json
import threading

import numpy as np
import pytest
from evaluate import stub
from PIL import Image

import marjax
from marjax.cli import interrupts
from marjax.cli.main import main
from marjax.data import batches
from marjax.evaluate import archives, reference, sets, stream, sweep
from marjax.evaluate.scores import frechet, pixels
from marjax.evaluate.scores.gathered import Gathered, Gatherer
from marjax.evaluate.seen import Taken
from marjax.experiment import DataConfig

FLAGS = ["--scores", "fid,is,pr", "--network", "projection", "--seed", "3"]
FLAGS += ["--num_images", "40", "--batch_size", "16"]
GUIDANCE = ["--guidance", "1,2.9,4"]
FILES = ["curves.png", "report.json", "samples.png", "speed.json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A release, the network's weights and real images."""
  return stub.make(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def network(monkeypatch):
  stub.register(monkeypatch.setitem)


def run(place, out, *flags, **others):
  """`marjax evaluate`; its exit code."""
  every = {
    "checkpoint": place / "model",
    "out": out,
    "weights": place / "weights.safetensors",
    "against": place / "real.npz",
  }
  pairs = [f"--{name}={value}" for name, value in (every | others).items()]
  return main(["evaluate", *pairs, *FLAGS, *map(str, flags)])


def files(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def straight(place, tmp_path_factory):
  """The folder of a run over guidance that nothing happened to."""
  out = tmp_path_factory.mktemp("straight") / "out"
  with pytest.MonkeyPatch.context() as patch:
    stub.register(patch.setitem)
    assert run(place, out, *GUIDANCE) == 0
  return out


def test_a_sweep_reports_scores_of_all_settings(straight):
  pytest.importorskip("matplotlib")
  assert files(straight) == FILES
  report = json.loads((straight / "report.json").read_text())
  rows = report["results"]
  assert [row["name"] for row in rows] == [
    f"guidance_scale={scale}" for scale in (1.0, 2.9, 4.0)
  ]
  distances = [row["scores"]["fd_projection"] for row in rows]
  assert len(set(distances)) == 3
  # Real images in their place are nearer to real images.
  assert report["real_in_their_place"]["fd_projection"] < min(distances)
  assert rows[0]["scores"].keys() == report["real_in_their_place"].keys()
  assert report["num_images"] == 40
  assert report["real"]["count"] == report["real"]["unseen"] == 40


@pytest.fixture
def stopping(monkeypatch):
  """Sets after how many batches Ctrl-C comes, and notes those that ran."""
  run_, ran, limit = stream.Stream.run, [], [None]

  def counted(self, settings, start=0):
    for seen in run_(self, settings, start):
      if len(ran) == limit[0]:
        raise KeyboardInterrupt
      ran.append(seen.start)
      yield seen

  def after(count):
    ran.clear()
    limit[0] = count
    monkeypatch.setattr(interrupts, "_said", threading.Event())
    return ran

  monkeypatch.setattr(stream.Stream, "run", counted)
  return after


def test_a_run_that_is_stopped_goes_on_with_the_same_bits(
  straight, place, tmp_path, stopping, capsys
):
  out = tmp_path / "out"
  # Of nine batches, three for each of the settings.
  for count, kept in ((2, "32 of 40"), (2, "16 of 40"), (4, "32 of 40")):
    stopping(count)
    assert run(place, out, *GUIDANCE) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{kept} images of settings" in said
    assert "where the same command goes on" in said
    assert not (out / "report.json").exists()
  ran = stopping(None)
  assert run(place, out, *GUIDANCE) == 0
  assert ran == [32]
  assert files(out) == files(straight)
  for name in ("report.json", "samples.png", "curves.png"):
    assert (out / name).read_bytes() == (straight / name).read_bytes(), name


def test_other_real_images_of_that_name_do_not_go_on(
  place, tmp_path, stopping, capsys
):
  out, other = tmp_path / "out", tmp_path / "real.npz"
  opened = sets.open_set(place / "real.npz")
  pairs = list(opened.rows(np.arange(len(opened))))
  changed = np.stack([255 - image for image, _ in pairs])
  labels = np.array([label for _, label in pairs])
  archives.write(other, changed.shape, [changed], labels)
  stopping(1)
  assert run(place, out) == 130
  capsys.readouterr()
  assert run(place, out, against=other) == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert f"real.source was {sets.identity(opened)!r} there" in said


def test_real_and_unseen_images_are_told_by_their_pixels(place, tmp_path):
  opened = sets.open_set(place / "real.npz")
  folders = [tmp_path / str(number) / "set" for number in range(2)]
  for shade, folder in enumerate(folders):
    folder.mkdir(parents=True)
    for name in "ab":
      Image.new("L", (8, 8), shade).save(folder / f"{name}.png")
  whole = [Taken().choose(one, None) for one in map(sets.open_set, folders)]
  chosen = Taken().choose(opened, None)
  for known in (None, Gathered("any", None)):
    told = [
      sweep._about_real(reference.Real({}, known, *sides))
      for one in whole
      for sides in ((one, chosen), (chosen, one))
    ]
    # Of statistics that are known the unseen images are not used.
    assert len({repr(about) for about in told}) == (4 if known is None else 3)


def test_other_settings_do_not_go_on(place, tmp_path, stopping, capsys):
  out = tmp_path / "out"
  stopping(1)
  assert run(place, out) == 130
  capsys.readouterr()
  assert run(place, out, "--temperature", "0.9") == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert "a run with other settings was begun in" in said
  assert "settings.0.temperature was 1.0 there and is 0.9 here" in said
  stopping(None)
  assert run(place, out, "--temperature", "0.9", "--overwrite") == 0
  report = json.loads((out / "report.json").read_text())
  assert report["results"][0]["settings"]["temperature"] == 0.9
  # Results are in the way of the next run.
  assert run(place, out) == 2
  assert "report.json already exists" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["png", "array_record", "npz"])
def test_images_are_saved_also_by_a_run_that_was_stopped(
  place, tmp_path, stopping, kind
):
  out = tmp_path / "out"
  stopping(2)
  assert run(place, out, "--save", kind) == 130
  # Its only shard was not whole, so all batches come again.
  ran = stopping(None)
  assert run(place, out, "--save", kind) == 0
  assert ran == [0, 16, 32]
  where = out / ("images.npz" if kind == "npz" else "images")
  images = sets.open_set(where)
  rows = list(images.rows(np.arange(40)))
  assert [label for _, label in rows] == [*range(10)] * 4
  pipe = marjax.load(place / "model")
  expected = pipe.generate(np.arange(40) % 10, seed=3, batch_size=16)
  shape = images.shape[-1]
  np.testing.assert_array_equal(
    np.stack([image for image, _ in rows]),
    np.broadcast_to(expected, (*expected.shape[:3], shape)),
  )


def test_intervals_stand_beside_scores(place, tmp_path, stopping, capsys):
  flags = ("--scores", "sfid,is", "--num_draws", "20")
  out = tmp_path / "out"
  stopping(2)
  assert run(place, out, *flags) == 130
  ran = stopping(None)
  assert run(place, out, *flags) == 0
  assert ran == [32]
  report = json.loads((out / "report.json").read_text())
  scores, real = report["results"][0]["scores"], report["real_in_their_place"]
  for numbers in (scores, real):
    for name in ("sfid_projection", "class_score_projection"):
      assert numbers[f"{name}_low"] < numbers[name] < numbers[f"{name}_high"]
  assert f"({scores['sfid_projection_low']:.4g} to" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["png", "array_record", "npz"])
def test_images_in_the_way_are_told_before_long_work(
  place, tmp_path, monkeypatch, capsys, kind
):
  monkeypatch.setattr(stream.Stream, "run", None)
  monkeypatch.setattr(Gatherer, "sums", None)
  out = tmp_path / "out"
  # Of the last settings, in the way of the folder or of the file.
  (out / "images_2").mkdir(parents=True)
  (out / "images_2" / "mine.txt").write_text("mine")
  np.savez(out / "images_2.npz", arr_0=np.zeros(3))
  assert run(place, out, *GUIDANCE, "--save", kind) == 2
  said = capsys.readouterr().err
  assert len(said.splitlines()) == 1
  assert "images_2" in said
  assert "already exists" in said
  assert "choose another" in said


def test_a_sweep_shares_its_programs(place):
  pipe = marjax.load(place / "model")
  asked = sweep.Asked(
    scores="is",
    num_images=40,
    network="projection",
    weights=str(place / "weights.safetensors"),
  )
  counts = []
  settings = [{"guidance_scale": scale} for scale in (2.9, 4.0, 1.0)]
  ready = sweep.prepare(pipe, asked, settings)
  for each in ready.settings:
    list(ready.stream.run(each))
    counts.append(len(pipe.programs))
  # Draws and start, one segment, end; without guidance another two.
  assert counts == [3, 3, 5]


def test_digits_are_scored_without_weights(tmp_path):
  pytest.importorskip("sklearn")
  data = DataConfig("digits", 8, 10, 1, data_dir=str(tmp_path))
  place, out = stub.make(tmp_path, data), tmp_path / "out"
  asked = sweep.Asked(
    scores="fid,kid,pr,copies",
    num_images=1000,
    network="pixels",
    num_real=1347,
    save="npz",
  )
  report = sweep.evaluate(place / "model", out, asked)
  scores = report["results"][0]["scores"]
  assert {"fd_pixels", "kid_pixels", "precision"} <= set(scores)
  # Of 450 test digits only copies can be told as of 1000 images.
  train, test = (batches.load_all(data, split) for split in ("train", "test"))
  of_real = pixels.scores(test.images, train.images, test.images)
  rate = {"near_copy_rate": of_real["near_copy_rate"]}
  assert report["real_in_their_place"] == rate
  assert 0 < rate["near_copy_rate"] < 0.02
  drawn = sets.open_set(out / "images.npz").rows(np.arange(1000))
  ours = pixels.seen(np.stack([image for image, _ in drawn])).moments
  distance = frechet.distance(ours, pixels.seen(train.images).moments)
  assert scores["fd_pixels"] == pytest.approx(distance, rel=1e-5)


REFUSED = {
  "count": (["--num_images=45"], "45; expected a multiple of 10"),
  "few": (["--num_images=10"], "10 images for fid"),
  "weights": (["--weights=none.safetensors"], "expected the weights of proj"),
  "network": (["--network=vgg"], "'vgg' is no network"),
  "no weights": (["--network=pixels"], "which has none; expected no file"),
  "score": (["--scores=fid,fib"], "there is no score 'fib'"),
  "save": (["--save=jpg"], "save"),
  "batch": (["--batch_size=0"], "batch_size"),
  "guidance": (["--guidance=1,x"], "guidance_scale"),
  "both": (["--guidance=1", "--guidance_scale=2"], "are the same"),
  "twice": (["--guidance=2,2.0"], "asked for twice"),
  "real": (["--num_real=500"], "500 images are asked for of"),
  "few real": (["--num_real=12"], "12 images for fid"),
  "copies": (["--num_real=90", "--scores=copies"], "there are not so many"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence_before_long_work(
  place, tmp_path, capsys, monkeypatch, name
):
  flags, words = REFUSED[name]
  monkeypatch.setattr(stream.Stream, "run", None)
  monkeypatch.setattr(Gatherer, "sums", None)
  assert run(place, tmp_path / "out", *flags) == 2
  said = capsys.readouterr().err
  assert words in said
  assert len(said.splitlines()) == 1
  assert not (tmp_path / "out").exists() or not files(tmp_path / "out")


def test_features_that_are_not_finite_name_the_image(
  place, tmp_path, monkeypatch, capsys
):
  call = stub.NETWORK.__class__.__call__

  def broken(self, params, images):
    seen = call(self, params, images)
    return seen._replace(pooled=seen.pooled / 0)

  monkeypatch.setattr(stub.NETWORK.__class__, "__call__", broken)
  assert run(place, tmp_path / "out", "--scores", "is") == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert "sees of image 0 is not finite" in said
