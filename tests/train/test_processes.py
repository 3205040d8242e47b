"""Two processes train as one does; what goes wrong in one ends both."""

import fcntl
import re
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from train import together
from train.shared import losses, tiny

from marjax.train import loop

STEPS = "config.training.num_steps=6"
SAMPLES = "config.training.sample_every=3"
FSDP = ("config.mesh.data=1", "config.mesh.fsdp=2")
LONG = "config.training.num_steps=100000"


def flags(*overrides):
  return [f"--{override}" for override in overrides]


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on(tmp_path):
  both, alone = tmp_path / "both", tmp_path / "alone"
  wanted = flags(STEPS, SAMPLES, *FSDP)
  with together.Pair(both, tmp_path / "logs", *wanted) as run:
    assert run.wait() == [0, 0], run.said()
    # The first process writes, and says what it wrote.
    assert run.logs[0].read_text().count("images/s") == 3
    assert "images/s" not in run.logs[1].read_text()
  expected = loop.train(tiny(sample_every=3), alone)
  found = loop.train(tiny(sample_every=3), both)
  # Sums over devices run in another order.
  np.testing.assert_allclose(np.array(losses(both)), losses(alone), rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found.params,
    expected.params,
  )
  name = "samples/step_00000003.png"
  pictures = [np.asarray(Image.open(w / name), float) for w in (both, alone)]
  assert pictures[0].std() > 1
  np.testing.assert_allclose(*pictures, atol=2)


@pytest.mark.slow
def test_processes_that_disagree_all_say_so(tmp_path):
  each = ((), flags("config.training.learning_rate=0.5"))
  with together.Pair(tmp_path / "w", tmp_path / "logs", each=each) as run:
    assert run.wait() == [2, 2], run.said()
    for log in run.logs:
      assert re.search(
        r"^marjax: training.learning_rate is 0.001 in process 0 and 0.5 in"
        r" process 1; start all processes",
        log.read_text(),
        re.MULTILINE,
      )
      assert "lost contact" not in log.read_text()
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("victim", "sent"),
  # The first: its connections close. The second, and a frozen one: silence.
  [(0, signal.SIGKILL), (1, signal.SIGKILL), (0, signal.SIGSTOP)],
)
def test_a_process_that_loses_the_other_says_so(tmp_path, victim, sent):
  wanted = flags(LONG, *FSDP)
  with together.Pair(
    tmp_path / "w", tmp_path / "logs", *wanted, patience=(240, 12)
  ) as run:
    run.wait_for_reports(1)
    run.processes[victim].send_signal(sent)
    survivor = 1 - victim
    assert run.processes[survivor].wait(together.PATIENCE_SECONDS) == 2, (
      run.said()
    )
    last = run.logs[survivor].read_text().splitlines()[-1]
    assert last.startswith("marjax: lost contact with another process")
    assert "training goes on from the newest checkpoint" in last


@pytest.mark.slow
def test_the_error_of_one_process_ends_both(tmp_path):
  (tmp_path / "w").mkdir()
  with (
    open(tmp_path / "w" / ".lock", "w") as held,
    together.Pair(tmp_path / "w", tmp_path / "logs", patience=(240, 12)) as run,
  ):
    fcntl.flock(held, fcntl.LOCK_EX)
    assert run.wait() == [2, 2], run.said()
  said = [log.read_text() for log in run.logs]
  # Only the first process claims the work directory.
  assert "marjax: another process is training in" in said[0]
  assert "marjax: lost contact" not in said[0]
  assert "marjax: lost contact" in said[1].splitlines()[-1]
