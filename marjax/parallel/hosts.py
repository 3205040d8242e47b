"""Several processes that train as one: meeting, agreeing, losing each other.

1. `joined` meets the other processes through `jax.distributed`. Who they are is
   told by flags, or found in the environment of a TPU pod, GKE, SLURM or Open
   MPI. Where there is one process it does nothing.
2. `agree` compares settings and versions before anything is computed: programs
   that differ would wait for each other for ever.
3. While joined, each process tells the coordinator, process 0, every few
   seconds that it lives. Where that stops, jax ends all the others by abort(),
   which no Python code sees: its callbacks and `except` come too late. So the
   signal of abort() has a handler, which says in one sentence what happened and
   exits with code 2. Who leaves the others, at the end, puts back what was
   there; a process that fails stays joined until it exits.

       a process is killed      ─▶ closed connection, or no word from it ─▶ 3
       a process is frozen      ─▶ no word from it                       ─▶ 3
       a process ends by error  ─▶ the others wait at the exit in vain   ─▶ 3

4. `spread` puts an array that every process has on the devices of all, `fetch`
   brings one from there to every process. `told` is what the first one says.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from marjax.version import __version__

log = logging.getLogger(__name__)

MEET_SECONDS = 300
"""Within this time all processes must have been started."""

LOST_SECONDS = 40
"""A process that gives no sign of life for this time is lost."""

LEAVE_SECONDS = 30
"""Within this time of the first process that ends, all others must end."""

LOST = (
  "lost contact with another process, or met the fatal error above; run the"
  " same command on all hosts again, and training goes on from the newest"
  " checkpoint."
)

MAY_DIFFER = ("data.data_dir", "data.num_threads")
"""Settings that belong to a host, not to the run."""


@contextlib.contextmanager
def joined(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Iterator[None]:
  """Makes this process one of several; must come before any use of a device.

  Args:
    coordinator_address: HOST:PORT where process 0 can be reached.
    num_processes: how many there are. process_id: 0 .. num_processes - 1.
      All three or none; None looks at the environment. One process needs
      neither address nor id.

  Raises:
    ValueError: some of the three are missing, or out of range.
    OSError: process 0 cannot listen at that address. A process that does not
      meet the others within MEET_SECONDS ends with code 2 and one sentence.
  """
  flags = (coordinator_address, num_processes, process_id)
  _check(*flags)
  is_alone = num_processes is None and not (is_announced() or may_be_pod())
  if is_alone or num_processes == 1:
    yield
    return
  before = _answer_abort(ctypes.cast(_on_abort, ctypes.c_void_p))
  try:
    _connect(*flags)
    yield
    jax.distributed.shutdown()
  except jax.errors.JaxRuntimeError:
    # A peer that is lost fails a computation before jax knows why it did.
    log.info("a computation failed; waiting to see whether a process is lost.")
    time.sleep(LOST_SECONDS + LEAVE_SECONDS)
    raise
  except BaseException:
    # Whoever catches it says what it was; then the others are left behind.
    _last_words[0] = ""
    raise
  finally:
    if not jax.distributed.is_initialized():
      _answer_abort(before)


def is_announced(environment: Mapping[str, str] = os.environ) -> bool:
  """Whether the environment says that there are other processes.

  Which of them this is, jax finds out: see `jax.distributed.initialize`.
  """
  return bool(_announcer(environment))


def _announcer(environment: Mapping[str, str]) -> str:
  """The variable, "NAME=VALUE", that says that there are several; or "".

  Raises:
    ValueError: a variable that counts them is no number.
  """
  names = ["MEGASCALE_NUM_SLICES"]
  if environment is not os.environ or not _is_typed():
    # What a scheduler starts reads from no terminal: there these are left over.
    names += _of_schedulers(environment)
  for name in names:
    count = environment.get(name, "1")
    if not count.isdecimal():
      raise ValueError(
        f"{name} is {count!r} in the environment; expected the number of"
        " processes: unset it, or pass --num_processes=1 to train alone."
      )
    if int(count) > 1:
      return f"{name}={count}"
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if hosts := environment.get(name):
      return f"{name}={hosts}" if "," in hosts else ""
  return ""


def _of_schedulers(environment: Mapping[str, str]) -> list[str]:
  """Variables that count the processes which a scheduler started."""
  # Set in each task of a SLURM step, but not in a shell that may start them.
  if not {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys():
    return ["OMPI_COMM_WORLD_SIZE"]
  # In a step of one task SLURM_NTASKS may be that of the whole job.
  own = "SLURM_STEP_NUM_TASKS"
  return [own if own in environment else "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"]


def _is_typed() -> bool:
  try:
    return os.isatty(0)
  except OSError:
    return False


def may_be_pod(environment: Mapping[str, str] = os.environ) -> bool:
  """Whether only the metadata server of a TPU knows if there are others."""
  # Importing jax sets it on machines without TPUs.
  return "TPU_SKIP_MDS_QUERY" not in environment


def agree(settings: Mapping[str, Any]) -> None:
  """Compares flat, JSON-able settings, and versions, of all processes.

  Raises:
    ValueError: they differ, in other keys than MAY_DIFFER; in all processes.
  """
  if jax.process_count() == 1:
    return
  versions = {
    "marjax.__version__": __version__,
    "jax.__version__": jax.__version__,
  }
  everyone = _gather(json.dumps(versions | dict(settings)))
  first = json.loads(everyone[0])
  for process, text in enumerate(everyone):
    other = json.loads(text)
    for key in first | other:
      if other.get(key) != first.get(key) and key not in MAY_DIFFER:
        raise ValueError(
          f"{key} is {first.get(key)!r} in process 0 and {other.get(key)!r} in"
          f" process {process}; start all processes with the same command, the"
          " same config and the same versions."
        )


def spread(array: jax.Array | np.ndarray, sharding: Sharding) -> jax.Array:
  """An array, or typed keys, that every process has, on all their devices."""
  if sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
    bits = spread(jax.random.key_data(array), sharding)
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(array))
  here = np.asarray(array)
  return jax.make_array_from_callback(here.shape, sharding, here.__getitem__)


def fetch(array: jax.Array) -> np.ndarray:
  """The whole array on this host; with several processes all must call it."""
  from jax.experimental import multihost_utils

  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def _check(address: str | None, count: int | None, process: int | None) -> None:
  given = [flag is not None for flag in (address, count, process)]
  if not any(given) or (given == [False, True, False] and count == 1):
    return
  if not all(given):
    raise ValueError(
      "--coordinator_address, --num_processes and --process_id go together;"
      " give all three, or none to be found by the cluster's environment, or"
      " --num_processes 1 alone for one process."
    )
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal():
    raise ValueError(
      f"--coordinator_address is {address!r}; expected HOST:PORT, where process"
      " 0 can be reached."
    )
  if not 0 <= process < count:
    raise ValueError(
      f"--process_id is {process} of --num_processes {count}; expected"
      f" 0 to {count - 1}, another one for each process."
    )


def _connect(address: str | None, count: int | None, process: int | None):
  if address and process == 0:
    _check_port(int(address.rpartition(":")[2]))
  told = "" if address else _announcer(os.environ)
  who = f"{count or 'all'} processes" + (f" of {told}" if told else "")
  where = f" at {address}" if address else ""
  alone = "if there is only one, pass --num_processes 1"
  _last_words[0] = (
    f"{who} did not meet{where} within {MEET_SECONDS} s; start each of them"
    " once within that time, tell all the same address and number, and see"
    f" that every host can reach process 0 there; {alone}."
  )
  log.info("waiting for %s%s; %s.", who, where, alone)
  try:
    with _quiet():
      jax.distributed.initialize(
        address,
        count,
        process,
        # What the flags say needs no second opinion of the environment.
        cluster_detection_method="deactivate" if address else None,
        initialization_timeout=MEET_SECONDS,
        heartbeat_timeout_seconds=LOST_SECONDS,
        shutdown_timeout_seconds=LEAVE_SECONDS,
      )
  except (ValueError, OSError) as error:
    if address or is_announced():
      raise
    # A TPU without a metadata server, as a notebook has, is one host.
    log.info("there is one process only: %s", error)
  _last_words[0] = LOST


def _check_port(port: int) -> None:
  # jax's own service, if it cannot listen, may end the process without a word.
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    raise ConnectionError(
      f"process 0 cannot listen at port {port} of its host"
      f" ({error.strerror}); choose a free one, for all processes the same."
    ) from None


_last_words = [""]
_mouth = [2]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without stderr, where a stack is dumped before abort() is called."""
  if os.environ.get("MARJAX_DEBUG") == "1":
    yield
    return
  _mouth[0] = os.dup(2)
  with open(os.devnull, "w") as nothing:
    os.dup2(nothing.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(_mouth[0], 2)
    os.close(_mouth[0])
    _mouth[0] = 2


def _answer_abort(handler: int | ctypes.c_void_p | None) -> int | None:
  """Sets what is called on abort(), by address; returns what was."""
  listen = ctypes.CDLL(None).signal
  listen.restype = ctypes.c_void_p
  listen.argtypes = [ctypes.c_int, ctypes.c_void_p]
  return listen(signal.SIGABRT, handler)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_signal):
  # abort() was called by another thread, which may hold any lock; so nothing
  # here but two system calls.
  if _last_words[0]:
    os.write(_mouth[0], f"marjax: {_last_words[0]}\n".encode())
  os._exit(2)


def gathered(mine: Any) -> np.ndarray:
  """A number, or array of one shape, of each process: [processes, ...]."""
  from jax.experimental import multihost_utils

  # It goes over the devices, which is the purpose here, not an accident.
  with jax.transfer_guard("allow"):
    return multihost_utils.process_allgather(np.asarray(mine))


def told(content: bytes) -> bytes:
  """What the first process says; with several processes all must call it."""
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return content
  size = int(gathered(np.int32(len(content)))[0])
  mine = np.zeros(size, np.uint8)
  if jax.process_index() == 0:
    mine[:] = np.frombuffer(content, np.uint8)
  with jax.transfer_guard("allow"):
    return multihost_utils.broadcast_one_to_all(mine).tobytes()


def _gather(text: str) -> list[str]:
  """Each process's text, in order."""
  mine = np.frombuffer(text.encode(), np.uint8)
  sizes = gathered(np.int32(mine.size))
  rows = gathered(np.resize(mine, sizes.max()))
  return [
    row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
  ]
