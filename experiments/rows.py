"""Rows of results: JSON lines, one per measurement, appended as they are made.

A run that is stopped and started again skips the rows it finds, told apart by
the values of some of their keys. A line that a kill cut short is written anew.
Several processes may append to one file.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from marjax import outputs
from marjax.evaluate import environment
from marjax.generate.settings import Settings

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
  """All whole rows of a file, none if there is no file.

  Raises:
    ValueError: a line that is not the last is no JSON object.
  """
  if not path.exists():
    return []
  lines = path.read_text().splitlines()
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      row = None
      if number == len(lines):
        break
    if not isinstance(row, dict):
      raise ValueError(
        f"{path}:{number} is no JSON object; expected one on every line:"
        " correct or remove it."
      )
    rows.append(row)
  return rows


@contextlib.contextmanager
def locked(path: Path, waits: bool = True) -> Iterator[BinaryIO | None]:
  """A file, made if missing, that no other process has locked meanwhile.

  `waits`: for one that has; if not, None is given instead of the file.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "a+b") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
      ours = file
    except BlockingIOError:
      ours = None
    yield ours


def make(path: Path) -> None:
  """An empty file, if missing: who cannot write it learns so before the work.

  Raises:
    OSError: it cannot be written.
  """
  for folder in path.parents:
    if folder.exists() and not folder.is_dir():
      raise NotADirectoryError(
        f"{folder} is a file; expected a folder: choose another --out."
      )
  if path.is_dir():
    raise IsADirectoryError(
      f"{path} is a folder; expected a file of rows: choose another --out."
    )
  try:
    with locked(path):
      pass
  except OSError as error:
    raise outputs.unwritable(path, error) from None


def append(path: Path, row: Row) -> None:
  """Adds one row at the end, after removing a cut line there."""
  with locked(path) as file:
    file.seek(0)
    content = file.read()
    last = content.rfind(b"\n") + 1
    # Appending goes to the end whatever the position.
    if _is_whole(content[last:]):
      file.write(b"\n")
    else:
      file.truncate(last)
    file.write(json.dumps(row).encode() + b"\n")


def _is_whole(line: bytes) -> bool:
  """Whether a line lacks its end only, as an editor may leave it."""
  try:
    json.loads(line)
  except ValueError:
    return False
  return True


def find(rows: list[Row], **wanted: Any) -> Row | None:
  """The first row whose keys have these values, if any."""
  for row in rows:
    if all(row.get(key) == value for key, value in wanted.items()):
      return row
  return None


def newest(table: Iterable[Row], *keys: str) -> list[Row]:
  """The last row of each value of those keys: what was trained again counts."""
  return [*{repr([row[key] for key in keys]): row for row in table}.values()]


def digest(of: Any) -> str:
  """Eight hex digits of its `repr`, for the name of a file."""
  return f"{zlib.crc32(repr(of).encode()):08x}"


def measured(
  path: Path, asked: Row, measure: Callable[[], Row]
) -> tuple[Row, bool]:
  """The row of what is asked, and whether it was missing, so that it is new."""
  row = find(read(path), **asked)
  if row is not None:
    return row, False
  make(path)
  row = asked | measure()
  row["device"] = environment.device()
  row["versions"] = environment.versions("scikit-learn")
  append(path, row)
  return row, True


class Pace:
  """How far all processes are that add some rows, as a sentence.

  Args:
    left: says how many are missing now.
  """

  def __init__(self, left: Callable[[], int]):
    self._left, self._total = left, left()
    self._start = time.monotonic()

  def __str__(self) -> str:
    left = self._left()
    done = self._total - left
    seconds = (time.monotonic() - self._start) / max(done, 1) * left
    rest = datetime.timedelta(seconds=round(seconds))
    return f"{done} of {self._total} rows, about {rest} left"


COLUMNS = {
  "num_steps": "num_diffusion_steps",
  "final_num_steps": "final_diffusion_steps",
  "start": "start_timestep",
}
"""What rows call fields of a head's settings, if not as they are called."""


def as_row(settings: Settings) -> dict[str, Any]:
  """Settings as a row holds them: flat, without those that are not set, so that
  a new one, left alone, makes no row another.
  """
  fields = dataclasses.asdict(settings)
  head = fields.pop("head") or {}
  if head.get("kind") == "diffusion":
    del head["kind"]
  fields |= {COLUMNS.get(name, name): value for name, value in head.items()}
  return {name: value for name, value in fields.items() if value is not None}
