"""Tables and pictures of the studies of the paper's claims."""

import json

import numpy as np
import pytest
from evaluate.test_studies import asked_of

from experiments import claims, judging, rows, studies, studies_plan
from experiments import studies_tables as tables
from experiments import tables as all_tables
from marjax.evaluate import archives, sets


@pytest.mark.parametrize("name", claims.STUDIES)
def test_a_point_of_a_picture_is_of_one_cell_and_setting(name, tmp_path):
  asked, study = asked_of(tmp_path, is_laptop=False), claims.STUDIES[name]
  points = {}
  for one in studies_plan.planned([name], asked):
    row = studies_plan.key_of(*one, asked)
    place = [tables.value_of(row, key) for key in (study.axis, study.series)]
    what = repr([tables.cell_of(row), row["settings"], row["order"]])
    points.setdefault(repr(place), set()).add(what)
  assert {len(whats) for whats in points.values()} == {1}


def test_cells_are_named_by_what_they_differ_in():
  wide, narrow = "mar-head.width_512-a", "mar-head.width_256-a"
  assert tables.shortened([wide, narrow, wide]) == {
    wide: "width_512",
    narrow: "width_256",
  }
  assert tables.shortened(["mar", narrow]) == {
    "mar": "mar",
    narrow: "width_256, a",
  }
  assert tables.shortened(["mar", "mar_ce-width_352"]) == {
    "mar": "mar",
    "mar_ce-width_352": "mar_ce",
  }


def test_samples_wrap(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "ACROSS", 2)
  files, shapes = {}, []
  for number in range(3):
    images = np.full((2, 8, 8, 3), 60 * number, np.uint8)
    file = files[f"mar-{number}"] = tmp_path / f"{number}.npz"
    archives.write(file, images.shape, [images], np.arange(2))
    beside = tables.samples(files)
    assert beside is not None
    assert (beside == 60 * number).any()
    shapes.append(beside.shape)
  one, two, three = shapes
  assert two == (one[0], 2 * one[1], 3)
  assert three == (2 * one[0], 2 * one[1], 3)
  assert tables.samples({}) is None


def test_a_page_has_the_tables_that_have_rows(tmp_path, monkeypatch):
  asked = studies_plan.Asked(tmp_path)
  planned = studies_plan.planned(["orders"], asked)
  raster = [one for one in planned if one[2] == "raster"]
  # A cell that is trained again has rows of other judges, here of one order.
  for judges, some in (("new", raster), ("old", planned)):
    for one in some:
      row = studies_plan.key_of(*one, asked) | {"trained_as": "fewer steps"}
      kid = one[3] if judges == "old" else 100
      row |= {"scores": {"kid": 0.25 + kid}, "judges": {"any": judges}}
      row |= {"seconds": 3.0, "num_parameters": 10**6, "photographs": "all"}
      rows.append(tmp_path / "studies.jsonl", row)
    control = {"images": f"test images, {judges}", "kind": "control"}
    control |= {"judges": row["judges"], "num_images": asked.num_images}
    control |= {"scores": {"kid": 0.5}, "real": "all"}
    rows.append(tmp_path / "studies.jsonl", control)
  page = "".join(
    f"a <!-- {name} -->\n<!-- end of {name} -->\n" for name in claims.STUDIES
  )
  monkeypatch.setattr(all_tables, "RESULTS", tmp_path)
  text = all_tables.with_studies(page, tmp_path)
  assert "| mar | raster | 3 | 1.2 ± 1.0 | 1 |" in text
  assert text.count("| mar |") == 3
  assert "test images, old" in text
  assert "test images, new" not in text
  assert text.replace(" ", "").count("-->\n<!--") == len(claims.STUDIES) - 1


def test_a_table_is_of_one_training_of_each_cell(tmp_path):
  asked = studies_plan.Asked(tmp_path)
  planned = studies_plan.planned(["orders"], asked)
  table = []
  for recipe, some in (
    ("new", planned[:2]),
    ("old", planned),
    ("few", planned),
  ):
    for one in some:
      made = {"trained_as": recipe, "judges": {}}
      table.append(studies_plan.key_of(*one, asked) | made)
  table = table[:-1]
  own, same = studies_plan.alike("orders", table, asked, "trained_as")
  assert {row["trained_as"] for row in own} == {"old"}
  assert len(own) == len(planned)
  assert same == table
  # What is measured now has the recipe of now, however few rows that are.
  now = studies_plan.key_of(*planned[0], asked) | {"judges": {}}
  own, _ = studies_plan.alike("orders", [*table, now], asked)
  assert own == [now]
  # A cell that was trained twice, of which the second has more rows.
  twice = [now | {"parameters": 1}]
  twice += [
    studies_plan.key_of(*one, asked) | {"judges": {}, "parameters": 2}
    for one in planned[:2]
  ]
  own, _ = studies_plan.alike("orders", twice, asked)
  assert [row["parameters"] for row in own] == [2, 2]
  # Of as many rows of each, those that were added last.
  twice = [
    studies_plan.key_of(*planned[n], asked) | {"judges": {}, "parameters": made}
    for n, made in ((1, 1), (2, 1), (0, 2), (1, 2))
  ]
  own, _ = studies_plan.alike("orders", twice, asked)
  assert [row["parameters"] for row in own] == [2, 2]
  by = [row | {"judges": {"any": row["parameters"]}} for row in twice]
  for order in (by, by[2:] + by[:2]):
    own, _ = studies_plan.alike("orders", order, asked)
    assert own[0]["judges"] == order[-1]["judges"]


def test_rows_of_another_training_are_told(tmp_path, capsys):
  asked = asked_of(tmp_path, seeds=(0, 1, 2))
  for one in studies_plan.planned(["mask_ratio"], asked):
    row = studies_plan.key_of(*one, asked)
    row |= {"scores": {"fd": 1.0}, "judges": {}, "num_parameters": 10**6}
    row["parameters"] = 1 if row["seed"] else 2
    rows.append(asked.rows, row)
  assert studies.write_tables(["mask_ratio"], asked) == 1
  there = rows.read(asked.rows)
  told = "mask_ratio: not shown, of other trainings of their cells, are"
  others = sum(row["parameters"] == 2 for row in there)
  assert 0 < others < len(there) / 2
  assert f"{told} {others} rows" in capsys.readouterr().out
  asked.rows.write_text(
    "".join(json.dumps(row | {"parameters": 1}) + "\n" for row in there)
  )
  assert studies.write_tables(["mask_ratio"], asked) == 1
  assert told not in capsys.readouterr().out


def test_rows_of_other_flags_are_no_rows_of_these(tmp_path):
  asked = asked_of(tmp_path, seeds=(0,))
  rows.append(asked.rows, {"cell": "mar-0", "scores": {}})
  with pytest.raises(
    ValueError, match=r"has no row of orders with .* seeds 0;"
  ):
    studies.show(["orders"], asked)


def test_points_lie_over_the_time_of_an_image(tmp_path, monkeypatch, capsys):
  """Of cells that are trained, each setting once for all seeds."""
  asked = asked_of(tmp_path)
  data = studies_plan.experiment_of(claims.MASKED, asked).data
  photographs = sets.identity(sets.open_set(data))
  asked = asked._replace(photographs=photographs)
  cells = claims.STUDIES["speed"].cells
  trained = [cell for cell in cells if cell.variant != "guided"]
  for cell in trained:
    studies_plan.places_of(cell, asked)[1].mkdir(parents=True)
  took = []

  def seconds_of(release, settings, size):
    took.append((release.name.partition("-")[0], settings.num_ar_steps, size))
    return {"seconds_per_image": 0.25 * settings.num_ar_steps}

  monkeypatch.setattr(studies, "seconds_of", seconds_of)
  flags = ["speed", "--laptop", "--time", f"--out={tmp_path}"]
  for _ in range(2):
    assert studies.main([*flags, "--batch_size=40"]) == 0
  assert took == [
    *[("mar", steps, 40) for steps in (4, 8, 16)],
    ("ar_random", 16, 40),
  ]
  said = capsys.readouterr().out
  assert "timing mar-0, 8 AR steps\n2e+03 ms an image, 40 at once" in said

  table = rows.read(tmp_path / "rows.jsonl")
  own = [
    studies_plan.key_of(*one, asked)
    | {"scores": {"fd": 2.0 + number}, "num_parameters": 10**6}
    for number, one in enumerate(studies_plan.planned(["speed"], asked))
    if one[0] in trained
  ]
  points = tables.timed(own, table)
  shown = [row[tables.TIME] for row in points if row["seed"] == 0]
  assert shown == [1000, 2000, 4000, 4000]
  lines = tables.of_cells(points, []).splitlines()
  assert lines[0].endswith("| million parameters | ms an image |")
  assert lines[3].endswith("| 1 | 2e+03 |")
  seen, points_of = [], tables._points

  def counted(rows_, axis, name):
    seen.append(axis)
    return points_of(rows_, axis, name)

  monkeypatch.setattr(tables, "_points", counted)
  for part in (points, own):  # not all of the second have a time
    tables.chart(claims.STUDIES["speed"], part, [])
  assert set(seen[:2]) == {tables.TIME}
  assert set(seen[2:]) == {"num_ar_steps"}


@pytest.mark.parametrize("name", ["temperature", "diffusion_steps"])
def test_a_line_lies_over_numbers_or_another_score(name, tmp_path, monkeypatch):
  asked = asked_of(tmp_path, is_laptop=False)
  table = []
  for number, one in enumerate(studies_plan.planned([name], asked)):
    scores = {"recall": number / 100, "precision": 1 - number / 100}
    table.append(studies_plan.key_of(*one, asked) | {"scores": scores})
  control = {"images": judging.TEST, "scores": {"recall": 2, "precision": 3}}
  monkeypatch.setattr(tables.pictures, "png_of", lambda figure: figure)
  study = claims.STUDIES[name]
  figure = tables.chart(study, table, [control])
  figure.draw_without_rendering()
  axes = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
  recall = "recall over precision" if study.over else "recall"
  assert {*axes} == {recall, "precision"}
  axis = study.axis.replace("_", " ")
  assert axes["precision"].get_xlabel() == axis
  (legend,) = figure.legends
  entries = [text.get_text() for text in legend.get_texts()]
  if name == "diffusion_steps":
    # Column by column, so that rows are in order.
    kinds = [entry.rpartition(", ")[2] for entry in entries]
    assert kinds == ["999", "980", "950", judging.TEST, "950"]
    assert axes[recall].get_xlabel() == axis
    ticks = [label.get_text() for label in axes[recall].get_xticklabels()]
    assert {"10", "100", "1000"} < {*ticks}
    return
  recall = axes[recall]
  assert recall.get_xlabel() == "precision"
  across, up = recall.lines[0].get_data()  # of the first guidance
  np.testing.assert_allclose(np.add(across, up).astype(float), 1)
  assert len(across) == len(claims.TEMPERATURES)
  ends = [f"temperature {end}" for end in ("0.9", "1.05")]
  assert [text.get_text() for text in recall.texts] == ends
  assert entries == ["1", "3", "6", "9", judging.TEST]
  places = [line.get_xdata() for line in recall.lines[-2:]]
  assert [0, 1] in map(list, places)  # real recall, across
  assert [3, 3] in map(list, places)  # real precision, upright


def test_cells_have_colours_of_their_own():
  colors = pytest.importorskip("matplotlib.colors")
  cells = (
    cell.name for study in claims.STUDIES.values() for cell in study.cells
  )
  names = [*dict.fromkeys(name.rpartition("-")[0] for name in cells)]
  colours = {colors.to_hex(tables._colour(name, 0)) for name in names[:20]}
  assert len(colours) == min(len(names), 20) > 10
