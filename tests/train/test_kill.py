"""Killed at any moment, told to go, moved elsewhere: the same run in the end.

Two processes of two devices each share one state, split over the devices of
both.
"""

import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from train import together
from train.shared import losses, rows, tiny

from marjax.data.batches import Batches
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import global_batch
from marjax.train.checkpoint import Checkpointer
from marjax.train.step import make_train_program

# Which processes are killed, and whether late; the other follows.
KILLS = [
  (victims, is_late)
  for victims in ((0,), (1,), (0, 1))
  for is_late in (False, True)
]
NUM_STEPS = 30
MOVED_AT = 10
CHANGES = [
  "mesh.data=2",
  "mesh.fsdp=2",
  f"training.num_steps={NUM_STEPS}",
  "training.log_every=1",
  "training.checkpoint_every=2",
  "training.keep_checkpoints=30",
  "training.log_ids=true",
]


def pair(workdir, logs, *others):
  flags = [f"--config.{change}" for change in (*CHANGES, *others)]
  return together.Pair(workdir, logs, *flags, devices=2)


def run(workdir, logs, *others):
  with pair(workdir, logs, *others) as run:
    assert run.wait() == [0, 0], run.said()


def newest(workdir):
  """The newest step saved, 0 if none."""
  names = [path.name for path in workdir.glob("checkpoints/*")]
  return max((int(name) for name in names if name.isdecimal()), default=0)


def kill(workdir, logs, chance, victims, is_late):
  """Starts the run and kills these processes of it, and then the other.

  A late kill comes when a checkpoint was saved.
  """
  before = newest(workdir)
  with pair(workdir, logs) as run:
    run.wait_for_reports(chance.randint(1, 3))
    if is_late:
      run.wait_until(lambda: newest(workdir) > before)
    # Any phase of a step or of a save may be hit.
    time.sleep(chance.uniform(0, 0.1))
    assert [p.poll() for p in run.processes] == [None, None], run.said()
    for victim in victims:
      run.processes[victim].kill()
    if len(victims) == 1:
      time.sleep(chance.uniform(0, 0.1))


def preempt(workdir, logs, told):
  """Starts the run and tells one process of it, twice, to end; both do."""
  with pair(workdir, logs) as run:
    run.wait_for_reports(3)
    run.processes[told].send_signal(signal.SIGTERM)
    run.processes[told].send_signal(signal.SIGTERM)
    assert run.wait() == [0, 0], run.said()
    line = f"SIGTERM: stopped at step {newest(workdir)} of {NUM_STEPS}"
    assert run.said().count(line) == 2, run.said()


def assert_same_run(found, expected):
  """Every bit of the last state, every example of every step."""
  states = [together.saved_state(w, NUM_STEPS) for w in (found, expected)]
  assert states[0].keys() == states[1].keys()
  for name, array in states[1].items():
    np.testing.assert_array_equal(states[0][name], array, err_msg=name)
  for process in range(2):
    name = f"ids_{process}.jsonl"
    assert rows(found / name) == rows(expected / name)
  assert losses(found) == losses(expected)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run that nothing happened to; it saves seldom, which takes long."""
  folder = tmp_path_factory.mktemp("straight")
  seldom = f"training.checkpoint_every={MOVED_AT}"
  run(folder / "workdir", folder / "logs", seldom)
  return folder / "workdir"


@pytest.mark.slow
def test_kills_and_a_preemption_change_no_bit(straight, tmp_path):
  workdir, chance, resumed = tmp_path / "workdir", random.Random(0), []
  for i, (victims, is_late) in enumerate(KILLS):
    kill(workdir, tmp_path / f"kill_{i}", chance, victims, is_late)
    resumed.append(newest(workdir))
    if i == len(KILLS) // 2:
      preempt(workdir, tmp_path / "preempted", told=1)
      assert newest(workdir) >= resumed[-1] + 3
  run(workdir, tmp_path / "last")
  assert resumed == sorted(resumed)
  assert len(set(resumed)) > 3, f"kills too early to test much: {resumed}"
  assert_same_run(workdir, straight)
  steps = [step for step, _ in losses(workdir)]
  assert steps == list(range(1, NUM_STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1), (4, 2), (1, 1)])
def test_a_run_goes_on_elsewhere(straight, tmp_path, sizes):
  shutil.copytree(
    straight / "checkpoints" / str(MOVED_AT),
    tmp_path / "checkpoints" / str(MOVED_AT),
  )
  experiment = tiny(*CHANGES)
  mesh = make_mesh(*sizes, devices=jax.devices()[: sizes[0] * sizes[1]])
  size = experiment.training.batch_size
  batches = Batches(experiment.data, "train", size)
  program = make_train_program(experiment, mesh, batches.num_examples)
  with Checkpointer(tmp_path) as checkpoints:
    state, data = checkpoints.restore(program.abstract_state)
  saved = together.saved_state(straight, MOVED_AT)
  for key, array in jax.tree_util.tree_leaves_with_path(state.params):
    name = f"['params']{jax.tree_util.keystr(key)}"
    np.testing.assert_array_equal(array, saved[name], err_msg=name)
  found = []
  for step in range(data["step"], data["step"] + 20):
    batch = global_batch(batches[step], mesh)
    state, metrics = program.step(state, batch)
    found.append(float(metrics["loss"]))
  expected = [loss for _, loss in losses(straight)]
  np.testing.assert_allclose(
    found, expected[MOVED_AT : MOVED_AT + 20], rtol=1e-4
  )
