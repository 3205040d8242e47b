"""A server of one file that misbehaves as told, and downloads from it."""

import contextlib
import dataclasses
import http.server
import itertools
import os
import random
import threading

import pytest

from marjax.convert.download import OVERLAP, Patience, fetch

CONTENT = random.Random(0).randbytes(700_000)
OTHER = random.Random(1).randbytes(700_000)
CUT = 300_000

# Patient with a slow machine: what these end by is what the server does.
QUICK = Patience(240.0, 240.0, num_tries=3, pause_seconds=0.01)
ONCE = dataclasses.replace(QUICK, num_tries=1)


@dataclasses.dataclass
class Answer:
  """How the server answers one request."""

  content: bytes = CONTENT
  status: int = 200
  cut: int | None = None  # bytes of the body after which it ends
  stalls: bool = False  # there, instead of ending
  silence: bool = False  # instead of a head
  etag: str | None = '"one"'
  date: str | None = None
  length: int | str = "true"  # "none", or a lie
  knows_ranges: bool = True
  knows_if_range: bool = True
  shift: int = 0  # of what a range gets
  extra: bytes = b""  # after what a range gets
  location: str | None = None

  def span(self, headers) -> tuple[int, bool]:
    """Where the body starts, and whether that is an answer to a range."""
    wanted = headers.get("Range") if self.knows_ranges else None
    same = headers.get("If-Range")
    is_same = same in (None, self.etag, self.date)
    is_same &= not (same or "").startswith("W/")
    if not self.knows_if_range:
      is_same = True
    if self.status != 200 or not wanted or not is_same:
      return 0, False
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    return start + self.shift, True


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers as the server's script says."""

  def do_GET(self):
    self.server.requests.append(self.headers)
    answer = next(self.server.script)
    if answer.silence:
      self.server.is_over.wait()
      return
    start, is_range = answer.span(self.headers)
    total = len(answer.content)
    body = answer.content[start:] + answer.extra * is_range
    status = 206 if is_range else answer.status
    if is_range and start >= total:
      status, body = 416, b""
    self.send_response(status)
    if answer.length != "none":
      length = len(body) if answer.length == "true" else answer.length
      self.send_header("Content-Length", str(length))
    if status == 206:
      span = f"bytes {start}-{total - 1}/{total}"
      self.send_header("Content-Range", span)
    for name in ("etag", "location"):
      if value := getattr(answer, name):
        self.send_header(name, value)
    if answer.date:
      self.send_header("Last-Modified", answer.date)
    self.end_headers()
    with contextlib.suppress(OSError):
      self.wfile.write(body[: answer.cut])
      if answer.stalls:
        self.wfile.flush()
        self.server.is_over.wait()

  def log_message(self, *args):
    """Says nothing."""


@contextlib.contextmanager
def serving():
  """A server on this machine; `answer` sets what it says."""
  made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  made.daemon_threads = True
  made.requests, made.is_over = [], threading.Event()
  made.url = f"http://127.0.0.1:{made.server_port}/weights.pth?dl=1"

  def answer(*answers):
    """One for each request; the last is repeated."""
    made.script = itertools.chain(answers, itertools.repeat(answers[-1]))

  made.answer = answer
  answer(Answer())
  thread = threading.Thread(target=made.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield made
  finally:
    made.is_over.set()
    made.shutdown()
    made.server_close()
    thread.join()


def get(server, path, patience=QUICK, **options):
  """Fetches quietly; nothing but the file may be left."""
  assert fetch(server.url, path, progress=False, patience=patience, **options)
  assert os.listdir(path.parent) == [path.name]
  return path.read_bytes()


def fails(server, path, match, patience=QUICK, **options):
  """A download that must fail in one sentence, leaving no file."""
  with pytest.raises(OSError, match=match) as caught:
    fetch(server.url, path, progress=False, patience=patience, **options)
  assert len(str(caught.value).splitlines()) == 1
  assert "; expected " in str(caught.value)
  assert not path.is_file()


def ranges(server):
  """What was asked for, request by request."""
  return [headers.get("Range") for headers in server.requests]


def resumed_at(count):
  """The range that goes on after so many bytes."""
  return f"bytes={count - OVERLAP}-"
