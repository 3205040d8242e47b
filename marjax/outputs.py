"""Result files: complete or absent, and never overwritten unasked.

1. `check_free` is called before anything long starts: it refuses paths that
   exist, and folders in which nothing can be written.
2. `write` puts the bytes under a temporary name in the same folder, then
   renames: a reader or a kill never meets half a file.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def check_free(paths: Iterable[str | Path], overwrite: bool = False) -> None:
  """Makes sure that `write` will be able to write every path.

  Missing parent folders are made.

  Raises:
    FileExistsError: a path exists and `overwrite` is false.
    OSError: a path's folder cannot be made or written.
  """
  for path in map(Path, paths):
    _refuse_existing(path, overwrite)
    _temporary(path).unlink()


def write(path: str | Path, content: bytes, overwrite: bool = False) -> None:
  """Writes a whole file at once; errors as in `check_free`."""
  with replacing(path, overwrite) as temporary:
    temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
  """An empty file beside `path` that takes its place when all went well.

  Errors as in `check_free`, also for an OSError raised inside.
  """
  path = Path(path)
  _refuse_existing(path, overwrite)
  temporary = _temporary(path)
  try:
    yield temporary
    # A temporary file is private; a result is as readable as any other file.
    temporary.chmod(0o666 & ~_umask())
    temporary.replace(path)
  except OSError as error:
    raise _unwritable(path, error) from error
  finally:
    temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
  if path.is_dir():
    raise IsADirectoryError(
      f"{path} is a folder; expected the path of a file to write."
    )
  if os.path.lexists(path) and not overwrite:
    raise FileExistsError(
      f"{path} already exists; expected a new path: pass --overwrite to"
      " replace it, or choose another."
    )


def _temporary(path: Path) -> Path:
  """An empty file beside `path`, under a name of its own."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
  except OSError as error:
    raise _unwritable(path, error) from error
  os.close(handle)
  return Path(name)


def _unwritable(path: Path, error: OSError) -> OSError:
  reason = (error.strerror or str(error)).lower()
  return type(error)(
    f"{path} cannot be written ({reason}); expected a path in a folder that"
    " you can write to: choose another."
  )


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
