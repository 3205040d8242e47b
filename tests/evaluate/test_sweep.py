"""Whole runs: killed, on several processes, saved, swept, refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small
from evaluate import stub

from marjax.cli.main import main
from marjax.evaluate import begun, sweep
from marjax.evaluate.scores import gathered, statistics
from marjax.evaluate.scores.options import Options

FLAGS = ["--scores", "fid,is,pr", "--network", "projection", "--seed", "3"]
FLAGS += ["--num_images", "40", "--batch_size", "16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A release, the network's weights and real images."""
  return stub.make(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def network(monkeypatch):
  stub.register(monkeypatch.setitem)


def run(place, out, *flags, without=()):
  """`marjax evaluate`; its exit code."""
  every = {
    "--checkpoint": place / "model",
    "--out": out,
    "--weights": place / "weights.safetensors",
    "--against": place / "real.npz",
  }
  pairs = [(k, str(v)) for k, v in every.items() if k not in without]
  return main(["evaluate", *sum(pairs, ()), *FLAGS, *flags])


def files(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def straight(place, tmp_path_factory):
  """The report of a run over guidance that nothing happened to."""
  out = tmp_path_factory.mktemp("straight") / "out"
  with pytest.MonkeyPatch.context() as patch:
    stub.register(patch.setitem)
    assert run(place, out, "--guidance", "1,2.9") == 0
  return out


def test_a_sweep_reports_scores_of_all_settings(straight, place):
  pytest.importorskip("matplotlib")
  assert files(straight) == [
    *("curves.png", "report.json", "samples.png", "speed.json")
  ]
  report = json.loads((straight / "report.json").read_text())
  rows = report["results"]
  assert [row["name"] for row in rows] == [
    "guidance_scale=1.0",
    "guidance_scale=2.9",
  ]
  print(rows[0]["scores"])
  assert rows[0]["scores"].keys() >= {"fd_projection", "precision", "recall"}
  assert rows[0]["scores"] != rows[1]["scores"]
