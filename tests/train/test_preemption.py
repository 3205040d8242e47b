"""One process that is told to go: it saves, returns, and goes on the same."""

import json
import logging
import os
import pathlib
import signal
import threading

import jax
import numpy as np
import pytest

from marjax.cli import configs
from marjax.train import loop, preemption
from marjax.train.checkpoint import Checkpointer

CONFIG = str(pathlib.Path(__file__).with_name("tiny.py"))

pytestmark = pytest.mark.usefixtures("quick")


def tiny():
  return configs.load(CONFIG, ["config.training.log_ids=true"])


def steps(workdir):
  with Checkpointer(workdir) as checkpoints:
    return checkpoints.steps()


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def told_at(monkeypatch, at_batch):
  """Sends this process SIGTERM, twice, while it makes a batch of the run."""
  place, count = loop.place, iter(range(1, 1000))

  def placed(*args):
    if next(count) == at_batch:
      os.kill(os.getpid(), signal.SIGTERM)
      os.kill(os.getpid(), signal.SIGTERM)
    return place(*args)

  monkeypatch.setattr(loop, "place", placed)


def test_a_preempted_run_saves_and_goes_on_the_same(
  tmp_path, monkeypatch, caplog
):
  caplog.set_level(logging.INFO, "marjax")
  straight, stopped = tmp_path / "straight", tmp_path / "stopped"
  expected = loop.train(tiny(), straight)
  handler = signal.getsignal(signal.SIGTERM)
  told_at(monkeypatch, 7)
  state = loop.train(tiny(), stopped)
  # The seventh update was under way; a checkpoint is due every four steps.
  assert int(state.step) == 7
  assert steps(stopped) == [4, 7]
  assert "SIGTERM: stopped at step 7 of 12" in caplog.text
  assert rows(stopped / "metrics.jsonl")[-1]["step"] == 7
  assert signal.getsignal(signal.SIGTERM) is handler
  found = loop.train(tiny(), stopped)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  read = rows(stopped / "ids_0.jsonl")
  assert read == rows(straight / "ids_0.jsonl")
  assert [row["step"] for row in read] == list(range(1, 13))


def test_a_notice_before_the_first_step_is_heeded(tmp_path, monkeypatch):
  restore = loop.restore_or_init

  def told(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    return restore(*args)

  monkeypatch.setattr(loop, "restore_or_init", told)
  assert int(loop.train(tiny(), tmp_path).step) == 0
  assert steps(tmp_path) == []


def test_only_the_main_thread_gets_signals():
  answers = []

  def ask():
    with preemption.watched() as is_preempted:
      answers.append(is_preempted(3))

  thread = threading.Thread(target=ask)
  thread.start()
  thread.join()
  assert answers == [False]


@pytest.mark.parametrize("step", [0, 5])
def test_no_notice_no_stop(step):
  with preemption.watched() as is_preempted:
    assert not is_preempted(step)
