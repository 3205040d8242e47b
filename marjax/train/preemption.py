"""Notice that this machine is about to be taken away: SIGTERM.

1. With one process the signal sets a flag, which the loop reads each step.
2. With several, jax listens for the signal in each of them; one is enough. It
   then agrees with the others on a step that none has passed, so that all stop
   before the same one. No number is computed otherwise for that.

A second signal changes nothing: the first is being heeded.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], bool]]:
  """While open, (step) to whether to save and leave before that step.

  With several processes all must ask, before every step, from the same on.
  Outside of the main thread, which alone gets signals, nothing is noticed.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    yield multihost_utils.reached_preemption_sync_point
    return
  notice = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False
    return
  before = signal.signal(signal.SIGTERM, lambda *_: notice.set())
  try:
    yield lambda step: notice.is_set()
  finally:
    # A handler that C code installed cannot be put back from here.
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
