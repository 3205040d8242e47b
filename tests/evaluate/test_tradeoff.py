"""Fewer evaluations: what is tried, how it is compared, what is shown."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from benchmarks import sizes
from experiments import (
  markdown,
  paired,
  rows,
  samplers,
  tables,
  tradeoff,
  tradeoff_picture,
  tradeoff_settings,
  tradeoff_tables,
)
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.parallel.mesh import make_mesh
from marjax.pipeline import Pipeline
from marjax.release import workdir

SETTINGS = {
  tradeoff_settings.name_of(settings): settings
  for settings in tradeoff_settings.grid()
}


@pytest.fixture
def pipe():
  params = {"weights": np.arange(6, dtype=np.float32)}
  return Pipeline.of_experiment(
    sizes.experiment("digits"), params, make_mesh(), step=300
  )


def test_the_grid_names_each_setting_once_the_quickest_first():
  grid = tradeoff_settings.grid()
  assert len(SETTINGS) == len(grid)
  costs = [tradeoff_settings.head_evaluations(settings) for settings in grid]
  assert costs == sorted(costs)
  assert costs[-1] == 16 * 100
  compared = (*tradeoff_settings.BASELINES, *tradeoff_settings.CANDIDATES)
  assert all(settings in grid for settings in compared)
  changing = SETTINGS["16 × 50→5 from 950, ancestral"]
  assert changing["head"]["final_num_steps"] == 5
  by_hand = 2 * (50 + 44 + 37 + 31 + 24 + 18 + 11 + 5)
  assert tradeoff_settings.head_evaluations(changing) == by_hand


def test_a_new_setting_that_is_not_set_leaves_rows_as_they_were():
  row = rows.as_row(Settings(num_ar_steps=4, temperature=0.0))
  guided = {"guidance_scale": 1.0, "guidance_schedule": "linear"}
  assert row == {"num_ar_steps": 4, "temperature": 0.0, **guided}
  committed = rows.read(samplers.RESULTS)
  for row in committed:
    flat, head = dict(row["settings"]), {}
    for field in dataclasses.fields(ReverseSettings):
      name = rows.COLUMNS.get(field.name, field.name)
      if name in flat:
        head[field.name] = flat.pop(name)
    again = Settings(**flat, head=ReverseSettings(**head))
    assert rows.as_row(again) == row["settings"]


def test_scores_are_measured_once_for_each_setting_and_seed(
  pipe, tmp_path, monkeypatch
):
  measured = []

  def measure(pipe, real, settings, num_images, seed):
    measured.append((settings.head.num_steps, seed, settings.num_buckets))
    return {"frechet_ratio": 2.0, "label_accuracy": 0.9, "seconds": 1.0}

  monkeypatch.setattr(tradeoff.run, "load_real", lambda data: None)
  monkeypatch.setattr(tradeoff, "measure_real", lambda *args: {})
  monkeypatch.setattr(tradeoff.samplers, "measure", measure)
  monkeypatch.setattr(tradeoff, "flops_of", lambda pipe, settings: 64e6)
  variants = [
    SETTINGS["16 × 5 from 950, DDIM"],
    SETTINGS["8 × 10 from 950, DDIM"],
  ]
  out = tmp_path / "rows.jsonl"
  for seeds in ([0], [0, 1]):
    tradeoff.score_missing(pipe, variants, 10, seeds, out)
  assert measured == [(5, 0, 1), (10, 0, 1), (5, 1, 1), (10, 1, 1)]
  real, *found = rows.read(out)
  assert real["kind"] == "real"
  assert [row["head_evaluations"] for row in found] == [80, 80, 80, 80]
  pipe.params["weights"][0] = 7
  tradeoff.score_missing(pipe, variants, 10, [0], out)
  assert len(rows.read(out)) == 7


def test_settings_are_timed_in_turn_and_the_newest_counts(
  pipe, tmp_path, monkeypatch
):
  called = []
  monkeypatch.setattr(
    Pipeline,
    "generate",
    lambda self, labels, seed, settings, batch_size: called.append(settings),
  )
  monkeypatch.setattr(tradeoff, "flops_of", lambda pipe, settings: 64e6)
  names = [
    "16 × 5 from 950, DDIM",
    "16 × 5 from 900, DDIM",
    "8 × 5 from 950, DDIM",
  ]
  out = tmp_path / "rows.jsonl"
  for _ in range(2):
    tradeoff.time_all(pipe, [SETTINGS[name] for name in names], out)
  # Another start takes the same time: two are timed, after one run each.
  ar = [settings.num_ar_steps for settings in called]
  assert ar == [16, 8] * (1 + tradeoff.ROUNDS) * 2
  assert {settings.num_buckets for settings in called} == {None}
  found = rows.read(out)
  assert [row["flops_per_image"] for row in found] == [1e6] * 4
  newest = tradeoff_tables.newest_times(found)
  assert list(newest.values()) == found[2:]


def test_arithmetic_grows_with_both_kinds_of_steps(pipe):
  """The backbone's part by AR steps, the head's by evaluations."""
  shapes = workdir.abstract_params(pipe.card.model, pipe.mesh)
  whole = Pipeline(pipe.card, shapes, pipe.mesh)

  def work(name):
    settings = {**SETTINGS[name], "num_buckets": 1}
    return tradeoff.flops_of(whole, whole.settings(settings))

  five, ten, twenty = (
    work(f"16 × {steps} from 950, DDIM") for steps in (5, 10, 20)
  )
  assert twenty - ten == 2 * (ten - five)
  assert work("8 × 10 from 950, DDIM") < ten


def test_paired_differences_by_hand():
  found = paired.difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
  assert (found.count, found.mean) == (3, 2.0)
  assert found.error == pytest.approx(1 / 3**0.5)
  # Student's t with two degrees of freedom: 3.464 has p 0.0742, 4.303 has 0.05.
  assert found.p == pytest.approx(0.0742, abs=1e-4)
  assert found.high - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
  assert found.low == pytest.approx(4 - found.high)
  with pytest.raises(ValueError, match="scores of 1 and 1 seeds"):
    paired.difference([1.0], [2.0])


@pytest.mark.parametrize(
  ("low", "high", "ratio", "accuracy"),
  [
    (-0.009, 0.009, "equal", "equal"),
    (-0.29, 0.29, "equal", "unclear"),
    (-5.0, -4.0, "better", "worse"),
    (4.0, 5.0, "worse", "better"),
    (-0.5, 0.2, "not worse", "unclear"),
    (-0.2, 0.5, "unclear", "unclear"),
    (-0.005, 0.5, "unclear", "not worse"),
  ],
)
def test_readings(low, high, ratio, accuracy):
  found = paired.Difference(5, (low + high) / 2, 1.0, 0.5, low, high)
  assert paired.reading(found, "frechet_ratio") == ratio
  assert paired.reading(found, "label_accuracy") == accuracy


def scored(name, seed, ratio, accuracy):
  settings = rows.as_row(Settings().changed(SETTINGS[name]))
  return {
    "kind": "scores",
    "name": name,
    "settings": {**settings, "guidance_scale": 1.25, "temperature": 1.05},
    "num_images": 1000,
    "steps_trained": 4200,
    "seed": seed,
    "head_evaluations": tradeoff_settings.head_evaluations(SETTINGS[name]),
    "flops_per_image": 5e6,
    "frechet_ratio": ratio,
    "label_accuracy": accuracy,
    "near_copy_rate": 0.001,
    "device": {"platform": "gpu", "count": 1, "kind": "X"},
  }


def timed(name, seconds):
  return {
    "kind": "time",
    "settings": rows.as_row(Settings().changed(SETTINGS[name])),
    "seconds_per_image": seconds,
  }


SLOW, MIDDLE, FAST = (
  "16 × 100 from 999, ancestral",
  "16 × 20 from 950, ancestral",
  "16 × 10 from 950, ancestral",
)
TABLE = [
  {"kind": "real", "frechet_ratio": 1.37, "label_accuracy": 0.987},
  *(scored(SLOW, seed, 8.0 + seed, 0.9 + 0.01 * seed) for seed in range(4)),
  *(scored(FAST, seed, 2.0 + 1.1 * seed, 0.98) for seed in range(3)),
  scored(MIDDLE, 0, 2.5, 0.98),
  timed(SLOW, 0.03),
  timed(FAST, 0.004),
  timed(FAST, 0.003),
]


def test_tables_show_the_front_the_means_and_the_pairs(tmp_path):
  chosen, fresh, pairs = tradeoff_tables.tables(TABLE)
  assert "1 × X" in chosen.caption
  # Dearer and worse than the fast one, so not on the front.
  assert [row["name"] for row in chosen.lines] == [FAST, SLOW]
  assert [group.name for group in fresh.lines] == [SLOW, FAST]
  assert "1 to 3" in fresh.caption
  line = markdown.table(fresh.columns, fresh.lines).splitlines()[3]
  assert line == f"| {FAST} | 160 | 5 | 3.0 | 0.980 ± 0.000 | 3.65 ± 0.78 |"
  (pair,) = pairs.lines
  assert (pair["name"], pair["against"], pair["seeds"]) == (FAST, SLOW, 2)
  assert pair["frechet_ratio"].mean == pytest.approx(3.65 - 9.5)
  before = [scored(FAST, seed, 1.0, 0.5) for seed in range(3)]
  chosen, fresh, *_ = tradeoff_tables.tables([*before, *TABLE])
  assert [row["frechet_ratio"] for row in chosen.lines] == [2.0, 8.0]
  assert fresh.lines[1].frechet_ratio == [3.1, 4.2]
  for row in TABLE:
    rows.append(tmp_path / "tradeoff.jsonl", row)
  text = tables.tables(tmp_path, tmp_path / "none")
  assert f"| {FAST} | {SLOW} | 2 |" in text
  assert tradeoff_tables.tables([]) == []


def test_the_picture_is_drawn_and_never_replaced_unasked(tmp_path, capsys):
  source, out = tmp_path / "rows.jsonl", tmp_path / "a.png"
  flags = ["--rows", str(source), "--out", str(out)]
  assert tradeoff_picture.main(flags) == 2
  assert "run it first" in capsys.readouterr().err
  for row in TABLE:
    rows.append(source, row)
  assert tradeoff_picture.main(flags) == 0
  with Image.open(io.BytesIO(out.read_bytes())) as picture:
    assert picture.width > 1000
    assert len(set(picture.convert("L").tobytes())) > 20
  assert tradeoff_picture.main(flags) == 2
  assert "already exists" in capsys.readouterr().err


def test_a_wrong_checkpoint_is_one_sentence(tmp_path, capsys):
  assert tradeoff.main(["--checkpoint", str(tmp_path)]) == 2
  assert "is an empty folder; expected a released" in capsys.readouterr().err
