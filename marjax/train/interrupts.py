"""Ctrl-C ends a run between saves, never within one.

`put_off` holds it back while a checkpoint is written, and says so. A second one
is not held back: a command then leaves at once (`marjax.cli.interrupts`), and a
notebook gets its KeyboardInterrupt. What was being saved is unfinished, does
not count, and is deleted by the next run.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)


def tell(what: str) -> None:
  """Says what is still done before the end."""
  log.warning("interrupted: %s; Ctrl-C again leaves at once", what)


@contextlib.contextmanager
def put_off(what: str) -> Iterator[None]:
  """Holds back a Ctrl-C until the block is left; `what` is done meanwhile."""
  before = signal.getsignal(signal.SIGINT)
  is_main = threading.current_thread() is threading.main_thread()
  # Only the main thread gets signals; a handler that ignores them, as under
  # nohup, or was set by C code, stays.
  if not (is_main and callable(before)):
    yield
    return
  has_come = False

  def note(number, frame):
    nonlocal has_come
    if has_come:
      raise KeyboardInterrupt
    has_come = True
    tell(what)

  signal.signal(signal.SIGINT, note)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if has_come:
    before(signal.SIGINT, None)
