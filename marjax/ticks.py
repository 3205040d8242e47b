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
"""Seconds between two lines of a log."""


@contextlib.contextmanager
def ticking(
  stage: str,
  tell: Callable[[], object] | None = None,
  every: float | None = None,
) -> Iterator[None]:
  """Logs "STAGE: N s" every few seconds, while what is inside runs.

  Args:
    stage: what takes the time, such as "compiling".
    tell: called instead, such as the `refresh` of a bar that shows the time.
    every: seconds; None for EVERY.
  """
  start, is_done = time.monotonic(), threading.Event()

  def told() -> None:
    log.info("%s: %.0f s", stage, time.monotonic() - start)

  def run() -> None:
    while not is_done.wait(every or EVERY):
      (tell or told)()

  thread = threading.Thread(target=run, name=f"ticks {stage}", daemon=True)
  thread.start()
  try:
    yield
  finally:
    is_done.set()
    thread.join()
