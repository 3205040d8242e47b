"""The table and the curves of a scoreboard, of made-up rows."""

import matplotlib.figure
import pytest

from experiments import markdown
from experiments import scoreboard_pictures as drawn


def test_the_sweep_is_of_one_setting_with_all_others_as_they_are():
  own = {"guidance_scale": 2.0, "temperature": 1.0, "num_ar_steps": 4}
  table = [
    {"images": "own", "settings": {**own, **changed}, "scores": {"fd": value}}
    for changed, value in (
      ({"guidance_scale": 3.0}, 5.0),
      ({}, 1.0),
      ({}, 3.0),
      ({"temperature": 0.9}, 7.0),
    )
  ]
  line = drawn.line_of(table, "own", own, "guidance_scale", "fd")
  assert line == [(2.0, 2.0, pytest.approx(2**0.5)), (3.0, 5.0, 0.0)]
  line = drawn.line_of(table, "own", own, "temperature", "fd")
  assert [point[:2] for point in line] == [(0.9, 7.0), (1.0, 2.0)]


def test_another_training_or_judge_is_no_seed():
  row = {"images": "own", "settings": {}, "scores": {"fd": 1.0}}
  others = [{"parameters": 1}, {"judges": {"p": "2"}}, {"num_real": 3}, {}, {}]
  groups = drawn.by_settings([row | other for other in others])
  assert [len(group) for group in groups] == [1, 1, 1, 2]


def test_ar_steps_are_told_where_a_checkpoint_has_several():
  own = {"guidance_scale": 2.0, "temperature": 1.0}
  table = [{"images": "real test images", "scores": {"fd": 1.0}}]
  for images, steps in (("a", 4), ("b", 8), ("b", 8)):
    settings = own | {"num_ar_steps": steps}
    row = {"images": images, "settings": settings, "scores": {"fd": 2.0}}
    table.append(row)
  assert "num ar steps" not in drawn.of_settings(table)
  table.append(table[1] | {"settings": own | {"num_ar_steps": 16}})
  lines = drawn.of_settings(table).splitlines()
  assert lines[0].startswith("| images | guidance | temperature | num ar steps")
  assert lines[2].startswith("| real test images |  |  |  | 1 |")
  assert [line.split(" | ")[3] for line in lines[3:]] == ["4", "16", "8"]


def test_a_deviation_has_two_digits():
  assert markdown.spread([1.0, 3.0]) == "2.0 ± 1.4"
  assert markdown.spread([791.0, 792.0]) == "791.50 ± 0.71"
  assert markdown.spread([0.04, 0.042]) == "0.0410 ± 0.0014"
  assert markdown.spread([9.090, 9.106, 9.270]) == "9.16 ± 0.10"
  assert markdown.spread([100.0, 300.0]) == "200 ± 141"
  assert markdown.spread([1.0, 1.0]) == "1.00 ± 0.00"


def test_a_value_without_one_has_three():
  assert markdown.spread([4.7764]) == "4.78"
  assert markdown.spread([180.26]) == "180"
  assert markdown.spread([0.71612]) == "0.716"
  assert markdown.spread([0.0037]) == "0.0037"
  assert markdown.spread([-0.00002]) == "0.0000"
  assert markdown.spread([0.0]) == "0.00"


def test_a_control_far_off_does_not_flatten_the_curves():
  own = {
    name: {"guidance_scale": 2.0, "temperature": 1.0}
    for name in ("model", "control")
  }
  table = [
    {
      "images": images,
      "settings": {**own[images], "guidance_scale": scale},
      "scores": {"fd": value},
    }
    for images, scale, value in (
      ("model", 1.0, 20.0),
      ("model", 2.0, 10.0),
      ("control", 2.0, 800.0),
    )
  ]
  figure = matplotlib.figure.Figure()
  axes = figure.subplots(1, 2)
  for ax, value in zip(axes, (800.0, 12.0), strict=True):
    table[-1]["scores"]["fd"] = value
    lines = {
      images: drawn.line_of(table, images, settings, "guidance_scale", "fd")
      for images, settings in own.items()
    }
    drawn.draw(ax, lines)
    assert ax.get_ylim()[1] < 25
  assert [text.get_text() for text in axes[0].texts] == ["800 ↑"]
  assert axes[0].texts[0].get_position()[1] > 1  # above, on nothing
  assert not axes[1].texts
