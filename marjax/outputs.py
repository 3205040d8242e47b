"""Result files: complete or absent, and never overwritten unasked.

1. `path_of` makes a path of every name that a person gives: it tells paths on
   this machine from paths in a bucket, gs://, expands ~, and refuses what names
   nothing. `local` refuses buckets too. Nobody else does any of this.
2. `check_free` is called before anything long starts: it refuses paths that
   exist, and folders in which nothing can be written.
3. `write` puts the bytes under a temporary name in the same folder, then
   renames: a reader or a kill never meets half a file. In a bucket an object
   only appears when all of it is there, so it is written under its own name.
4. `shown` and `one_line` make names, which may hold anything, fit for print.
"""

import contextlib
import functools
import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from etils import epath

from marjax.schema import printable

log = logging.getLogger(__name__)

AnyPath = Path | epath.Path

LONGEST_NAME = 255
"""Bytes that file systems allow for one name of a path."""

LONGEST_MESSAGE = 600
"""Characters of an error's sentence: what is left out is in the middle."""


def path_of(path: Any) -> AnyPath:
  """A pathlib path without ~, or an etils path for gs://BUCKET/NAME.

  Raises:
    ValueError: no name, an empty one, one that no file can have; another
      scheme, a gs:// path that pathlib went over, a variable that no shell
      expanded, or ~ where the home folder is unknown.
    ModuleNotFoundError: gs:// without the packages of the extra `gcs`.
  """
  name = _checked(path)
  scheme, is_remote, _ = name.partition("://")
  if name.startswith("gs:/") and not is_remote:
    raise ValueError(
      f"{name} is neither a path on this machine nor one in a bucket; expected"
      " gs:// and as text, and only for a work directory: choose a path on this"
      " machine for other files."
    )
  if not is_remote:
    return _expanded(name)
  if scheme != "gs":
    raise ValueError(
      f"{name} is on {scheme}://, which is not supported; expected a path on"
      " this machine or gs://BUCKET/NAME."
    )
  _prepare_gcsfs()
  return epath.Path(name)


def absolute(path: str | os.PathLike) -> AnyPath:
  """`path_of`, from the root of its storage on."""
  path = path_of(path)
  return path if is_remote(path) else path.absolute()


def local(path: str | os.PathLike) -> Path:
  """`path_of` for what cannot be in a bucket; there it raises ValueError."""
  path = path_of(path)
  if is_remote(path):
    raise ValueError(
      f"{path} is in a bucket, where this file cannot be; expected a path on"
      " this machine: copy what is there, or write here and copy that."
    )
  return path


def is_remote(path: AnyPath) -> bool:
  """Whether a path of `path_of` is in a bucket."""
  return isinstance(path, epath.Path)


def size(path: AnyPath) -> int:
  """Bytes in a file; FileNotFoundError if there is none."""
  return path.stat().length if is_remote(path) else path.stat().st_size


@contextlib.contextmanager
def reading(path: AnyPath) -> Iterator[None]:
  """Makes one sentence of what a bucket answers; a missing file is left."""
  try:
    yield
  except FileNotFoundError:
    raise
  except Exception as error:
    if not is_remote(path):
      raise
    raise OSError(
      f"{path} cannot be read ({reason(error)}); expected a bucket that you can"
      " read: check its name, your credentials and the network."
    ) from error


def check_free(
  paths: Iterable[str | AnyPath], overwrite: bool | None = None
) -> None:
  """Makes sure that `write` will be able to write every path.

  Missing parent folders are made.

  Args:
    overwrite: None where the caller has no such choice.

  Raises:
    FileExistsError: a path exists and `overwrite` is not true.
    OSError: a path's folder cannot be made or written.
  """
  for path in map(path_of, paths):
    _refuse_existing(path, overwrite)
    if is_remote(path):
      trial = path.parent / f".{path.name}.trial"
      _put(trial, b"")
      trial.unlink()
    else:
      _temporary(path).unlink()


def write(
  path: str | AnyPath, content: bytes, overwrite: bool | None = None
) -> None:
  """Writes a whole file at once; errors as in `check_free`."""
  path = path_of(path)
  if is_remote(path):
    _refuse_existing(path, overwrite)
    _put(path, content)
    return
  with replacing(path, overwrite) as temporary:
    temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(
  path: str | Path, overwrite: bool | None = None
) -> Iterator[Path]:
  """An empty file beside `path` that takes its place when all went well.

  Only on this machine. Errors as in `check_free`, also for an OSError raised
  inside.
  """
  path = local(path)
  _refuse_existing(path, overwrite)
  temporary = _temporary(path)
  try:
    yield temporary
    temporary.replace(path)
  except OSError as error:
    raise unwritable(path, error) from error
  finally:
    temporary.unlink(missing_ok=True)


def lock(file: IO, path: AnyPath, is_waiting: bool = False) -> bool:
  """Takes the one lock on an open file, until it is closed.

  Some file systems and operating systems have no locks, and one process needs
  none: that is logged once, and the lock counts as taken.

  Args:
    file: open. path: what it keeps, for the log.
    is_waiting: for another process to be done; else False says that there is
      one.
  """
  try:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
  except BlockingIOError:
    return False
  except (ImportError, OSError) as error:
    _say_unlocked(path, reason(error))
  return True


@functools.cache
def _say_unlocked(path: AnyPath, cause: str) -> None:
  log.warning("no lock on %s (%s): let no other process use it.", path, cause)


def unwritable(path: AnyPath, error: Exception) -> Exception:
  """The error of a path that cannot be written, as one sentence."""
  kind, place = type(error), "folder"
  if is_remote(path):
    kind, place = OSError, "bucket"
  return kind(
    f"{path} cannot be written ({reason(error)}); expected a path in a {place}"
    " that you can write to: choose another."
  )


def shown(name: str | os.PathLike) -> str:
  """A name from a disk, fit for print: see `schema.printable`."""
  return printable(os.fspath(name))


def one_line(text: str) -> str:
  """A text as one line fit for print, of LONGEST_MESSAGE at most."""
  # What is far longer would take long to look at.
  line = shown(" ".join(_shortened(text, 100 * LONGEST_MESSAGE).split()))
  return _shortened(line, LONGEST_MESSAGE)


def reason(error: Exception) -> str:
  """What an error says, in a few words and in one line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror.lower()
  line = (str(error).splitlines() or [""])[0]
  return _shortened(f"{type(error).__name__}: {line}", 200)


def _shortened(text: str, length: int) -> str:
  """The text, without its middle if it is longer than that."""
  if len(text) <= length:
    return text
  head = length // 3  # a cause stands last, after paths
  return f"{text[:head]} ... {text[head + 5 - length :]}"


def _checked(path: Any) -> str:
  """The text of a path, if it can be one."""
  name = os.fspath(path) if isinstance(path, os.PathLike) else path
  if not isinstance(name, str) or not name.strip():
    raise ValueError(
      f"{path!r} is no path; expected the name of a file or folder."
    )
  try:
    is_name = "\0" not in name
    longest = max(map(len, os.fsencode(name).split(b"/")))
    is_there = is_name and longest <= LONGEST_NAME and os.path.lexists(name)
  except UnicodeEncodeError:
    is_name = False
  if not is_name:
    raise ValueError(
      f"{shown(name)} can be no path, for a character in it; expected the name"
      " of a file or folder: write it anew."
    )
  if longest > LONGEST_NAME:
    raise ValueError(
      f"{shown(name)[:60]}... has a name of {longest} bytes in it; expected"
      f" {LONGEST_NAME} at most: choose a shorter one."
    )
  if is_there:
    return name
  if name != name.strip() or re.search(r"[\x00-\x1f\x7f]", name):
    raise ValueError(
      f"'{shown(name)}' begins or ends in a space, or has a control character,"
      " and does not exist; expected a path without: write it anew."
    )
  if variable := re.search(r"(?:^|/)(\$\w+|\$\{\w+\})", name):
    raise ValueError(
      f"{shown(name)} names {variable[1]}, a variable that no shell expanded;"
      ' expected a whole path: put it between double quotes ("), not single'
      " ones, or write out what it stands for."
    )
  return name


def _expanded(name: str) -> Path:
  path = Path(name)
  if not path.parts or not path.parts[0].startswith("~"):
    return path
  if not name.startswith("~"):
    # ./~name is a file of that name, also when it comes here again.
    return path.absolute()
  try:
    expanded = path.expanduser()
  except RuntimeError:
    expanded = None
  if (
    not expanded
    or not expanded.is_absolute()
    or not os.environ.get("HOME", "-")
  ):
    raise ValueError(
      f"{shown(name)} begins in a home folder that is unknown here; expected"
      " HOME to name one: set it, or write the whole path."
    )
  return expanded


def _prepare_gcsfs() -> None:
  """Makes it honest and quiet."""
  import fsspec
  import gcsfs

  # It logs, with a traceback, what it raises.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  # It would answer from memory, but array files are written past it.
  for name in gcsfs.GCSFileSystem.protocol:
    settings = fsspec.config.conf.setdefault(name, {})
    settings.setdefault("use_listings_cache", False)


def _put(path: epath.Path, content: bytes) -> None:
  try:
    path.write_bytes(content)
  except Exception as error:
    raise unwritable(path, error) from error


def _refuse_existing(path: AnyPath, overwrite: bool | None) -> None:
  with reading(path):
    is_dir = path.is_dir()
    exists = path.exists() if is_remote(path) else os.path.lexists(path)
  if is_dir:
    raise IsADirectoryError(
      f"{path} is a folder; expected the path of a file to write."
    )
  if exists and not overwrite:
    way = (
      "remove that file"
      if overwrite is None
      else "pass --overwrite (overwrite=True in Python) to replace it"
    )
    raise FileExistsError(
      f"{path} already exists; expected a new path: choose another, or {way}."
    )


def _temporary(path: Path) -> Path:
  """An empty file beside `path`, under a name of its own."""
  temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.touch(exist_ok=False)
  except OSError as error:
    raise unwritable(path, error) from error
  return temporary
