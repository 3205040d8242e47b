"""kill -9 at any moment, the same command again: the same bits in the end."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NUM_KILLS = 10
NUM_STEPS = 500
PATIENCE_SECONDS = 120


def start(workdir, log):
  """`marjax train` in a process of its own; its output goes to `log`."""
  overrides = {"num_steps": NUM_STEPS, "log_every": 5, "checkpoint_every": 10}
  return subprocess.Popen(
    [
      sys.executable,
      *("-m", "marjax", "train", "--config", "tests/train/tiny.py"),
      *("--workdir", str(workdir)),
      *(f"--config.training.{key}={value}" for key, value in overrides.items()),
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    stdout=log,
    stderr=subprocess.STDOUT,
  )


def wait_for_reports(process, log, count):
  """Blocks until this process has reported `count` times, or ended."""
  deadline = time.monotonic() + PATIENCE_SECONDS
  while log.read_text().count("images/s") < count:
    assert time.monotonic() < deadline, log.read_text()
    if process.poll() is not None:
      break
    time.sleep(0.002)


def run(workdir, log):
  with open(log, "w") as file:
    assert start(workdir, file).wait(PATIENCE_SECONDS) == 0, log.read_text()


def kill(workdir, log, chance):
  """Starts the run and kills it within sixty steps or so."""
  with open(log, "w") as file:
    process = start(workdir, file)
  wait_for_reports(process, log, chance.randint(1, 10))
  # Steps take a few milliseconds and a save a hundred: any phase may be hit.
  time.sleep(chance.uniform(0, 0.05))
  assert process.poll() is None, f"ended before the kill: {log.read_text()}"
  process.send_signal(signal.SIGKILL)
  process.wait()


def newest(workdir):
  """The newest step saved, 0 if none."""
  names = [path.name for path in workdir.glob("checkpoints/*")]
  return max((int(name) for name in names if name.isdecimal()), default=0)


def final_state(workdir):
  """Every array of the newest checkpoint, by path."""
  import orbax.checkpoint as ocp

  path = workdir / "checkpoints" / str(NUM_STEPS) / "state"
  with ocp.StandardCheckpointer() as reader:
    restored = reader.restore(path)
  return {
    jax.tree_util.keystr(key): np.asarray(array)
    for key, array in jax.tree_util.tree_leaves_with_path(restored)
  }


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


@pytest.mark.slow
def test_ten_kills_change_no_bit(tmp_path):
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  run(straight, tmp_path / "straight.log")
  chance, resumed = random.Random(0), []
  for i in range(NUM_KILLS):
    kill(killed, tmp_path / f"kill_{i}.log", chance)
    resumed.append(newest(killed))
  run(killed, tmp_path / "last.log")
  assert resumed == sorted(resumed)
  assert len(set(resumed)) > 3, f"kills too early to test much: {resumed}"
  expected, found = final_state(straight), final_state(killed)
  assert expected.keys() == found.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
  assert losses(killed) == losses(straight)
  reported = [step for step, _ in losses(killed)]
  assert reported == list(range(5, NUM_STEPS + 1, 5))
