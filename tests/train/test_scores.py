"""A run that is scored while it trains."""

import json
import shutil

import jax
import numpy as np
import pytest
from evaluate.networks import Projection
from train.shared import losses, rows, tiny
from train.together import saved_state

from marjax.evaluate import stream
from marjax.evaluate.networks import kinds, weights
from marjax.train import loop, scores

pytestmark = pytest.mark.usefixtures("shared_programs")

NETWORK = Projection(channels=1, image_size=4)


@pytest.fixture(autouse=True)
def network(monkeypatch):
  monkeypatch.setitem(kinds.NETWORKS, NETWORK.name, NETWORK)


def experiment(folder, *more):
  path = folder / "weights.safetensors"
  if not path.exists():
    weights.write(path, NETWORK, NETWORK.params(), {"from": "here"})
  return tiny(
    "training.evaluate_every=4",
    "training.num_steps=10",
    "training.ema_rate=0.5",
    "evaluation.network=projection",
    f"evaluation.weights={path}",
    "evaluation.scores=fid,is",
    "evaluation.num_images=20",
    *more,
  )


def scores_of(workdir):
  """Scores by step."""
  lines = rows(workdir / "metrics.jsonl")
  return {row["step"]: row for row in lines if scores.COUNT in row}


def test_scores_are_metrics_and_change_nothing_else(
  tmp_path, caplog, monkeypatch
):
  here, without = tmp_path / "here", tmp_path / "without"
  run, scored = stream.Stream.run, []

  def noting(self, settings):
    scored.append(jax.device_get(self.pipe.params))
    return run(self, settings)

  monkeypatch.setattr(stream.Stream, "run", noting)
  loop.train(experiment(tmp_path), here)
  first = scores_of(here)
  assert list(first) == [4, 8, 10], caplog.text
  names = {"fd_projection", "class_score_projection"}
  assert all(names <= row.keys() for row in first.values())
  # The averaged weights of the step, bit for bit.
  saved = saved_state(here, 8)
  for path, leaf in jax.tree_util.tree_leaves_with_path(scored[1]):
    name = jax.tree_util.keystr(path)
    np.testing.assert_array_equal(leaf, saved[f"['ema_params']{name}"])
  assert first[4][scores.COUNT] == 20
  loop.train(experiment(tmp_path, "training.evaluate_every=0"), without)
  assert losses(here) == losses(without)
  # As if killed while scoring step 8, of which there is a checkpoint.
  lines = rows(here / "metrics.jsonl")
  left = [r for r in lines if r["step"] < 8 or "loss" in r]
  content = "".join(json.dumps(row) + "\n" for row in left)
  (here / "metrics.jsonl").write_text(content)
  shutil.rmtree(here / "checkpoints" / "10")
  loop.train(experiment(tmp_path), here)
  assert scores_of(here) == first


def test_what_cannot_be_scored_is_told_before_the_first_step(tmp_path):
  nothing = experiment(tmp_path, "evaluation.weights=nothing")
  with pytest.raises(FileNotFoundError, match="nothing does not exist"):
    loop.train(nothing, tmp_path / "w")
  odd = experiment(tmp_path, "evaluation.num_images=21")
  with pytest.raises(ValueError, match="21; expected a multiple of 2"):
    loop.train(odd, tmp_path / "w")


def test_scores_that_fail_do_not_stop_training(tmp_path, monkeypatch, caplog):
  def fail(*args, **kwargs):
    raise ValueError("no such luck")

  monkeypatch.setattr(scores.sweep, "scored", fail)
  state = loop.train(experiment(tmp_path), tmp_path / "w")
  assert int(state.step) == 10
  assert not scores_of(tmp_path / "w")
  assert "no scores of step 4 (ValueError: no such luck)" in caplog.text
