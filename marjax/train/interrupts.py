"""Ctrl-C ends a run between saves, never within one; twice, at once.

1. `put_off` holds it back while a checkpoint is written, and says so.
2. `heeded` is for the command line: the first raises KeyboardInterrupt, so that
   everything is closed; the second leaves the process. What was being saved
   then is unfinished, does not count, and is deleted by the next run.

Without `heeded`, as in a notebook, a second one raises KeyboardInterrupt too.
Outside of the main thread, which alone gets signals, nothing is changed.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)

EXIT_CODE = 130

_may_leave = [False]
"""Whether the process belongs to this run, and may be left."""


@contextlib.contextmanager
def heeded() -> Iterator[None]:
  """While open, a second Ctrl-C leaves the process with a sentence."""
  has_come = False

  def act(number, frame):
    nonlocal has_come
    if has_come:
      _leave()
    has_come = True
    raise KeyboardInterrupt

  with _handled_by(act):
    _may_leave[0] = True
    try:
      yield
    finally:
      _may_leave[0] = False


@contextlib.contextmanager
def put_off(what: str) -> Iterator[None]:
  """Holds back a Ctrl-C until the block is left; `what` is done meanwhile."""
  has_come, before = False, signal.getsignal(signal.SIGINT)

  def note(number, frame):
    nonlocal has_come
    if has_come and _may_leave[0]:
      _leave()
    if has_come:
      raise KeyboardInterrupt
    has_come = True
    log.warning("interrupted: %s; Ctrl-C again leaves at once", what)

  with _handled_by(note):
    yield
  if has_come and callable(before):
    before(signal.SIGINT, None)


@contextlib.contextmanager
def _handled_by(handler) -> Iterator[None]:
  before = signal.getsignal(signal.SIGINT)
  is_main = threading.current_thread() is threading.main_thread()
  # One that is ignored, as under nohup, or was set by C code, stays.
  if not (is_main and callable(before)):
    yield
    return
  signal.signal(signal.SIGINT, handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def _leave() -> None:
  os.write(
    2,
    b"marjax: interrupted twice, left at once; finished checkpoints are intact,"
    b" and the same command goes on from the newest.\n",
  )
  os._exit(EXIT_CODE)
