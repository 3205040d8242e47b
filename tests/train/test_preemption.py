"""One process that is told to go: it saves, returns, and goes on the same."""

import logging
import os
import signal
import threading

import pytest
from train.shared import assert_same, at_batch, rows, tiny

from marjax.train import loop, preemption
from marjax.train.checkpoint import Checkpointer

pytestmark = pytest.mark.usefixtures("quick")


def steps(workdir):
  with Checkpointer(workdir) as checkpoints:
    return checkpoints.steps()


def tell_twice(batch):
  """Sends this process SIGTERM, twice."""
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGTERM)


def test_a_preempted_run_saves_and_goes_on_the_same(
  tmp_path, monkeypatch, caplog
):
  caplog.set_level(logging.INFO, "marjax")
  straight, stopped = tmp_path / "straight", tmp_path / "stopped"
  run = tiny(log_ids="true")
  expected = loop.train(run, straight)
  handler = signal.getsignal(signal.SIGTERM)
  at_batch(monkeypatch, 7, tell_twice)
  state = loop.train(run, stopped)
  # The seventh update was under way; a checkpoint is due every four steps.
  assert int(state.step) == 7
  assert steps(stopped) == [4, 7]
  assert "SIGTERM: stopped at step 7 of 12" in caplog.text
  assert rows(stopped / "metrics.jsonl")[-1]["step"] == 7
  assert signal.getsignal(signal.SIGTERM) is handler
  assert_same(loop.train(run, stopped), expected)
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
