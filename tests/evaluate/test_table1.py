"""Table 1 on digits: what it trains, chooses, scores, and never does twice."""

import json

import numpy as np
import pytest

from experiments import programs, rows, table1, table1_tables
from marjax.cli import configs
from marjax.data.examples import Columns
from marjax.evaluate import run
from marjax.train import codebook

SCORES = {"label_accuracy": 0.9, "frechet_ratio": 2.0, "near_copy_rate": 0.0}
FOUR = ("ar_raster", "ar_random", "mar", "guided")


def digits(count: int) -> Columns:
  """Images whose every pixel is their number."""
  number = np.arange(count)
  images = np.broadcast_to(number[:, None, None, None], (count, 8, 8, 1))
  return Columns(images.astype(np.uint8), number.astype(np.int32) % 10, number)


REAL = run.Real(digits(90), digits(30), "classifier")


class Stub:
  """A pipeline as far as it is asked; its seven parameters are its number."""

  def __init__(self, number: int):
    self.params, self.card = np.full(7, number, np.float32), None

  def generate(self, labels, seed, settings):
    del seed, settings
    return np.full((len(labels), 8, 8, 1), self.params[0], np.uint8)


@pytest.fixture
def measured(monkeypatch):
  """What was measured, of runs that need no training.

  (run, guidance, seed, real); of the first run guidance 1 is the best, of the
  others 2, and of their mean 1.5.
  """
  calls = []

  def measure(pipe, real, settings, num_images, seed):
    number, scale = int(pipe.params[0]), settings.guidance_scale
    calls.append((number, scale, seed, real))
    best = 2.0 if number else 1.0
    return {**SCORES, "frechet_ratio": 1 + (scale - best) ** 2}

  monkeypatch.setattr(table1.samplers, "measure", measure)
  monkeypatch.setattr(table1, "train", lambda name, seed, folder: seed)
  monkeypatch.setattr(table1, "load", Stub)
  monkeypatch.setattr(run, "known_data", lambda pipe: None)
  monkeypatch.setattr(run, "load_real", lambda data: REAL)
  return calls


def flags(tmp_path, *more: str) -> list[str]:
  places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "rows")]
  return [*places, "--picture", str(tmp_path / "all.png"), *more]


def test_two_cells_are_one_training():
  names = list(table1.names())
  assert len(set(names)) == 10
  trainings = {table1.trained_as(name) for name in names}
  assert trainings == {*FOUR, *(f"{name}_ce" for name in FOUR)}
  for name in names:
    cell, trained = (
      configs.load(table1.address(variant))
      for variant in (name, table1.trained_as(name))
    )
    assert cell.model == trained.model
    assert cell.training == trained.training


def test_seeds_of_the_choice_and_of_the_scores_differ():
  assert table1.SWEEP_SEED not in table1.SEEDS


def test_guidance_is_chosen_by_the_mean_and_on_training_digits(
  measured, tmp_path
):
  out, pipes = tmp_path / "rows", [Stub(0), Stub(1)]
  assert table1.best_guidance("mar", pipes[:1], REAL, out, 30) == 1.0
  assert table1.best_guidance("mar", pipes, REAL, out, 30) == 1.5
  assert len(measured) == 2 * len(table1.SWEEP)
  for _, _, seed, real in measured:
    assert seed == table1.SWEEP_SEED
    assert len(real.test.ids) == 30
    both = np.concatenate([real.train.ids, real.test.ids])
    np.testing.assert_array_equal(np.sort(both), REAL.train.ids)
    for part in (real.train, real.test):
      np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.ids)
      np.testing.assert_array_equal(part.labels, part.ids % 10)


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(measured, tmp_path, monkeypatch):
  command = flags(tmp_path, "--num_runs", "1")
  whole = table1.samplers.measure

  def interrupted(*args):
    if len(measured) == 25:
      raise KeyboardInterrupt
    return whole(*args)

  monkeypatch.setattr(table1.samplers, "measure", interrupted)
  with pytest.raises(KeyboardInterrupt):
    table1.main(command)
  assert len(rows.read(tmp_path / "rows")) == 25
  monkeypatch.setattr(table1.samplers, "measure", whole)
  assert table1.main(command) == 0
  each = len(table1.SWEEP) + len(table1.SEEDS)
  assert len(measured) == len(rows.read(tmp_path / "rows")) == 10 * each
  picture = (tmp_path / "all.png").read_bytes()
  assert table1.main(command) == 0
  assert len(measured) == 10 * each
  assert (tmp_path / "all.png").read_bytes() == picture
  final = [call for call in measured if call[2] in table1.SEEDS]
  assert {scale for _, scale, _, _ in final} == {1.0}
  assert all(real is REAL for _, _, _, real in final)
  # Other parameters are other rows.
  monkeypatch.setattr(table1, "load", lambda seed: Stub(seed + 5))
  table1.main([*command, "--cells", "mar"])
  assert len(measured) == 11 * each


def test_some_cells_make_no_picture(measured, tmp_path):
  assert table1.main(flags(tmp_path, "--cells", "mar,guided")) == 0
  assert len(measured) == 2 * 3 * (len(table1.SWEEP) + len(table1.SEEDS))
  assert not (tmp_path / "all.png").exists()


def test_a_plan_counts_what_is_missing(measured, tmp_path, capsys):
  command = flags(tmp_path, "--num_runs", "2", "--dry_run")
  assert table1.main(command) == 0
  text = capsys.readouterr().out
  assert "ar_raster: 2 trainings of 4200 steps, " in text
  assert "as ar_raster; 16000 images to draw" in text
  assert "mar_one: 2 trainings of 4200 steps, " in text
  assert "\nmar: 0 trainings of 4200 steps, " in text
  assert f"about {16 * 3 + 160 * 0.15:.0f} minutes" in text
  assert not measured
  table1.main([*command[:-1], "--cells", "mar"])
  (tmp_path / "runs" / "mar_1").mkdir(parents=True)
  capsys.readouterr()
  table1.main([*command, "--cells", "mar"])
  text = capsys.readouterr().out
  assert "mar: 1 trainings" in text
  # Of a run that is not there no row can be of its parameters.
  assert "as mar; 8000 images to draw" in text
  assert f"about {3 + 8 * 0.15:.0f} minutes" in text
  (tmp_path / "runs" / "mar_0").mkdir()
  table1.main([*command, "--cells", "mar"])
  assert "as mar; 0 images to draw" in capsys.readouterr().out


def test_a_cell_that_is_none_is_one_sentence(tmp_path, capsys):
  for cells in ("nonsense", "regression"):
    assert table1.main(flags(tmp_path, "--cells", cells)) == 2
    message = capsys.readouterr().err
    assert f"there is no cell {cells!r}; expected some of ar_raster," in message


def test_a_release_is_no_run_to_go_on_with(tmp_path, monkeypatch):
  trained = []
  monkeypatch.setattr(programs, "train", lambda *args: trained.append(args))
  (tmp_path / "mar_1").mkdir()
  (tmp_path / "mar_1" / "release.json").touch()
  assert table1.train("mar_one", 1, tmp_path) == tmp_path / "mar_1"
  assert not trained
  assert table1.train("mar_one", 2, tmp_path) == tmp_path / "mar_2"
  ((experiment, workdir),) = trained
  assert workdir == tmp_path / "mar_2"
  assert (experiment.seed, experiment.data.seed) == (2, 2)


def test_codes_are_fitted_once_for_all_cells(tmp_path, monkeypatch):
  fitted, trained = [], []
  monkeypatch.setattr(programs, "train", lambda *args: trained.append(args))

  def fit(codec, data, out):
    (tmp_path / "codes").mkdir()
    fitted.append((codec.num_codes, out))

  monkeypatch.setattr(codebook, "fit", fit)
  table1.train("mar", 0, tmp_path)
  assert not fitted
  for name in ("mar_ce", "guided_ce"):
    table1.train(name, 0, tmp_path)
  assert fitted == [(256, str(tmp_path / "codes"))]
  names = [experiment.data.autoencoder for experiment, _ in trained]
  assert names == ["", *[str(tmp_path / "codes")] * 2]


def test_the_table_has_a_line_for_each_cell(measured, tmp_path, monkeypatch):
  monkeypatch.setattr(table1_tables, "RESULTS", tmp_path / "rows")
  heading = table1_tables.of_cells().splitlines()
  assert len(heading) == 2
  # The first run alone chooses another guidance.
  for cells, count in (("mar_one", "1"), ("mar_one,mar_ce", "2")):
    table1.main(flags(tmp_path, "--cells", cells, "--num_runs", count))
  lines = table1_tables.of_cells().splitlines()
  # The sweep's rows are no part of it: 1.25 and 1.25, by guidance 1.5.
  assert lines[2:] == [
    "| random | bidirectional | 16 | Diffusion Loss | 1.5 | 0.900 ± 0.000 |"
    " 1.25 ± 0.00 | 0.000 ± 0.000 | 7 |",
    "| random | bidirectional | 8 | cross-entropy | 1.5 | 0.900 ± 0.000 |"
    " 1.25 ± 0.00 | 0.000 ± 0.000 | 7 |",
  ]


def test_a_score_is_the_mean_over_seeds_then_runs():
  table = [
    {"run": number, "score": score}
    for number, score in ((0, 1.0), (0, 3.0), (1, 5.0))
  ]
  assert table1_tables.of_runs(table, "score") == [2.0, 5.0]


@pytest.mark.slow
def test_two_small_cells_from_training_to_rows(tmp_path, monkeypatch):
  monkeypatch.setattr(
    table1, "address", lambda name: f"{table1.CONFIG}:{name},laptop"
  )
  monkeypatch.setattr(table1, "SWEEP", (1.0, 2.0))
  monkeypatch.setattr(table1, "SEEDS", (0,))
  more = ("--cells", "mar_one_ce,mar_ce", "--num_runs", "1")
  command = flags(tmp_path, *more, "--num_images", "30")
  assert table1.main(command) == 0
  runs, content = tmp_path / "runs", (tmp_path / "rows").read_bytes()
  assert {path.name for path in runs.iterdir()} == {"codes", "mar_ce_0"}
  table = [json.loads(line) for line in content.splitlines()]
  assert [row["cell"] for row in table] == ["mar_one_ce"] * 3 + ["mar_ce"] * 3
  for first in (0, 3):
    best = min(table[first : first + 2], key=lambda row: row["frechet_ratio"])
    scale = table[first + 2]["guidance_scale"]
    assert scale == best["guidance_scale"]
  checkpoints = runs / "mar_ce_0" / "checkpoints"
  times = {path.name: path.stat().st_mtime for path in checkpoints.iterdir()}
  assert table1.main(command) == 0
  again = {path.name: path.stat().st_mtime for path in checkpoints.iterdir()}
  assert again == times
  assert (tmp_path / "rows").read_bytes() == content
