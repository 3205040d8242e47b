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

_come = []
"""Of the run of this process, with `heeded`: True after the first."""


@contextlib.contextmanager
def heeded() -> Iterator[None]:
  """While open, a second Ctrl-C leaves the process with a sentence."""

  def act(number, frame):
    if _come[-1]:
      _leave()
    _come[-1] = True
    raise KeyboardInterrupt

  with _handled_by(act):
    _come.append(False)
    try:
      yield
    finally:
      _come.pop()


def tell(what: str) -> None:
  """Says what is still done before the end."""
  again = "; Ctrl-C again leaves at once" if _come else ""
  log.warning("interrupted: %s%s", what, again)


@contextlib.contextmanager
def put_off(what: str) -> Iterator[None]:
  """Holds back a Ctrl-C until the block is left; `what` is done meanwhile."""
  has_come, before = False, signal.getsignal(signal.SIGINT)

  def note(number, frame):
    nonlocal has_come
    if _come and (has_come or _come[-1]):
      _leave()
    if has_come:
      raise KeyboardInterrupt
    has_come = True
    tell(what)

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
