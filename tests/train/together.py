"""Two real processes on this machine, for the tests of training on hosts.

Each is `marjax train` on tests/train/tiny.py, with fake devices of its own.
Three things differ, all for speed. The patience with lost processes is a test's
to choose, for it would take a minute to lose one. The second process also keeps
what it compiled, which jax leaves to the first: else each start would compile,
and the first, which does not, wait for it longer than Gloo allows. And programs
are optimised less, which halves the time to compile them.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE_SECONDS = 240

PROGRAM = """
import sys
from jax._src import compiler, distributed
from marjax.cli.main import main
from marjax.parallel import hosts

hosts.MEET_SECONDS, hosts.LOST_SECONDS, hosts.LEAVE_SECONDS = {patience}
write, state = compiler._cache_write, distributed.global_state

def write_from_all(*args, **kwargs):
  process, state.process_id = state.process_id, 0
  try:
    write(*args, **kwargs)
  finally:
    state.process_id = process

compiler._cache_write = write_from_all
sys.exit(main(sys.argv[1:]))
"""


def free_address():
  """localhost:PORT that nobody listens at."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return f"localhost:{probe.getsockname()[1]}"


def start(workdir, flags, address, process, log, devices=1, patience=(240, 40)):
  """One of two processes; its output goes to the file `log`.

  Args:
    flags: more of them. patience: seconds to meet, and to a process being lost.
  """
  meet, lost = patience
  return subprocess.Popen(
    [
      *(sys.executable, "-c", PROGRAM.format(patience=(meet, lost, lost))),
      *("train", "--config", "tests/train/tiny.py"),
      *("--workdir", str(workdir), "--coordinator_address", address),
      *("--num_processes", "2", "--process_id", str(process), *flags),
    ],
    cwd=ROOT,
    env={
      **os.environ,
      "JAX_NUM_CPU_DEVICES": str(devices),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    },
    stdout=log,
    stderr=subprocess.STDOUT,
  )


class Pair:
  """Both processes of a run, and what they say; kills them at the end."""

  def __init__(self, workdir, logs, *flags, each=((), ()), **kwargs):
    """`logs`: a folder. `each`: flags of one process only."""
    logs.mkdir()
    self.logs = [logs / f"{i}.log" for i in range(2)]
    address = free_address()
    self.processes = []
    for i, path in enumerate(self.logs):
      with open(path, "w") as log:
        self.processes.append(
          start(workdir, (*flags, *each[i]), address, i, log, **kwargs)
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()
      process.wait()

  def said(self):
    """What both have said so far."""
    return "\n".join(log.read_text() for log in self.logs)

  def wait(self, seconds=PATIENCE_SECONDS):
    """Both exit codes; a process that goes on is a failure."""
    deadline = time.monotonic() + seconds
    return [p.wait(deadline - time.monotonic()) for p in self.processes]

  def wait_for_reports(self, count):
    """Blocks until `count` lines of progress were written."""
    self.wait_until(lambda: self.logs[0].read_text().count("images/s") >= count)

  def wait_until(self, is_so):
    """Looks until it is so, while the first process runs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
      assert time.monotonic() < deadline, self.said()
      assert self.processes[0].poll() is None, self.said()
      time.sleep(0.005)


def saved_state(workdir, step):
  """Every array of a checkpoint, by path."""
  import orbax.checkpoint as ocp

  path = workdir / "checkpoints" / str(step) / "state"
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(path).item_metadata.tree
    args = jax.tree.map(lambda _: as_numpy, tree)
    restored = reader.restore(path, restore_args=args)
  return {
    jax.tree_util.keystr(key): np.asarray(array)
    for key, array in jax.tree_util.tree_leaves_with_path(restored)
  }
