"""One request for a file, or for the rest of one: what is asked and taken.

1. A `Part` is the file so far, and a note of what the server said it is: its
   address, ETag, date and length.
2. A request asks for the rest, from a little before the part's end:

       part          ├──────────────────────┬── overlap ──┤
       asked for                            ├─────────────┼──────────────────▶

3. The answer is judged by its headers and first bytes, before anything is
   written. The rest is appended if the server describes the file of the note,
   and the overlap is equal byte for byte. A whole file (the server knows no
   ranges, or has another file by now) takes the part's place. Anything else
   empties the part, for the next request to begin again.
"""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from marjax import outputs, schema
from marjax.convert.read import is_page
from marjax.release import files

OVERLAP = 64 * 2**10
"""Bytes of a part that are asked for again, and compared."""


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

  def note(self) -> dict[str, Any]:
    """url, etag, date and bytes of the whole file; {} if that is unknown."""
    try:
      note = files.read_json(self._note)
    except (OSError, ValueError):
      return {}
    return note if {*note} == {*_note("", {}, None)} else {}

  def begin(self, note: dict[str, Any]) -> None:
    """Empties the file, and notes what it will be."""
    # In this order: a note never stands beside the bytes of another file.
    self._file.truncate(0)
    outputs.write(self._note, schema.write_json(note), overwrite=True)

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


class Request:
  """One request; methods named on_... run in libcurl's thread.

  Attributes:
    total: bytes of the whole file, once the server has said so.
    is_stopped: set it to end the request.
    error: what a callback raised.
  """

  def __init__(self, url: str, part: Part, expected_bytes: int | None):
    note = part.note()
    is_known = note.get("url") == url and part.size() > OVERLAP
    self.url, self.part, self.expected_bytes = url, part, expected_bytes
    self.note = note if is_known else {}
    self.tail = part.tail() if is_known else b""
    self.start = part.size() - OVERLAP if is_known else 0
    self.status, self.headers = 0, {}
    self.total: int | None = self.note.get("bytes")
    self.is_judged = self.is_stopped = False
    self.error: Exception | None = None

  def fields(self) -> list[str]:
    """Header fields: the range wanted, of that very file."""
    if not self.start:
      return []
    etag, date = self.note["etag"], self.note["date"]
    same = date if not etag or etag.startswith("W/") else etag
    return [f"Range: bytes={self.start}-"] + [f"If-Range: {same}"] * bool(same)

  def on_header(self, line: bytes) -> None:
    """Takes one line of the answer's head; a redirect has a head of its own."""
    text = line.decode("latin-1").strip()
    if status := re.match(r"HTTP/\S+ (\d+)", text):
      self.status, self.headers = int(status[1]), {}
    else:
      name, _, value = text.partition(":")
      self.headers[name.lower()] = value.strip()

  def on_body(self, chunk: bytes) -> int:
    """Returns the number of bytes taken; libcurl stops if some are left."""
    try:
      if not self.is_judged:
        self.judge(chunk)
      count = min(len(self.tail), len(chunk))
      if chunk[:count] != self.tail[:count]:
        raise self.is_another()
      self.tail = self.tail[count:]
      self.part.append(chunk[count:])
    except Exception as error:
      self.error = error
      return 0
    return len(chunk)

  def on_progress(self, *counts: int) -> int:
    """Called at least once a second; 1 ends the request."""
    return int(self.is_stopped)

  def judge(self, chunk: bytes) -> None:
    """Decides from the headers and the first bytes what the answer is."""
    self.is_judged = True
    span = re.fullmatch(
      r"bytes (\d+)-\d+/(\d+|\*)", self.headers.get("content-range", "")
    )
    length = span[2] if span else self.headers.get("content-length", "")
    total = int(length) if length.isdigit() else None
    note = _note(self.url, self.headers, total)
    is_rest = self.status == 206 and self.start > 0
    if is_rest:
      is_there = span and int(span[1]) == self.start
      if not is_there or _differ(self.note, note):
        raise self.is_another()
      total = total or self.total
    elif self.status != 200:
      raise refused(self.url, f"HTTP {self.status}", "check the address")
    elif is_page(chunk):
      raise page(self.url)
    if total is not None:
      check_size(self.url, total, self.expected_bytes)
      self.part.check_room(total)
    self.total = total
    if not is_rest:
      self.tail = b""
      self.part.begin(note)

  def is_another(self) -> Passing:
    """Empties the part: the next request asks for the whole file."""
    self.part.begin(_note("", {}, None))
    return Passing("the server has another file by now")


def _note(url: str, headers: dict[str, str], total: int | None) -> dict:
  etag, date = headers.get("etag"), headers.get("last-modified")
  return {"url": url, "etag": etag, "date": date, "bytes": total}


def _differ(kept: dict[str, Any], found: dict[str, Any]) -> bool:
  """Whether the server describes another file; an ETag outdoes a date."""
  names = ["bytes", "etag" if kept["etag"] and found["etag"] else "date"]
  return any(
    kept[name] and found[name] and kept[name] != found[name] for name in names
  )


def refused(url: str, reason: str, cure: str) -> DownloadError:
  """The error of a file that the server does not give."""
  return DownloadError(
    f"{url} cannot be downloaded ({reason}); expected a file: {cure}."
  )


def page(source: str) -> DownloadError:
  """The error of a web page in a file's place."""
  return DownloadError(
    f"{source} is a web page; expected a file of weights: on Dropbox, end the"
    " address in dl=1; elsewhere, take the address of the file itself."
  )


def check_size(source: str, size: int, expected_bytes: int | None) -> None:
  """Raises DownloadError if the size is not the expected one, or 0."""
  if size and expected_bytes in (None, size):
    return
  raise DownloadError(
    f"{source} has {size} bytes; expected"
    f" {'some' if expected_bytes is None else expected_bytes}: check that it is"
    " the right file, and that it is whole."
  )
