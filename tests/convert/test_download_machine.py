"""Downloads on a machine where things happen: kills, interrupts, full disks."""

import contextlib
import errno
import io
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent import futures

import pytest
from convert.weights_server import (
  CONTENT,
  CUT,
  QUICK,
  Answer,
  fails,
  get,
  ranges,
  resumed_at,
)

from marjax import outputs
from marjax.convert import download
from marjax.convert.download import Part, fetch


def test_a_full_disk_is_noticed_before(server, path, monkeypatch):
  usage = shutil.disk_usage("/")._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  fails(server, path, "file.pth cannot be written .*1000 are free")


def test_a_disk_that_fills_up_keeps_what_is_there(server, path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (CUT, limits[1]))
  try:
    fails(
      server,
      path,
      f"file.pth cannot be written .{os.strerror(errno.EFBIG).lower()}",
    )
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert get(server, path) == CONTENT
  assert ranges(server) == [None, resumed_at(CUT)]


# A background job of a shell is started with interrupts ignored, and so are the
# processes that its tests start; a person's terminal does not do that.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from marjax.convert.download import Patience, fetch
fetch(*sys.argv[1:], patience=Patience(stall_seconds=3600))
"""

PATIENCE_SECONDS = 240


def wait_until(is_so):
  """Looks until it is so."""
  deadline = time.monotonic() + PATIENCE_SECONDS
  while not is_so():
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.fixture
def downloading(server, path):
  """A process that downloads, and has come as far as the server let it."""
  server.answer(Answer(cut=CUT, stalls=True))
  command = [sys.executable, "-c", PROGRAM, server.url, path]
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  with process:
    part = path.with_name(f"{path.name}.part")
    wait_until(
      lambda: (
        process.poll() is not None
        or (part.exists() and part.stat().st_size >= CUT)
      )
    )
    assert process.poll() is None
    yield process
    process.kill()


def test_a_killed_download_is_gone_on_with(server, path, downloading):
  downloading.send_signal(signal.SIGKILL)
  downloading.wait()
  assert not path.exists()
  server.answer(Answer())
  assert get(server, path) == CONTENT
  assert ranges(server) == [None, resumed_at(CUT)]


def test_an_interrupt_ends_a_download_and_keeps_the_part(
  server, path, downloading
):
  # Python loses an interrupt that falls into a destructor; a person presses
  # again.
  for _ in range(3):
    downloading.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
      downloading.wait(timeout=PATIENCE_SECONDS / 4)
      break
  assert downloading.poll() is not None
  _, shown = downloading.communicate()
  assert shown.count("Traceback") == 1
  assert shown.rstrip().endswith("KeyboardInterrupt")
  server.answer(Answer())
  assert get(server, path) == CONTENT
  assert ranges(server) == [None, resumed_at(CUT)]


def test_one_process_downloads_while_another_waits(
  server, path, downloading, caplog
):
  caplog.set_level(logging.INFO, "marjax")
  with futures.ThreadPoolExecutor() as pool:
    waiting = [
      pool.submit(fetch, server.url, path, progress=False, patience=QUICK)
      for _ in range(3)
    ]
    said = f"another process is downloading {path}"
    wait_until(lambda: caplog.text.count(said) == 3)
    assert not any(one.done() for one in waiting)
    server.answer(Answer())
    downloading.kill()
    assert [one.result() for one in waiting] == [path] * 3
  # Only now: until the last is through, one may look whether there is a part.
  assert path.read_bytes() == CONTENT
  assert os.listdir(path.parent) == [path.name]
  # One of them went on with the file; the others found it whole.
  assert ranges(server) == [None, resumed_at(CUT)]


def test_a_part_that_another_process_deleted_is_made_anew(server, path, caplog):
  caplog.set_level(logging.INFO, "marjax")
  with futures.ThreadPoolExecutor() as pool:
    with download._claimed(path) as part:
      waiting = pool.submit(get, server, path)
      wait_until(lambda: "another process is downloading" in caplog.text)
      part.discard()
    assert waiting.result() == CONTENT


class Short(io.FileIO):
  """Takes seven bytes at a time."""

  def write(self, data):
    return super().write(data[:7])


def test_short_writes_are_completed(tmp_path):
  path = tmp_path / "file.part"
  with Short(path, "a+") as file:
    Part(path, file).append(CONTENT[:100])
  assert path.read_bytes() == CONTENT[:100]


def test_progress_is_shown_on_request(server, path, capsys):
  fetch(server.url, path, progress=False, patience=QUICK)
  assert capsys.readouterr() == ("", "")
  server.answer(Answer(cut=CUT), Answer())
  fetch(server.url, path.with_name("b"), patience=QUICK)
  assert "100%" in capsys.readouterr().err


def test_a_machine_without_locks_says_so_once(
  server, path, monkeypatch, caplog
):
  monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
  outputs._say_unlocked.cache_clear()
  assert get(server, path) == CONTENT
  with path.open() as file:
    assert outputs.lock(file, path)
  assert [line for line in caplog.messages if "no lock on" in line] == [
    f"no lock on {path} (ModuleNotFoundError: import of fcntl halted; None in"
    " sys.modules): let no other process use it."
  ]
