"""Long stages say that they go on.

A command that is silent for more than a few seconds looks as if it hung:
`ticking` is put around what may take so long.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

EVERY = 4.0
"""Seconds of silence after which a stage logs a line."""

_open: list[object] = []
"""The stages that go on, each with those inside it after it."""

_heard = 0.0
"""When something was last said, by `time.monotonic`."""


def heard() -> None:
  """Notes that a line was just written: silence begins anew."""
  global _heard
  _heard = time.monotonic()


@contextlib.contextmanager
def ticking(
  stage: str, line: Callable[[], str] | None = None
) -> Iterator[None]:
  """Logs "STAGE: N s" after each few seconds of silence, while it goes on.

  Of stages inside one another the innermost does, and silence goes on from one
  to the next: many short ones are not silent together.

  Args:
    stage: what takes the time, such as "compiling".
    line: gives what to log instead.
  """
  start, me = time.monotonic(), object()
  if not _open:
    heard()

  def look() -> None:
    if _open[-1:] == [me] and time.monotonic() - _heard >= EVERY:
      heard()
      seconds = time.monotonic() - start
      log.info("%s", line() if line else f"{stage}: {seconds:.0f} s")

  _open.append(me)
  try:
    with repeating(look, EVERY / 8, f"ticks {stage}"):
      yield
  finally:
    _open.remove(me)


@contextlib.contextmanager
def repeating(
  call: Callable[[], object], every: float = 1.0, name: str | None = None
) -> Iterator[None]:
  """Calls every so many seconds, such as the `refresh` of a bar with the time.

  In a thread of that name, while what is inside runs.
  """
  is_done = threading.Event()

  def run() -> None:
    while not is_done.wait(every):
      call()

  thread = threading.Thread(target=run, name=name, daemon=True)
  thread.start()
  try:
    yield
  finally:
    is_done.set()
    thread.join()
