"""Ctrl-C: one sentence and exit code 130, whenever and however often.

1. The first unwinds what runs, so that no half of a file stays. A program that
   is being compiled hears it only when done.
2. The second ends the process at once, wherever it is: a thread of its own
   hears signals while the main one cannot.
3. Afterwards nothing more is said: other libraries' threads would, if the
   interpreter waited for them and took their world down around them.
"""

import contextlib
import os
import signal
import sys
import threading

CODE = 130

_said = threading.Event()
_saying = threading.Lock()


def begin() -> None:
  """Listens for the second interrupt; for a process that is a command."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(target=_listen, args=(reader,), daemon=True).start()


def answer(detail: str = "") -> int:
  """Says that there was an interrupt, unless it was said; its exit code.

  Args:
    detail: what is to be known of it, as "stopped at step 3".
  """
  with _saying:
    if not _said.is_set():
      print(
        f"marjax: interrupted{detail and ': '}{detail}.",
        file=sys.stderr,
        flush=True,
      )
    _said.set()
  return CODE


def end() -> None:
  """Ends the process without a word more."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, AttributeError):
      stream.flush()
  os._exit(CODE)


def _listen(reader: int) -> None:
  interrupts = 0
  while interrupts < 2:
    interrupts += os.read(reader, 1)[0] == signal.SIGINT
  answer()
  os._exit(CODE)
