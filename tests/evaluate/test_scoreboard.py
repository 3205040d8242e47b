"""The scoreboard: rows, controls, pictures, and what it never does twice."""

import dataclasses
import json
import types
from typing import ClassVar

import numpy as np
import pytest
from evaluate.networks import Projection

from experiments import judging, programs, rows, scoreboard
from experiments import scoreboard_pictures as drawn
from marjax.cli import configs
from marjax.data.batches import load_all
from marjax.data.synthetic import SyntheticSource
from marjax.evaluate import seen
from marjax.evaluate.networks import kinds, weights
from marjax.evaluate.networks.label import Label

EXPERIMENT = configs.load(
  "configs/cifar10.py:laptop",
  [
    "config.data.num_examples=240",
    "config.data.num_threads=0",
    "config.sampling.guidance_scale=2",
    "config.sampling.head.sampler=ancestral",
  ],
)
NETWORK = Projection(image_size=16)
UNSEEN = load_all(EXPERIMENT.data, "others")


class Stub:
  """A pipeline as far as it is asked: unseen images, guidance adds noise."""

  calls: ClassVar[list] = []

  def __init__(self, path):
    name = str(path).rpartition("/")[2]
    self.params = np.full(3, len(name), np.float32)
    self.card = types.SimpleNamespace(
      name=name,
      data=EXPERIMENT.data,
      model=EXPERIMENT.model,
      num_classes=10,
      step=4,
    )

  def settings(self, changes=()):
    return EXPERIMENT.sampling.changed(dict(changes))

  def generate(self, labels, seed, settings, batch_size=None, progress=False):
    del batch_size, progress
    self.calls.append((self.card.name, settings, seed))
    rng = np.random.default_rng(seed)
    scale = 60 * abs(settings.guidance_scale - 2)
    images = UNSEEN.images[: len(labels)]
    noise = rng.normal(0, scale, images.shape) if scale else seed
    return np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def board(monkeypatch, tmp_path):
  """Flags of a board whose checkpoints are stubs; without calls yet."""
  monkeypatch.setitem(kinds.NETWORKS, "projection", NETWORK)
  monkeypatch.setattr(scoreboard, "load", Stub)
  data = EXPERIMENT.data
  monkeypatch.setattr(scoreboard.run, "known_data", lambda *_, **__: data)
  monkeypatch.setattr(Stub, "calls", [])
  files = {name: tmp_path / f"{name}.safetensors" for name in ("p", "label")}
  weights.write(files["p"], NETWORK, NETWORK.params(), {})
  small, rng = Label(16, 3, 10, 2), np.random.default_rng(0)
  params = {
    name: {
      part: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32)
      for part, leaf in layer.items()
    }
    for name, layer in small.shapes().items()
  }
  weights.write(files["label"], small, params, {})
  named = f"label={files['label']},projection={files['p']}"
  return [
    "--checkpoints=runs/own",
    "--controls=runs/mean",
    f"--weights={named}",
    f"--out={tmp_path / 'out'}",
    "--seeds=0,1",
    "--guidance=1,2",
    "--temperature=1,1.1",
    "--num_images=120",
  ]


def test_a_row_for_each_setting_seed_and_control(
  board, tmp_path, capsys, monkeypatch
):
  assert scoreboard.main([*board, "--dry_run"]) == 0
  text = capsys.readouterr().out
  assert "own: 6 of 6 rows missing, of 120 images each" in text
  assert "mean: 2 of 2 rows missing" in text
  assert "960 images to draw" in text
  assert not Stub.calls

  monkeypatch.setattr(judging, "NOISE", 0.5)
  assert scoreboard.main(board) == 0
  told = capsys.readouterr().out
  assert told.count("\nown, guidance 2, temperature 1.1, seed 1: ") == 1
  out = tmp_path / "out"
  table = rows.read(out / "rows.jsonl")
  assert [row["images"] for row in table] == [
    judging.TEST,
    judging.NOISY,
    *["own"] * 6,
    *["mean"] * 2,
  ]
  real, noisy = (row["scores"] for row in table[:2])
  for row in table:
    assert 0 <= row["scores"]["label_accuracy"] <= 1
    assert {"precision", "recall", "kid_projection"} <= set(row["scores"])
  assert real["near_copy_rate"] == pytest.approx(0.01, abs=0.01)
  assert noisy["near_copy_rate"] > 0.5  # they are copies
  own = [row for row in table if row["images"] == "own"]
  distance = {
    row["settings"]["guidance_scale"]: row["scores"]["fd_projection"]
    for row in own
  }
  assert distance[1.0] > 2 * distance[2.0]

  lines = (out / "table.md").read_text().splitlines()
  assert len(lines) == 2 + 2 + 3 + 1
  assert " ± " in lines[4]
  assert {path.name for path in out.glob("*.png")} == {
    *(
      "curves.png",
      *(f"{n}_{c}.png" for n in ("own", "mean") for c in range(10)),
    )
  }
  kept = {path.name for path in (out / "images").iterdir()}
  assert len(kept) == 2


def test_images_of_other_settings_are_not_taken_for_these(
  board, tmp_path, monkeypatch
):
  board = ["--checkpoints=runs/own", *board[2:], "--seeds=0", "--guidance=1"]
  assert scoreboard.main(board) == 0
  own = Stub("own").settings({"num_ar_steps": 3})
  monkeypatch.setattr(Stub, "settings", lambda _, by=(): own.changed(dict(by)))
  Stub.calls.clear()
  assert scoreboard.main(board) == 0
  assert own in {settings for _, settings, _ in Stub.calls}
  assert len([*(tmp_path / "out" / "images").iterdir()]) == 2


def test_a_checkpoint_of_other_photographs_is_refused(
  board, capsys, monkeypatch
):
  make = Stub.__init__

  def of_others(self, path):
    make(self, path)
    if self.card.name == "mean":
      self.card.data = dataclasses.replace(EXPERIMENT.data, image_size=32)

  monkeypatch.setattr(Stub, "__init__", of_others)
  assert scoreboard.main(board) == 2
  said = capsys.readouterr().err
  assert "mean has image_size 32, and own 16; expected checkpoints of" in said
  assert not Stub.calls


def test_rows_of_other_pixels_are_others(board, capsys, monkeypatch):
  board = ["--checkpoints=runs/own", *board[2:], "--seeds=0"]
  assert scoreboard.main(board) == 0
  monkeypatch.setattr(judging.sets, "identity", lambda images: "other pixels")
  assert scoreboard.main([*board, "--dry_run"]) == 0
  assert "own: 3 of 3 rows missing" in capsys.readouterr().out


def test_settings_that_a_later_checkpoint_lacks_are_refused_first(
  board, capsys, monkeypatch
):
  def settings(pipe, by=()):
    sampler = "ddim" if pipe.card.name == "late" else "ancestral"
    own = EXPERIMENT.sampling.changed({"head": {"sampler": sampler}})
    return own.changed(dict(by))

  monkeypatch.setattr(Stub, "settings", settings)
  assert scoreboard.main(["--checkpoints=runs/own,runs/late", *board[2:]]) == 2
  assert "temperature is 1.1; expected 1, because" in capsys.readouterr().err
  assert not Stub.calls


def test_a_table_is_of_a_checkpoint_as_it_is(board, tmp_path, monkeypatch):
  board = ["--checkpoints=runs/own", *board[2:], "--guidance=1,2"]
  assert scoreboard.main(board) == 0
  table = (tmp_path / "out" / "table.md").read_text()
  make = Stub.__init__

  def trained_again(self, path):
    make(self, path)
    self.params = self.params + 1

  monkeypatch.setattr(Stub, "__init__", trained_again)
  assert scoreboard.main(board) == 0
  assert (tmp_path / "out" / "table.md").read_text() == table
  there = rows.read(tmp_path / "out" / "rows.jsonl")
  assert len({row.get("parameters") for row in there}) == 3


def test_a_temperature_that_changes_nothing_has_no_rows(
  board, capsys, monkeypatch
):
  own = Stub("own").settings({"head": {"sampler": "ddim"}})
  monkeypatch.setattr(Stub, "settings", lambda _, by=(): own.changed(dict(by)))
  assert scoreboard.main([*board, "--dry_run"]) == 2
  assert "temperature is 1.1; expected 1, because" in capsys.readouterr().err
  board = [flag for flag in board if not flag.startswith("--temperature")]
  assert scoreboard.main([*board, "--dry_run"]) == 0
  assert "own: 4 of 4 rows missing" in capsys.readouterr().out


def test_a_row_against_other_real_images_is_another(board, tmp_path, capsys):
  board = ["--checkpoints=runs/own", *board[2:], "--guidance=1", "--seeds=0"]
  board = [*board, "--temperature=1", "--num_real=200"]
  assert scoreboard.main(board) == 0
  # Its own setting is another one than those of the sweep.
  for changed, words in (
    ("--seeds=0", "own: 0 of 2 rows missing"),
    ("--num_real=300", "own: 2 of 2 rows missing"),
    (board[1].partition(",")[2], "own: 2 of 2 rows missing"),
  ):
    if not changed.startswith("--"):
      changed = f"--weights={changed}"
    capsys.readouterr()
    assert scoreboard.main([*board, changed, "--dry_run"]) == 0
    assert words in capsys.readouterr().out

  assert scoreboard.main([*board, "--num_images=140"]) == 0
  lines = (tmp_path / "out" / "table.md").read_text().splitlines()
  assert len(lines) == 2 + 2 + 2


@pytest.mark.slow
def test_a_board_that_was_stopped_goes_on(board, tmp_path, monkeypatch):
  whole = judging.scored

  def stopped(*args):
    if len(Stub.calls) == 4:
      raise KeyboardInterrupt
    return whole(*args)

  monkeypatch.setattr(judging, "scored", stopped)
  with pytest.raises(KeyboardInterrupt):
    scoreboard.main(board)
  path = tmp_path / "out" / "rows.jsonl"
  begun = path.read_bytes()
  assert len(begun.splitlines()) == 2 + 3
  monkeypatch.setattr(judging, "scored", whole)
  assert scoreboard.main(board) == 0
  assert len(Stub.calls) == len(set(map(repr, Stub.calls))) == 8
  done = path.read_bytes()
  assert done.startswith(begun)
  assert scoreboard.main(board) == 0
  assert len(Stub.calls) == 8
  assert path.read_bytes() == done


def test_what_is_wrong_is_one_sentence(board, tmp_path, capsys):
  def refused(message, *more):
    assert scoreboard.main([*board, *more]) == 2
    text = capsys.readouterr().err
    assert message in text
    assert not Stub.calls
    assert not (tmp_path / "out" / "rows.jsonl").exists()

  (label,) = [flag for flag in board if flag.startswith("--weights")]
  label = label.removeprefix("--weights=").split(",")[0]
  refused("expected one whose features are compared", "--weights", label)
  refused("folders of different names", "--controls", "other/own")
  refused("expected a multiple of 10", "--num_images", "125")
  refused("is no network; expected one of", "--weights", "nonsense=file")
  refused("such as mobilenet=FILE", "--weights", "label")
  refused("--seeds is 'x'; expected whole numbers", "--seeds", "x")
  refused("--guidance is '1,nan'; expected numbers", "--guidance", "1,nan")
  refused(
    "--num_images: it is '-100'; expected a whole number, 1",
    "--num_images",
    "-100",
  )
  (tmp_path / "file").write_text("")
  for place in ("file", "file/of/none"):
    place = str(tmp_path / place)
    refused("is a file; expected a folder: choose another", "--out", place)
  (tmp_path / "out" / "rows.jsonl").mkdir(parents=True)
  with pytest.raises(IsADirectoryError, match="expected a file of rows"):
    rows.make(tmp_path / "out" / "rows.jsonl")


def test_the_nearest_image_stands_where_its_sample_does(tmp_path, monkeypatch):
  images = scoreboard.Taken().open(EXPERIMENT.data)
  order = np.array([7, 3, 7, 90])
  expected = load_all(EXPERIMENT.data, "train").images[order]
  np.testing.assert_array_equal(drawn.rows_at(images, order), expected)
  picture = drawn.beside(expected, expected)
  width = (picture.shape[1] - drawn.GAP) // 2
  left, right = picture[:, :width], picture[:, -width:]
  # Below the titles, which differ.
  size = 16 * drawn.SCALE
  np.testing.assert_array_equal(left[-size:], right[-size:])


def test_noise_is_of_the_image_not_of_the_order():
  images = scoreboard.Taken().open(EXPERIMENT.data)
  noisy = judging.Noisy(images)
  (alone, label), *_ = noisy.rows(np.array([5]))
  *_, (last, same) = noisy.rows(np.array([1, 5]))
  np.testing.assert_array_equal(alone, last)
  assert label == same == 5
  plain = next(images.rows(np.array([5])))[0].astype(float)
  error = (alone - plain)[(plain > 40) & (plain < 215)]
  assert error.std() == pytest.approx(judging.NOISE, rel=0.15)


def test_rows_are_json(board, tmp_path):
  few = ["--guidance", "2", "--temperature", "1", "--seeds", "0"]
  assert scoreboard.main([*board, *few, "--controls", ""]) == 0
  for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines():
    row = json.loads(line)
    assert row["judges"].keys() == {"label", "projection"}
    assert row["num_real"] == 240


def test_real_images_are_looked_at_once(board, tmp_path, monkeypatch):
  titles, show = [], seen._show

  def counted(chosen, gatherers, mesh, taken, title, progress):
    titles.append(title)
    return show(chosen, gatherers, mesh, taken, title, progress)

  monkeypatch.setattr(seen, "_show", counted)
  board = [*board, "--guidance=1", "--seeds=0"]
  assert scoreboard.main(board) == 0
  assert titles[:2] == ["train", "test"]
  file = tmp_path / "out" / "rows.jsonl"
  scores = [row["scores"] for row in rows.read(file)]
  file.unlink()
  del titles[:]
  assert scoreboard.main(board) == 0
  assert judging.NOISY in titles
  assert not {"train", "test"} & {*titles}
  assert [row["scores"] for row in rows.read(file)] == scores
  file, item = tmp_path / "p.safetensors", SyntheticSource.__getitem__

  def brighter(self, index):
    example = item(self, index)
    return example | {"image": example["image"] // 2 + 100}

  for change in (
    lambda: board.append("--num_real=200"),
    lambda: weights.write(file, NETWORK, NETWORK.params(1), {}, overwrite=True),
    lambda: monkeypatch.setattr(SyntheticSource, "__getitem__", brighter),
  ):
    del titles[:]
    change()
    assert scoreboard.main(board) == 0
    assert titles[:2] == ["train", "test"]


def test_which_network_is_named_first_does_not_matter(board):
  """Rows do not say, and one judges by more scores than the others."""
  (named,) = [flag for flag in board if flag.startswith("--weights")]
  files = programs.weights(named.removeprefix("--weights="))
  files["pixels"] = ""
  for given in (files, dict(reversed(files.items()))):
    found = judging.eyes(given, 120, allow_few=True)
    assert [*found] == ["label", "pixels", "projection"]
