"""Downloads that survive: a whole file under its name, or none.

1. `PATH.part` takes the bytes, and a lock on it lets one process work while
   others wait; `PATH.part.json` notes what the server said that it is: its
   address, ETag, date and length.
2. A part that is there, also one of a process that was killed, is gone on with:
   a request asks for the rest, from a little before the part's end.

       part          ├──────────────────────┬── overlap ──┤
       asked for                            ├─────────────┼──────────────────▶

   The rest is appended if the server describes the file of the note, and the
   overlap is equal byte for byte. A whole file (the server knows no ranges, or
   has another file by now) takes the part's place. Anything else empties the
   part, for the next request to begin again.
3. What passes by itself (no network, a stall, a busy server) is tried again,
   from where it stopped, until several tries in a row brought nothing new.
4. A whole file has the length that the server gave, and is no web page. Then it
   is renamed to PATH.
"""

import contextlib
import errno
import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from marjax import outputs, schema
from marjax.convert.read import is_page
from marjax.release import files, json_files
from marjax.version import __version__

log = logging.getLogger(__name__)

OVERLAP = 64 * 2**10
"""Bytes of a part that are asked for again, and compared."""


@dataclass(frozen=True)
class Patience:
  """When to give up.

  Attributes:
    connect_seconds: for the server to take the call.
    stall_seconds: without a byte that end a request.
    num_tries: requests in a row that bring nothing new.
    pause_seconds: after such a request; it doubles with each, up to a minute.
  """

  connect_seconds: float = 20.0
  stall_seconds: float = 30.0
  num_tries: int = 5
  pause_seconds: float = 1.0


_PATIENCE = Patience()
_MAX_PAUSE_SECONDS = 60.0
_CHUNK = 512 * 2**10  # bytes
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses

_CHECK_ADDRESS = "check the address"
_BY_HAND = "open the address in a browser, and download the file by hand"
_CERTIFICATES = "if your network has certificates of its own, set SSL_CERT_FILE"


class DownloadError(OSError):
  """A file that cannot be had: says why, and what to do."""


class Passing(Exception):
  """Why a request failed, where another may succeed."""


class Part:
  """A file so far, and its note beside it, PATH.json.

  Args:
    path: of the file.
    file: the same, open for appending and reading, without a buffer: a kill
      loses nothing that has arrived.
  """

  def __init__(self, path: Path, file: BinaryIO):
    self.path, self._file = path, file
    self._note = path.with_name(f"{path.name}.json")

  def size(self) -> int:
    """Bytes that are there."""
    return os.fstat(self._file.fileno()).st_size

  def note(self, url: str) -> dict[str, Any]:
    """etag, date and bytes of the whole file; {} if there is too little."""
    try:
      note = files.read_json(self._note)
    except (OSError, ValueError):
      return {}
    is_whole = note.keys() == {"url", "etag", "date", "bytes"}
    is_known = is_whole and note["url"] == url and self.size() > OVERLAP
    return note if is_known else {}

  def begin(self, note: dict[str, Any]) -> None:
    """Empties the file, and notes what it will be."""
    # In this order: a note never stands beside the bytes of another file.
    self._file.truncate(0)
    outputs.write(self._note, json_files.write_json(note), overwrite=True)

  def is_another(self) -> Passing:
    """Empties the file: the next request asks for the whole one."""
    self.begin({})
    return Passing("the server has another file by now")

  def tail(self) -> bytes:
    """The last OVERLAP bytes."""
    self._file.seek(self.size() - OVERLAP)
    return self._file.read(OVERLAP)

  def append(self, chunk: bytes) -> None:
    """Writes all of it."""
    while chunk:
      chunk = chunk[self._file.write(chunk) :]

  def check_room(self, total: int) -> None:
    """Makes sure that the disk has room for the rest of `total` bytes."""
    missing = total - self.size()
    free = shutil.disk_usage(self.path.parent).free
    if missing > free:
      raise OSError(
        errno.ENOSPC, f"it needs {missing} bytes more, {free} are free"
      )

  def sync(self) -> None:
    """Returns when the bytes are on the disk."""
    os.fsync(self._file.fileno())

  def discard(self) -> None:
    """Deletes the file and its note."""
    self.path.unlink(missing_ok=True)
    self._note.unlink(missing_ok=True)


def fetch(
  url: str,
  path: str | Path,
  progress: bool = True,
  patience: Patience = _PATIENCE,
) -> Path:
  """Downloads a file, or goes on with its download; see the module's docstring.

  A file that is at `path` already is never written to: it is returned as it is,
  without asking the server, unless it cannot be the one.

  Args:
    url: http or https; redirects never leave https for http.
    path: of the file to make; missing folders are made.
    progress: shows a bar with rate and time left.
    patience: when to give up.

  Returns:
    `path`.

  Raises:
    ValueError: the address is neither http nor https.
    DownloadError: an OSError. The server does not give the file, or it is a web
      page, or empty; or the file at `path` is.
    OSError: the file cannot be written, or the disk is full.
  """
  schema.check(
    url.startswith(("https://", "http://")),
    f"{url!r} cannot be downloaded; expected an address that starts with"
    " https:// or http://: check it.",
  )
  path = Path(path)
  if not path.exists():
    with _claimed(path) as part:
      if not path.exists():
        _complete(url, part, progress, patience)
        part.path.rename(path)
      part.discard()
  _check(path, str(path))
  return path


def _complete(
  url: str,
  part: Part,
  progress: bool,
  patience: Patience,
) -> None:
  """Tries until the part is whole, and on the disk."""
  from tqdm import tqdm

  failures, best = 0, part.size()
  style = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
  with tqdm(initial=best, disable=not progress, **style) as bar:
    while True:
      try:
        _request(url, part, patience, bar)
        break
      except Passing as error:
        reason = str(error)
      is_better = part.size() >= best + OVERLAP
      failures, best = 1 if is_better else failures + 1, max(best, part.size())
      if failures >= patience.num_tries:
        cure = "check the network and run again, it goes on where it stopped"
        raise _refused(url, reason, cure)
      bar.clear()
      log.info("%s: %s; trying again.", url, reason)
      pause = patience.pause_seconds * 2 ** (failures - 1)
      time.sleep(min(pause, _MAX_PAUSE_SECONDS))
  try:
    _check(part.path, url)
  except DownloadError:
    part.discard()
    raise
  part.sync()


def _request(
  url: str,
  part: Part,
  patience: Patience,
  bar: Any,
) -> None:
  """Returns when the part is whole.

  Raises:
    Passing: another request may succeed, and goes on from here.
    DownloadError: another request would not.
    OSError: the part cannot be written.
  """
  note = part.note(url)
  tail, start = (part.tail(), part.size() - OVERLAP) if note else (b"", 0)
  with _answer(url, _fields(note, start), patience) as answer:
    chunks = _chunks(answer)
    first = next(chunks, b"")
    new, is_rest = _described(url, answer), start and answer.status_code == 206
    if is_rest:
      span = answer.headers.get("Content-Range", "")
      if not span.startswith(f"bytes {start}-") or _differ(note, new):
        raise part.is_another()
      new["bytes"] = new["bytes"] or note["bytes"]
    elif start and answer.status_code == 416:
      raise part.is_another()
    else:
      _check_whole(url, answer.status_code, first)
    if new["bytes"] is not None:
      part.check_room(new["bytes"])
    if not is_rest:
      tail = b""
      part.begin(new)
    bar.total = new["bytes"]
    for chunk in itertools.chain([first], chunks):
      count = min(len(tail), len(chunk))
      if chunk[:count] != tail[:count]:
        raise part.is_another()
      tail = tail[count:]
      part.append(chunk[count:])
      bar.update(part.size() - bar.n)
  size, wanted = part.size(), new["bytes"] or 0
  if size < wanted:
    raise Passing(f"the answer ended after {size} of {wanted} bytes")
  if new["bytes"] and size > new["bytes"]:
    raise part.is_another()


def _fields(note: dict[str, Any], start: int) -> dict[str, str]:
  """Header fields: the range wanted, of that very file."""
  # A browser's name gets web pages.
  fields = {"User-Agent": f"marjax/{__version__}"}
  fields["Accept-Encoding"] = "identity"
  if start:
    etag, date = note["etag"], note["date"]
    same = date if not etag or etag.startswith("W/") else etag
    fields["Range"] = f"bytes={start}-"
    fields |= {"If-Range": same} if same else {}
  return fields


@contextlib.contextmanager
def _answer(url: str, fields: dict[str, str], patience: Patience):
  """The server's answer, of which only the head has been read."""
  import requests

  # As the curl command does: certificates of a network's own.
  bundle = os.environ.get("CURL_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
  with requests.Session() as session:
    session.max_redirects = 10
    if url.startswith("https:"):
      del session.adapters["http://"]
    try:
      answer = session.get(
        url,
        headers=fields,
        stream=True,
        timeout=(patience.connect_seconds, patience.stall_seconds),
        verify=bundle or True,
      )
    except requests.exceptions.SSLError as error:
      raise _refused(url, _reason(error), _CERTIFICATES) from None
    except (requests.ConnectionError, requests.Timeout) as error:
      raise Passing(_reason(error)) from None
    except requests.RequestException as error:
      raise _refused(url, _reason(error), _CHECK_ADDRESS) from None
    except OSError as error:  # a file of certificates
      raise _refused(url, _reason(error), _CERTIFICATES) from None
    with answer:
      yield answer


def _chunks(answer: Any) -> Iterator[bytes]:
  """The body, as it arrives."""
  import urllib3

  try:
    while chunk := answer.raw.read1(_CHUNK):
      yield chunk
  except urllib3.exceptions.HTTPError as error:
    raise Passing(_reason(error)) from None


def _described(url: str, answer: Any) -> dict[str, Any]:
  """What the server says that the file is, for a note."""
  span = answer.headers.get("Content-Range", "").rpartition("/")[2]
  length = span or answer.headers.get("Content-Length", "")
  return {
    "url": url,
    "etag": answer.headers.get("ETag"),
    "date": answer.headers.get("Last-Modified"),
    "bytes": int(length) if length.isdecimal() else None,
  }


def _differ(note: dict[str, Any], new: dict[str, Any]) -> bool:
  """Whether the server describes another file; an ETag outdoes a date."""
  names = ["bytes", "etag" if note["etag"] and new["etag"] else "date"]
  return any(
    note[name] and new[name] and note[name] != new[name] for name in names
  )


def _check_whole(url: str, status: int, start: bytes) -> None:
  """Refuses an answer that is no file from its start on."""
  if status in _PASSING:
    raise Passing(f"HTTP {status}")
  if status != 200:
    cure = _BY_HAND if status in (401, 403) else _CHECK_ADDRESS
    raise _refused(url, f"HTTP {status}", cure)
  if is_page(start):
    raise _page(url)


def _reason(error: BaseException) -> str:
  """What the innermost of nested errors says."""
  nested = (getattr(error, "reason", None), *error.args)
  inner = [one for one in nested if isinstance(one, Exception)]
  return _reason(inner[0]) if inner else outputs.reason(error).rstrip(".")


def _refused(url: str, reason: str, cure: str) -> DownloadError:
  return DownloadError(
    f"{url} cannot be downloaded ({reason}); expected a file: {cure}."
  )


def _page(source: str) -> DownloadError:
  return DownloadError(
    f"{source} is a web page; expected a file of weights: on Dropbox, end the"
    " address in dl=1; elsewhere, take the address of the file itself."
  )


def _check(path: Path, source: str) -> None:
  """Refuses what no weight file is; `source` is what the sentence is about."""
  if path.is_dir():
    raise IsADirectoryError(
      f"{path} is a folder; expected the path of a file to download to."
    )
  with path.open("rb") as file:
    start = file.read(1024)
  if is_page(start):
    raise _page(source)
  if not start:
    raise DownloadError(
      f"{source} has 0 bytes; expected some: check that it is the right file,"
      " and that it is whole."
    )


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
