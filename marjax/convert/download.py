"""Downloads that survive: a whole file under its name, or none.

1. `PATH.part` takes the bytes, and a lock on it lets one process work while
   others wait; `PATH.part.json` says what file it is a part of.
2. A part that is there, also one of a process that was killed, is gone on with;
   if the server has another file by now, it begins again (see `transfer`).
3. What passes by itself (no network, a stall, a busy server) is tried again,
   from where it stopped, until several tries in a row brought nothing new.
4. A whole file has the length that the server gave, and the caller's, and is no
   web page. Then it is renamed to PATH.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from marjax import outputs
from marjax.convert import transfer
from marjax.convert.read import is_page
from marjax.convert.transfer import DownloadError, Part
from marjax.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
  """When to give up.

  Attributes:
    connect_seconds: for the server to take the call.
    stall_seconds: of less than `min_bytes_per_second` that end a request.
    min_bytes_per_second: see above.
    num_tries: requests in a row that bring nothing new.
    pause_seconds: after such a request; it doubles with each, up to a minute.
  """

  connect_seconds: int = 20
  stall_seconds: int = 30
  min_bytes_per_second: int = 1000
  num_tries: int = 5
  pause_seconds: float = 1.0


_PATIENCE = Patience()
_MAX_PAUSE_SECONDS = 60.0

# libcurl's codes for: names, connections, time, streams that break.
_PASSING_CODES = {5, 6, 7, 16, 18, 28, 35, 52, 55, 56, 92, 95}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}

_CHECK_ADDRESS = "check the address"
_BY_HAND = "open the address in a browser, and download the file by hand"
_CERTIFICATES = "if your network has certificates of its own, set SSL_CERT_FILE"
# By HTTP status, from 400 on, and by libcurl's codes below.
_CURES = {401: _BY_HAND, 403: _BY_HAND, 60: _CERTIFICATES, 77: _CERTIFICATES}


def fetch(
  url: str,
  path: str | Path,
  expected_bytes: int | None = None,
  progress: bool = True,
  patience: Patience = _PATIENCE,
) -> Path:
  """Downloads a file, or goes on with its download; see the module's docstring.

  A file that is at `path` already is never written to: it is returned as it is,
  without asking the server, unless it cannot be the one.

  Args:
    url: http or https; redirects never leave https for http.
    path: of the file to make; missing folders are made.
    expected_bytes: its exact size, where that is known.
    progress: shows a bar with rate and time left.
    patience: when to give up.

  Returns:
    `path`.

  Raises:
    ValueError: the address is neither http nor https.
    DownloadError: an OSError. The server does not give the file, or it is a web
      page, empty, or of another size; or the file at `path` is.
    OSError: the file cannot be written, or the disk is full.
    ModuleNotFoundError: pycurl is not installed.
  """
  if not url.startswith(("https://", "http://")):
    raise ValueError(
      f"{url!r} cannot be downloaded; expected an address that starts with"
      " https:// or http://: check it."
    )
  path = Path(path)
  if not path.exists():
    with _claimed(path) as part:
      if not path.exists():
        _complete(url, part, expected_bytes, progress, patience)
        part.path.rename(path)
      part.discard()
  _check(path, str(path), expected_bytes)
  return path


def _complete(
  url: str,
  part: Part,
  expected_bytes: int | None,
  progress: bool,
  patience: Patience,
) -> None:
  """Tries until the part is whole, and on the disk."""
  from tqdm import tqdm

  failures, best = 0, part.size()
  style = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
  with tqdm(initial=best, disable=not progress, **style) as bar:
    while True:
      request = transfer.Request(url, part, expected_bytes)
      try:
        _perform(request, patience, lambda r=request: _show(bar, r))
        break
      except transfer.Passing as error:
        reason = str(error)
      is_better = part.size() >= best + transfer.OVERLAP
      failures, best = 1 if is_better else failures + 1, max(best, part.size())
      if failures >= patience.num_tries:
        cure = "check the network and run again, it goes on where it stopped"
        raise transfer.refused(url, reason, cure)
      bar.clear()
      log.info("%s: %s; trying again.", url, reason)
      pause = patience.pause_seconds * 2 ** (failures - 1)
      time.sleep(min(pause, _MAX_PAUSE_SECONDS))
  try:
    _check(part.path, url, expected_bytes)
  except DownloadError:
    part.discard()
    raise
  part.sync()


def _show(bar: Any, request: transfer.Request) -> None:
  bar.total = request.total
  bar.update(request.part.size() - bar.n)


def _perform(
  request: transfer.Request, patience: Patience, show: Callable[[], Any]
) -> None:
  """Returns when the part is whole; calls `show` ten times a second.

  Raises:
    transfer.Passing: another request may succeed, and goes on from here.
    DownloadError: another request would not.
    OSError: the part cannot be written.
  """
  import pycurl

  # In a thread of its own, because an interrupt is raised in the main thread,
  # and would be lost if it were raised inside of libcurl.
  with (
    contextlib.closing(_curl(request, patience)) as curl,
    futures.ThreadPoolExecutor(1) as pool,
  ):
    running = pool.submit(curl.perform)
    try:
      while futures.wait([running], timeout=0.1).not_done:
        show()
    finally:
      request.is_stopped = True
  error = running.exception()
  if request.error:
    raise request.error
  if isinstance(error, pycurl.error):
    raise _explained(request, *error.args)
  if error:
    raise error
  if not request.is_judged:  # the answer had no body
    request.judge(b"")
  show()
  size, wanted = request.part.size(), request.total or request.expected_bytes
  if wanted and size < wanted:
    raise transfer.Passing(f"the answer ended after {size} of {wanted} bytes")
  if request.total and size > request.total:
    raise request.is_another()


def _curl(request: transfer.Request, patience: Patience) -> Any:
  import pycurl

  is_safe = request.url.startswith("https:")
  web = pycurl.PROTO_HTTPS | (0 if is_safe else pycurl.PROTO_HTTP)
  options = {
    pycurl.URL: request.url.encode(),
    pycurl.PROTOCOLS: web,
    pycurl.FOLLOWLOCATION: 1,
    pycurl.MAXREDIRS: 10,
    pycurl.FAILONERROR: 1,
    pycurl.CONNECTTIMEOUT: patience.connect_seconds,
    pycurl.LOW_SPEED_LIMIT: patience.min_bytes_per_second,
    pycurl.LOW_SPEED_TIME: patience.stall_seconds,
    # A browser's name gets web pages.
    pycurl.USERAGENT: f"marjax/{__version__}",
    pycurl.HTTPHEADER: request.fields(),
    pycurl.HEADERFUNCTION: request.on_header,
    pycurl.WRITEFUNCTION: request.on_body,
    pycurl.XFERINFOFUNCTION: request.on_progress,
    pycurl.NOPROGRESS: 0,
    pycurl.NOSIGNAL: 1,
    pycurl.BUFFERSIZE: 512 * 2**10,
  }
  # As the curl command does: certificates of a network's own.
  bundle = os.environ.get("CURL_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
  if bundle:
    options[pycurl.CAINFO] = bundle
  curl = pycurl.Curl()
  for option, value in options.items():
    curl.setopt(option, value)
  return curl


def _explained(request: transfer.Request, code: int, reason: str) -> Exception:
  """What a code of libcurl means for the download."""
  status = request.status if code == 22 else 0
  if status == 416 and request.start:
    return request.is_another()
  reason = f"HTTP {status}" if status else reason.strip().rstrip(".")
  if code in _PASSING_CODES or status in _PASSING_STATUS:
    return transfer.Passing(reason)
  return transfer.refused(
    request.url, reason, _CURES.get(status or code, _CHECK_ADDRESS)
  )


def _check(path: Path, source: str, expected_bytes: int | None) -> None:
  """Refuses what no weight file is; `source` is what the sentence is about."""
  if path.is_dir():
    raise IsADirectoryError(
      f"{path} is a folder; expected the path of a file to download to."
    )
  with path.open("rb") as file:
    if is_page(file.read(1024)):
      raise transfer.page(source)
  transfer.check_size(source, path.stat().st_size, expected_bytes)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[Part]:
  """Holds PATH.part; waits while another process does."""
  place = path.with_name(f"{path.name}.part")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
      with open(place, "a+b", buffering=0) as file:
        if not outputs.lock(file, path):
          log.info("another process is downloading %s; waiting for it.", path)
          outputs.lock(file, path, is_waiting=True)
        if _is_at(file, place):
          yield Part(place, file)
          return
  except OSError as error:
    if not error.strerror:  # it is a sentence already
      raise
    raise type(error)(
      f"{path} cannot be written ({error.strerror.lower()}); expected a folder"
      " that you can write to, with enough room: choose another, or make room"
      " and run again, what has arrived is kept."
    ) from error


def _is_at(file: BinaryIO, path: Path) -> bool:
  """False if whoever had the lock renamed or deleted this very file."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False
