"""Runs that are killed ten times, and of two processes: the same report."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from evaluate import stub
from train import together

NUM_KILLS = 10
FLAGS = ["--scores", "fid,is,pr", "--network", "projection"]
FLAGS += ["--guidance", "1,2.9", "--num_images", "800", "--batch_size", "16"]

PROGRAM = """
import sys
sys.path.insert(0, "tests")
from evaluate import stub
from marjax.cli.main import main
from marjax.evaluate import begun
from marjax.evaluate.networks import kinds

kinds.NETWORKS[stub.NETWORK.name] = stub.NETWORK
begun.SAVE_SECONDS, begun.SAVE_SHARE = 0.0, 1.0
sys.exit(main(sys.argv[1:]))
"""


def start(place, out, log, *flags, devices=1):
  """`marjax evaluate` in a process of its own, saving after each batch."""
  return subprocess.Popen(
    [
      *(sys.executable, "-c", PROGRAM, "evaluate"),
      *("--checkpoint", str(place / "model"), "--out", str(out)),
      *("--weights", str(place / "weights.safetensors")),
      *("--against", str(place / "real.npz"), "--num_real", "60"),
      *(*FLAGS, *flags),
    ],
    cwd=together.ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
    stdout=log,
    stderr=subprocess.STDOUT,
  )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return stub.make(tmp_path_factory.mktemp("place"))


def finished(place, folder, *flags, **how):
  """The folder of a run that nothing happened to."""
  with open(folder / "log", "w") as log:
    process = start(place, folder / "out", log, *flags, **how)
    assert process.wait(240) == 0, (folder / "log").read_text()
  return folder / "out"


@pytest.fixture(scope="module")
def straight(place, tmp_path_factory):
  return finished(place, tmp_path_factory.mktemp("straight"))


def states(out):
  """What is saved of a run: it changes with every batch."""
  return {path: path.stat().st_mtime_ns for path in out.glob("begun/[01].*")}


@pytest.mark.slow
def test_ten_kills_change_no_bit(straight, place, tmp_path):
  out, chance, kills = tmp_path / "out", random.Random(0), 0
  for number in range(3 * NUM_KILLS):
    with open(tmp_path / f"{number}.log", "w") as log:
      process = start(place, out, log)
      before, deadline = states(out), time.monotonic() + 240
      # Once something more was saved, at any moment of a batch or a save.
      while states(out) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
      time.sleep(chance.uniform(0, 0.02))
      process.send_signal(signal.SIGKILL)
      code = process.wait()
    kills += code == -signal.SIGKILL
    if kills == NUM_KILLS or code == 0:
      break
  said = (tmp_path / f"{number}.log").read_text()
  assert kills == NUM_KILLS, f"{kills} kills only: {said}"
  assert not (out / "report.json").exists()
  with open(tmp_path / "last.log", "w") as log:
    assert start(place, out, log).wait(240) == 0
  for name in ("report.json", "samples.png", "curves.png"):
    assert (out / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_report_what_one_does(straight, place, tmp_path):
  address, logs = together.free_address(), []
  out, processes = tmp_path / "out", []
  for i in range(2):
    flags = ["--coordinator_address", address, "--num_processes", "2"]
    with open(tmp_path / f"{i}.log", "w") as log:
      logs.append(tmp_path / f"{i}.log")
      more = [*flags, "--process_id", str(i)]
      processes.append(start(place, out, log, *more, devices=2))
  said = "".join(f"\n{log.read_text()}" for log in logs)
  try:
    codes = [process.wait(240) for process in processes]
    said = "".join(f"\n{log.read_text()}" for log in logs)
    assert codes == [0, 0], said
  finally:
    for process in processes:
      process.kill()
  reports = [
    json.loads((folder / "report.json").read_text())["results"]
    for folder in (out, straight)
  ]
  for one, other in zip(*reports, strict=True):
    assert one["settings"] == other["settings"]
    for name, value in other["scores"].items():
      # A distance, and a deviation, is what is left of larger numbers.
      size = abs(other["scores"][name.removesuffix("_deviation")])
      np.testing.assert_allclose(
        one["scores"][name], value, rtol=0, atol=1e-5 * size, err_msg=name
      )
  # Only the first writes, and shows progress.
  assert "images/s" in logs[0].read_text()
  assert "images/s" not in logs[1].read_text()
