"""Two processes train as one does, and one goes on from what they saved."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from marjax.cli import configs
from marjax.train import loop

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "tests/train/tiny.py"
PATIENCE_SECONDS = 240

PROGRAM = """
import sys, jax
address, process, workdir, num_steps = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
from marjax.cli import configs
from marjax.train import loop
steps = f"config.training.num_steps={num_steps}"
loop.train(configs.load("tests/train/tiny.py", [steps]), workdir)
"""


def train_together(workdir, num_steps):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, address, i, workdir, str(num_steps)],
      cwd=ROOT,
      env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in ("0", "1")
  ]
  try:
    outputs = [p.communicate(timeout=PATIENCE_SECONDS)[0] for p in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [row["loss"] for row in map(json.loads, lines)]


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on(tmp_path):
  together, alone = tmp_path / "together", tmp_path / "alone"
  train_together(together, num_steps=6)
  experiment = configs.load(str(ROOT / CONFIG))
  expected = loop.train(experiment, alone)
  found = loop.train(experiment, together)
  assert len(losses(together)) == 6
  # Sums over devices run in another order.
  np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found.params,
    expected.params,
  )
