"""Ctrl-C, once and twice, at every moment: one sentence and exit code 130.

The process sends the signal to itself at a stated moment, so that no clock and
no other process decides what is tested.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marjax import outputs

ROOT = Path(__file__).parents[2]

COMMAND = """
import ctypes, os, signal, sys, threading
# A background job of a shell begins deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupt():
  os.kill(os.getpid(), signal.SIGINT)
"""

# What is imported comes by here first.
IMPORTING = """
class Finder:
  def find_spec(self, name, path=None, target=None):
    if name == "jax":
      try:
        interrupt()
      finally:
        AGAIN
sys.meta_path.insert(0, Finder())
"""

RUNNING = """
from marjax.cli import main
def run(args):
  BODY
main.VERBS[sys.argv[1]].run = run
"""

WAITS = """
  try:
    interrupt()
    threading.Event().wait()
  finally:
    AGAIN
"""

# As a compiler is: Python's main thread hears nothing until it is done.
DEAF = """
  interrupt()
  interrupt()
  ctypes.CDLL(None).sleep(300)
"""

# A thread that is waited for at the exit, and one that complains there.
LATER = """
  threading.Thread(target=threading.Event().wait).start()
  import atexit
  atexit.register(lambda: print("too late", file=sys.stderr))
  interrupt()
  threading.Event().wait()
"""

END = """
from marjax.__main__ import main
sys.exit(main())
"""

ARGUMENTS = {
  # One whose compiled programs are kept, and one whose are not.
  "train": ["--config", "x", "--workdir", "x"],
  "convert": ["mar-large"],
}


def interrupted(folder, moment, *argv):
  """Runs a command that is interrupted; returns its stderr."""
  done = subprocess.run(
    [sys.executable, "-c", COMMAND + moment + END, *argv],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT), "MARJAX_PROGRAMS": ""},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 130, done.stderr
  return done.stderr


@pytest.mark.parametrize("again", ["pass", "interrupt()"])
def test_while_modules_are_imported(again, tmp_path):
  moment = IMPORTING.replace("AGAIN", again)
  said = interrupted(tmp_path, moment, "convert", "mar-large")
  assert said == "marjax: interrupted.\n"


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_while_a_verb_runs_and_unwinds(verb, tmp_path):
  body = WAITS.replace("AGAIN", "interrupt(); threading.Event().wait()")
  moment = RUNNING.replace("  BODY", body)
  said = interrupted(tmp_path, moment, verb, *ARGUMENTS[verb])
  assert said == "marjax: interrupted.\n"


@pytest.mark.parametrize("body", [DEAF, LATER])
def test_nothing_keeps_the_process(body, tmp_path):
  moment = RUNNING.replace("  BODY", body)
  argv = ["convert", *ARGUMENTS["convert"]]
  assert interrupted(tmp_path, moment, *argv) == "marjax: interrupted.\n"


def test_no_half_of_a_file_stays(tmp_path):
  def write():
    with outputs.replacing(tmp_path / "a") as temporary:
      temporary.write_bytes(b"half")
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write()
  assert not list(tmp_path.iterdir())
