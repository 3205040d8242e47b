"""Ctrl-C, once and twice, ends in one sentence and leaves nothing half."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from marjax.release import workdir as workdirs
from marjax.train import interrupts

ROOT = pathlib.Path(__file__).parents[2]

PATIENCE_SECONDS = 240

# Saving takes until something is typed, or nothing can be any more.
PROGRAM = """
import os, signal, sys
# A background job of a shell begins deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from marjax.__main__ import main
from marjax.release import workdir
write = workdir.write_files

def slow(*args):
  os.read(0, 1)
  write(*args)

workdir.write_files = slow
sys.exit(main())
"""


def start(workdir):
  return subprocess.Popen(
    [
      *(sys.executable, "-c", PROGRAM),
      *("train", "--config", "tests/train/tiny.py"),
      *("--workdir", str(workdir), "--config.training.num_steps=1000000"),
      *(
        "--config.training.log_every=1",
        "--config.training.checkpoint_every=2",
      ),
    ],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(process, words):
  """What it says until a line has these words."""
  said = ""
  while words not in said:
    line = process.stdout.readline()
    assert line, said
    said += line
  return said


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_run_ends_in_one_sentence(tmp_path, times):
  with start(tmp_path) as process:
    try:
      wait_for(process, "step 3/")
      process.send_signal(signal.SIGINT)
      wait_for(process, "interrupted: finishing the checkpoint of step 2; Ct")
      if times == 2:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_SECONDS)
      said = process.communicate(timeout=PATIENCE_SECONDS)[0]
    finally:
      process.kill()
  assert process.returncode == 130
  last = said.splitlines()[-1]
  assert said.count("marjax:") == 1, said
  assert "Traceback" not in said, said
  assert "Exception" not in said, said
  if times == 1:
    assert "checkpoint is that of step 2, where the same command goes" in last
    assert workdirs.steps(tmp_path / "checkpoints") == [2]
  else:
    assert last == "marjax: interrupted."
    assert workdirs.steps(tmp_path / "checkpoints") == []


@pytest.fixture
def heard():
  """A handler that raises, whatever the shell began this process with."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def press():
  os.kill(os.getpid(), signal.SIGINT)


def put_off(times, done):
  with interrupts.put_off("saving"):
    for _ in range(times):
      press()
    done.append(True)


def test_an_interrupt_waits_for_the_end_of_the_block(heard):
  done, handler = [], signal.getsignal(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    put_off(1, done)
  assert done
  assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_one_does_not_wait(heard):
  done = []
  with pytest.raises(KeyboardInterrupt):
    put_off(2, done)
  assert not done


def test_without_an_interrupt_nothing_happens():
  handler = signal.getsignal(signal.SIGINT)
  with interrupts.put_off("saving"):
    pass
  assert signal.getsignal(signal.SIGINT) is handler
