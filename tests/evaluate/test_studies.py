"""The studies of the paper's claims: their plans, rows, tables and pictures."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluate.networks import Projection
from evaluate.test_scoreboard import UNSEEN

from experiments import claims, coded, judging, rows, studies, studies_plan
from experiments import studies_tables as tables
from marjax.evaluate import sets
from marjax.evaluate.networks import kinds, weights
from marjax.experiment import Experiment
from marjax.generate.draws import Draws, draw_batch
from marjax.model import param_shapes
from marjax.pipeline import Pipeline
from marjax.release.card import Card

NETWORK = Projection(image_size=16)


def asked_of(out, is_laptop=True, seeds=(0, 1)) -> studies_plan.Asked:
  never = float("inf")
  return studies_plan.Asked(out, "photos", is_laptop, 120, seeds, None, never)


class Stub:
  """A pipeline of a cell that has not been trained; its images are real."""

  def __init__(self, cell, experiment: Experiment):
    self.experiment, self.asked = experiment, []
    self.params = {"of": np.full(3, len(cell.name), np.float32)}
    self.card = Card(
      name=cell.name,
      codec=experiment.codec,
      model=experiment.model,
      sampling=experiment.sampling,
    )

  def settings(self):
    return self.experiment.sampling

  def draws(self, seed, count) -> Draws:
    backbone = self.experiment.model.backbone
    return draw_batch(jax.random.key(seed), jnp.arange(count), backbone)

  def generate(self, labels, seed=0, settings=None, draws=None, **how):
    self.asked.append((settings, seed, draws, how))
    images = UNSEEN.images[: len(labels)].astype(int)
    shift = 5 * len(self.card.name) + seed + (0 if draws is None else 40)
    return np.clip(images + shift, 0, 255).astype(np.uint8)


@pytest.fixture
def board(monkeypatch, tmp_path):
  """Flags of studies, whose cells are stubs, and those stubs by name."""
  stubs: dict[str, Stub] = {}

  def trained(cell, asked):
    assert cell.name not in stubs, "a cell is trained once"
    stubs[cell.name] = Stub(cell, studies_plan.experiment_of(cell, asked))
    return stubs[cell.name]

  monkeypatch.setitem(kinds.NETWORKS, "projection", NETWORK)
  monkeypatch.setattr(studies, "trained", trained)
  file = tmp_path / "p.safetensors"
  weights.write(file, NETWORK, NETWORK.params(), {})
  flags = [
    f"--weights=projection={file}",
    f"--out={tmp_path / 'out'}",
    "--seeds=0,1",
    "--num_images=120",
    "--laptop",
  ]
  return flags, stubs


@pytest.mark.parametrize("is_laptop", [True, False])
@pytest.mark.parametrize("name", claims.STUDIES)
def test_every_study_can_be_planned(name, is_laptop, tmp_path):
  asked = asked_of(tmp_path, is_laptop)
  planned = studies_plan.planned([name], asked)
  assert len(planned) == len(set(planned)) >= 4
  for cell, settings, *_ in planned:
    experiment = studies_plan.experiment_of(cell, asked)
    assert settings == settings.for_model(experiment.model)
  at = [cell for cell, _ in itertools.groupby(planned, lambda one: one[0])]
  assert len(at) == len(set(at)), "one cell after the other"


def test_a_cell_belongs_to_the_process_that_begins_it(board, tmp_path):
  flags, stubs = board
  out = tmp_path / "out"
  with rows.locked(out / "claims" / "mar-0", waits=False) as is_ours:
    assert is_ours
    assert studies.main(["control_l2", *flags]) == 0
    assert set(stubs) == {"regression-0"}
  assert studies.main(["control_l2", *flags]) == 0
  assert set(stubs) == {"regression-0", "mar-0"}


def test_samples_are_of_the_settings_of_now(board, tmp_path, monkeypatch):
  """Also of a release that says how it was drawn before."""
  flags, _ = board

  def before(self):
    return self.experiment.sampling.changed({"guidance_scale": 1.5})

  monkeypatch.setattr(Stub, "settings", before)
  assert studies.main(["mask_ratio", *flags]) == 0
  assert len([*(tmp_path / "out" / "images").iterdir()]) == 2


def test_who_is_done_draws_cells_of_others(board, tmp_path):
  """One process holds a trained cell, and draws one of its rows."""
  flags, stubs = board
  out = tmp_path / "out"
  asked = asked_of(out)
  data = studies_plan.experiment_of(claims.MASKED, asked).data
  asked = asked._replace(photographs=sets.identity(sets.open_set(data)))
  cell, *how = studies_plan.planned(["orders"], asked)[3]
  studies_plan.places_of(cell, asked)[1].mkdir(parents=True)
  file = next(f for f in flags if "projection=" in f).split("=", 2)[2]
  networks = judging.eyes({"projection": file}, 120, allow_few=True)
  judges = judging.digests(networks.values())
  key = studies_plan.key_of(cell, *how, asked) | {"judges": judges}
  with (
    rows.locked(out / "claims" / cell.name, waits=False),
    rows.locked(out / "claims" / rows.digest(key), waits=False),
  ):
    assert studies.main(["orders", *flags]) == 0
  drawn = [row for row in rows.read(out / "rows.jsonl") if "cell" in row]
  assert len(drawn) == 5
  assert rows.find(drawn, **key) is None
  stubs.clear()
  assert studies.main(["orders", *flags]) == 0
  assert rows.find(rows.read(out / "rows.jsonl"), **key)


def test_a_row_knows_its_recipe_and_seeds_have_their_own_order(tmp_path):
  cells = [claims.Cell(seed=seed) for seed in (0, 1)]
  asked = [asked_of(tmp_path, is_laptop) for is_laptop in (True, False)]
  data = [studies_plan.experiment_of(cell, asked[1]).data for cell in cells]
  assert [part.seed for part in data] == [0, 1]
  keys = [
    studies_plan.key_of(
      cells[0], *studies_plan.planned(["orders"], one)[0][1:], one
    )
    for one in asked
  ]
  assert keys[0]["cell"] == keys[1]["cell"]
  assert keys[0]["trained_as"] != keys[1]["trained_as"]


def test_trainings_may_be_shorter_but_for_cells_that_say_how_long(tmp_path):
  asked = asked_of(tmp_path, is_laptop=False)._replace(num_steps=4000)
  steps = [
    studies_plan.experiment_of(cell, asked).training.num_steps
    for cell in claims.STUDIES["start"].cells
  ]
  assert steps == [4000, 1500]


def test_no_cell_is_large_on_a_laptop(tmp_path):
  asked = asked_of(tmp_path)
  for study in claims.STUDIES.values():
    for cell in study.cells:
      experiment = studies_plan.experiment_of(cell, asked)
      shapes = param_shapes(experiment.model)
      assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 100_000
      assert experiment.training.num_steps == 4


def test_rows_are_shared_and_measured_once(
  board, tmp_path, capsys, monkeypatch
):
  flags, stubs = board
  names = "orders,control_l2,mask_ratio"
  assert studies.main([names, *flags, "--dry_run"]) == 0
  text = capsys.readouterr().out
  assert "mar-0: 10 rows" in text
  assert "H200" not in text
  assert not stubs
  big = ["orders", "--dry_run", "--data_dir="]
  assert studies.main(big) == 0
  assert "minutes of one H200, an estimate" in capsys.readouterr().out

  assert studies.main([names, *flags]) == 0
  out = tmp_path / "out"
  table = rows.read(out / "rows.jsonl")
  kinds_of = [row.get("kind", row.get("order")) for row in table]
  assert kinds_of.count("control") == 2
  assert len(table) == 2 + 10 + 4 + 2
  assert set(stubs) == {
    "mar-0",
    "regression-0",
    "mar-backbone.masking.lowest_0.7-0",
  }
  orders = [draws.order for _, _, draws, _ in stubs["mar-0"].asked if draws]
  assert len(orders) == 6
  assert any((order == np.arange(16)).all() for order in orders)
  for name in names.split(","):
    for end in (".md", ".png"):
      assert (out / f"{name}{end}").stat().st_size > 100
  lines = (out / "control_l2.md").read_text().splitlines()
  assert len(lines) == 2 + 2 + 4 + 2
  assert lines[4].startswith("| mar | 9 | 2 |")
  assert " ± " in lines[4]
  assert lines[8].startswith(f"| {judging.TEST} |")
  kept = [path.name.rpartition("-")[0] for path in (out / "images").iterdir()]
  assert sorted(kept) == sorted(stubs)

  stubs.clear()
  monkeypatch.delattr(judging, "board_of")  # no image is looked at again
  assert studies.main([names, *flags]) == 0
  assert not stubs
  text = (out / "orders.md").read_text()
  (out / "orders.md").unlink()
  others = [flag for flag in flags if not flag.startswith("--weights")]
  assert studies.main([names, *others, "--tables"]) == 0
  assert (out / "orders.md").read_text() == text
  assert rows.read(out / "rows.jsonl") == table
  few = [flag for flag in others if flag != "--laptop"]
  assert studies.main([names, *few, "--tables"]) == 2
  assert "repeat its --num_images" in capsys.readouterr().err


def test_rows_of_others_are_not_taken_for_these(board, tmp_path, capsys):
  """Of another judge, of other photographs, of another number of images."""
  flags, _ = board
  assert studies.main(["control_l2", *flags]) == 0
  out = tmp_path / "out"

  def missing(*changed):
    capsys.readouterr()
    assert studies.main(["control_l2", *flags, *changed, "--dry_run"]) == 0
    return capsys.readouterr().out.count(" rows")

  assert missing() == 0
  file = tmp_path / "other.safetensors"
  weights.write(file, NETWORK, NETWORK.params(seed=1), {})
  assert missing(f"--weights=projection={file}") == 2
  lines = (out / "rows.jsonl").read_text()
  (out / "rows.jsonl").write_text(lines.replace("synthetic", "photographed"))
  assert missing() == 2
  (out / "rows.jsonl").write_text(lines)

  assert missing("--num_images=140") == 2
  there = rows.read(out / "rows.jsonl")
  study, own = claims.STUDIES["control_l2"], there[2:]
  more = [
    row | {"num_images": 100} for row in there if row.get("kind") == "control"
  ]
  counts = [
    [
      row["num_images"]
      for row in tables.controls(study, own, more + there, count)
    ]
    for count in (110, 130, 50)
  ]
  assert counts == [[100, 100], [120, 120], []]
  others = [row | {"real": "others", "scores": {}} for row in there[:2]]
  assert tables.controls(study, own, there + others, 120) == there[:2]

  # A table is of the judges of most rows, or the newest of several.
  flags = [flag for flag in flags if not flag.startswith("--weights")]
  for row in [row for row in there if "cell" in row]:
    assert studies.main(["control_l2", *flags, "--tables"]) == 0
    assert "fd_projection" in (out / "control_l2.md").read_text()
    other = {"judges": {"other": "1"}, "scores": {"fd_other": 1.0}}
    rows.append(out / "rows.jsonl", row | other)
  assert studies.main(["control_l2", *flags, "--tables"]) == 0
  assert "fd_other" in (out / "control_l2.md").read_text()


def test_a_cell_of_other_photographs_is_another(tmp_path):
  asked = asked_of(tmp_path)._replace(photographs="of cats")
  others = asked._replace(photographs="of dogs")
  cell = claims.Cell("mar_ce")
  for one, other in (
    [studies_plan.places_of(cell, each) for each in (asked, others)],
    [studies_plan.codes_of(each) for each in (asked, others)],
  ):
    assert one != other


def rows_of(cell: str, table: list) -> list:
  """A cell's rows in its own order and settings of the config."""
  return [
    row
    for row in table
    if (row.get("cell"), row.get("order")) == (cell, "own")
    and row["settings"]["guidance_scale"] == 9
  ]


def test_images_of_a_loss_without_codes_are_shown_as_codes(
  board, tmp_path, monkeypatch
):
  flags, stubs = board
  draws = [claims.Draw({}, claims.AS_CODES)]
  study = claims.Study("Codes or none.", [claims.MASKED, claims.CODES], draws)
  monkeypatch.setitem(claims.STUDIES, "pair", study)
  assert studies.main(["control_l2,pair", *flags]) == 0
  out = tmp_path / "out"
  table = rows.read(out / "rows.jsonl")
  shown = [row for row in table if row.get("order") == claims.AS_CODES]
  assert [row["cell"] for row in shown] == ["mar-0"] * 2 + ["mar_ce-0"] * 2
  # Judged beside photographs made of codes, test images are as near as ever.
  test, real = (
    rows.find(table, images=name) for name in (coded.TEST, judging.TEST)
  )
  assert test["real"].startswith(f"{real['real']}, codes-")
  assert test["scores"] != real["scores"]
  distance = [row["scores"]["fd_projection"] for row in (test, real)]
  assert distance[0] < 2 * distance[1]
  for row, plain in zip(shown[:2], rows_of("mar-0", table)[:2], strict=True):
    assert row["seed"] == plain["seed"]
    assert row["scores"] != plain["scores"]
  pages = [
    (out / f"{name}.md").read_text().count(f"| {coded.TEST} |")
    for name in ("pair", "control_l2")
  ]
  assert pages == [1, 0]

  # A kill leaves controls to do, whatever came after them.
  rest = [row for row in table if row not in (test, real)]
  (out / "rows.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rest))
  stubs.clear()
  assert studies.main(["control_l2,pair", *flags]) == 0
  assert not stubs
  for name in (coded.TEST, judging.TEST):
    assert rows.find(rows.read(out / "rows.jsonl"), images=name)
  assert studies.main(["control_l2,pair", *flags]) == 0


def test_images_are_drawn_once_for_both_judgements(
  board, tmp_path, monkeypatch
):
  """And real images of another number have rows of their own."""
  flags, stubs = board
  for name, order in (("plain", "own"), ("coded", claims.AS_CODES)):
    draws = [claims.Draw({"guidance_scale": g}, order) for g in (9.0, 3.0)]
    study = claims.Study("Codes or none.", [claims.MASKED], draws)
    monkeypatch.setitem(claims.STUDIES, name, study)
  for count in (120, 140):
    stubs.clear()
    assert studies.main(["plain,coded", *flags, f"--num_images={count}"]) == 0
    assert [seed for _, seed, *_ in stubs["mar-0"].asked] == [0, 1, 0, 1]
  table = rows.read(tmp_path / "out" / "rows.jsonl")
  for name in (judging.TEST, judging.NOISY, coded.TEST):
    own = [row for row in table if row.get("images") == name]
    assert [row["num_images"] for row in own] == [120, 140]


def test_a_study_of_codes_alone_needs_no_photographs_as_they_are(
  board, tmp_path, monkeypatch
):
  flags, _ = board
  draws = [claims.Draw({}, claims.AS_CODES)]
  study = claims.Study("Codes.", [claims.MASKED], draws)
  monkeypatch.setitem(claims.STUDIES, "coded", study)
  assert studies.main(["coded", *flags]) == 0
  table = rows.read(tmp_path / "out" / "rows.jsonl")
  real = [row["images"] for row in table if "images" in row]
  assert real == [coded.TEST]


def test_too_few_real_images_are_refused_before_any_work(
  board, tmp_path, monkeypatch, capsys
):
  flags, stubs = board
  monkeypatch.setattr(judging, "SUBSET", 10**6)
  for more in ([], ["--dry_run"]):
    assert studies.main(["orders", *flags, "--num_images=90000", *more]) == 2
    assert "expected 90000 or more of each: add" in capsys.readouterr().err
  assert not stubs
  assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_late_begins_nothing(board, tmp_path, capsys):
  flags, stubs = board
  assert studies.main(["control_l2", *flags, "--limit_s=0"]) == 0
  assert not stubs
  assert capsys.readouterr().out.count("8 rows are left") == 1
  assert studies.main(["table1", *flags, "--limit_s=0"]) == 0
  out = tmp_path / "out"
  assert not rows.read(out / "rows.jsonl")
  assert {path.name for path in out.iterdir()} == {"rows.jsonl", "claims"}


@pytest.mark.parametrize(
  ("argv", "words"),
  [
    (["steps"], "there is no study 'steps'; expected some of table1"),
    (["orders"], "--data_dir is missing"),
    (["orders", "--laptop"], "--weights is missing"),
    (["orders", "--laptop", "--seeds=a"], "--seeds is 'a'; expected whole num"),
    (["orders", "--laptop", "--seeds=-1"], "expected whole numbers below"),
    (
      ["orders", "--laptop", "--num_images=-3"],
      "--num_images: it is '-3'; expected",
    ),
    (["orders", "--laptop", "--limit_s=-3"], "expected seconds, 0 or more"),
    (["orders", "--laptop", "--weights=label"], "expected one whose features"),
    (["orders", "--dry_run", "--data_dir=none"], "none, and there is nothing"),
    (["orders", "--tables", "--out=none"], "has no rows; expected what was"),
    (["orders", "--laptop", "--time", "--out=none"], "has no trained model of"),
    (["orders", "--laptop", "--time", "--dry_run"], "expected one of them"),
    (["orders", "--tables", "--dry_run"], "--tables and --dry_run are given"),
    (["orders", "--laptop", "--data_dir=docs"], "made-up images or"),
    (
      ["orders", "--laptop", "--seeds=4294967296"],
      "expected whole numbers below",
    ),
    (["orders", "--laptop", "--weights=pixels", "--out=/proc/x"], "be written"),
  ],
)
def test_wrong_flags_are_one_sentence(argv, words, capsys):
  assert studies.main(argv) == 2
  error = capsys.readouterr().err
  assert words in error
  assert error.count("\n") == 1


@pytest.mark.slow
def test_a_cell_is_trained_and_drawn(tmp_path):
  """The road without stubs: codes are fitted, and a training goes on."""
  asked = asked_of(tmp_path, seeds=(0,))
  cell = claims.Cell("mar_ce")
  pipe = studies.trained(cell, asked)
  assert isinstance(pipe, Pipeline)
  assert pipe.card.step == 4
  images = pipe.generate([1, 2], settings=pipe.settings())
  assert images.shape == (2, 16, 16, 3)
  took = studies.seconds_of(
    studies_plan.places_of(cell, asked)[1], pipe.settings(), 4
  )
  assert 0 < took["seconds_per_image"] < 10
  shutil.rmtree(tmp_path / "runs")  # averaged weights are all that it takes
  again = studies.trained(cell, asked)
  jax.tree.map(np.testing.assert_array_equal, again.params, pipe.params)
