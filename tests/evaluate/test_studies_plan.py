"""What the studies of the paper's claims are to measure, and its cost."""

import jax
import numpy as np
import pytest
from evaluate.test_studies import asked_of

from experiments import claims, studies_drawn, studies_plan
from marjax.model import param_shapes


@pytest.mark.parametrize(
  ("name", "share"), [("table1", (0.5, 0.56)), ("losses", (1, 1.03))]
)
def test_cells_with_either_loss_have_as_many_parameters(name, share, tmp_path):
  """In table 1, as in the paper, those of codes have no diffusion MLP."""
  asked, counts = asked_of(tmp_path, is_laptop=False), {True: [], False: []}
  for cell in claims.STUDIES[name].cells:
    shapes = param_shapes(studies_plan.experiment_of(cell, asked).model)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    counts[cell.has_codes].append(count)
  assert [len(column) for column in counts.values()] == [6, 6]
  for column in counts.values():
    assert max(column) / min(column) < 1.03
  least, most = share
  assert least <= counts[True][0] / counts[False][0] < most


@pytest.mark.parametrize("name", claims.STUDIES)
def test_images_of_a_study_are_all_made_of_codes_or_none(name):
  study = claims.STUDIES[name]
  made = [draw.order == claims.AS_CODES for draw in study.draws]
  assert set(made) == {study.is_as_codes}


def test_images_that_are_drawn_for_two_rows_cost_once(tmp_path):
  many = 10_000_000
  asked = asked_of(tmp_path, is_laptop=False)._replace(num_images=many)
  settings = studies_plan.settings_of(claims.MASKED, claims.Draw({}), asked)
  one, minutes = (claims.MASKED, settings, "own", 0), []
  coded_one = (claims.MASKED, settings, claims.AS_CODES, 0)
  for left in ([one], [one, coded_one], [one, (*one[:3], 1)]):
    last = studies_plan.plan(left, asked).splitlines()[-1]
    minutes.append(int(last.split()[0]))
  alone, as_codes, drawn_twice = minutes
  scores = studies_plan.ROW_SECONDS * many / 10_000 / 60
  assert abs(as_codes - alone - scores) <= 1
  assert drawn_twice - alone > scores + 40


def test_a_checkerboard_comes_colour_by_colour():
  own = np.array([[3, 0, 2, 1], [0, 1, 2, 3]])
  board = studies_drawn.order_of("checkerboard", own)
  np.testing.assert_array_equal(board, [[3, 0, 2, 1], [0, 3, 1, 2]])
  raster = studies_drawn.order_of("raster", own)
  np.testing.assert_array_equal(raster, [[0, 1, 2, 3]] * 2)
  np.testing.assert_array_equal(studies_drawn.order_of("random", own), own)
