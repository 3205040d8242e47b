"""Killed on some devices, resumed on others; and what is wrong is told."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import moved
from experiments import rows


@pytest.mark.slow
def test_a_killed_run_goes_on_with_other_devices(tmp_path, capsys):
  out = tmp_path / "rows.jsonl"
  flags = ["--devices", "2", "--model", "tiny", "--out", str(out)]
  assert moved.main([str(tmp_path / "runs"), *flags]) == 0
  table = rows.read(out)
  assert [row["devices"] for row in table] == [[1, 1], [2, 1], [1, 2]]
  assert [row["device"]["count"] for row in table] == [1, 1, 2]
  assert [row["is_same_bits"] for row in table] == [True, False, False]
  assert table[0]["loss"] == 0
  assert all(0 < row["loss"] < 1e-5 for row in table[1:])
  assert capsys.readouterr().out.count("killed after step 40") == 3


def leave(folder, devices, change=0.0):
  """What the processes of a run with these devices leave."""
  workdir = folder / "_then_".join(map(str, devices))
  for step in range(1, moved.NUM_STEPS + 1):
    row = {"step": step, "loss": 1.0 + change * (step > moved.KILLED_AT)}
    rows.append(workdir / "metrics.jsonl", row)
  np.savez(workdir.with_suffix(".npz"), kernel=np.full(3, 1 + change))
  rows.append(workdir.with_suffix(".json"), {"count": devices[-1]})
  return workdir


def test_a_run_that_goes_another_way_is_seen(tmp_path, monkeypatch, capsys):
  def run(folder, model, devices):
    return leave(folder, devices, 2e-4 if devices == [2, 1] else 0.0)

  monkeypatch.setattr(moved, "run", run)
  assert moved.main([str(tmp_path / "a")]) == 1
  first, second, third = capsys.readouterr().out.splitlines()
  assert second.endswith("; too far")
  assert "the same bits" in first
  assert "the same bits" in third
  assert moved.main([str(tmp_path / "b"), "--tolerance", "1e-3"]) == 0


def test_comparing_takes_no_device(tmp_path):
  """One GPU's memory would be gone for the processes that train."""
  code = """
import pathlib, sys
from benchmarks import moved
from evaluate import test_moved
def run(folder, model, devices):
  return test_moved.leave(folder, devices)
moved.run = run
sys.exit(moved.main([sys.argv[1]]))
"""
  where = {"PYTHONPATH": "tests", "JAX_PLATFORMS": "none_that_there_is"}
  subprocess.run(
    [sys.executable, "-c", code, str(tmp_path / "runs")],
    cwd=moved.ROOT,
    env={**os.environ, **where},
    check=True,
  )


def test_a_step_that_is_missing_is_seen(tmp_path):
  workdir = leave(tmp_path, [1])
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[:50] + lines[51:]))
  with pytest.raises(moved.MovedError, match="expected 1 to 100, each once"):
    moved.losses(workdir)


def process(monkeypatch, tmp_path, code):
  """Processes run this code instead."""
  script = tmp_path / "benchmarks" / "moved.py"
  script.parent.mkdir()
  script.write_text(code)
  (script.parent / "__init__.py").touch()
  monkeypatch.setattr(moved, "ROOT", tmp_path)


def test_a_process_that_ends_too_early_is_told(tmp_path, monkeypatch, capsys):
  process(monkeypatch, tmp_path, "print('I am done')")
  with pytest.raises(moved.MovedError, match=r"0; expected -9.*I am done"):
    moved.run(tmp_path, "tiny", [2, 1])
  assert moved.main([str(tmp_path / "runs"), "--model", "tiny"]) == 1
  assert "nothing" not in capsys.readouterr().err


def test_processes_have_the_devices_that_they_are_given(tmp_path, monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
  variables = moved.environment_of(2, tmp_path)
  assert variables["CUDA_VISIBLE_DEVICES"] == "4,5"
  assert variables["JAX_NUM_CPU_DEVICES"] == "2"
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
  assert moved.environment_of(1, tmp_path)["CUDA_VISIBLE_DEVICES"] == "0"


def test_wrong_flags_are_one_sentence(tmp_path, capsys):
  assert moved.main([str(tmp_path)]) == 2
  assert moved.main([str(tmp_path / "a"), "--devices", "1"]) == 2
  # The tests have eight devices.
  assert moved.main([str(tmp_path / "b"), "--train", "3"]) == 2
  said = capsys.readouterr().err
  assert "File exists" in said
  assert "--devices is 1; expected 2 or more" in said
  assert "8 devices are here; expected 3" in said
