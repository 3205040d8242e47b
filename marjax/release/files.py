"""Files that others wrote: what is opened, and what they may name.

1. Only a regular file is opened: a pipe or a device may keep a reader waiting
   for ever. A link to a regular file is one.
2. A JSON file is measured before it is read.
3. A name in a list of files never leaves its folder: it is relative and has no
   `..`. Only an autoencoder may also be beside its model: `../NAME`.
4. `fault` compares files with the list of their sizes and hashes.
5. `opened` reads arrays of a .safetensors file.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from marjax import outputs
from marjax.outputs import AnyPath
from marjax.release import json_files
from marjax.schema import check, printable

NUM_HASHING = 8
"""Threads; hashing lets other threads run."""

_SPECIAL = {
  stat.S_IFIFO: "a named pipe",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
  stat.S_IFSOCK: "a socket",
  stat.S_IFDIR: "a folder",
}


def special(path: str | os.PathLike) -> str:
  """What a path is that is no regular file, else "".

  Raises:
    OSError: there is nothing, or it cannot be looked at.
  """
  return _SPECIAL.get(stat.S_IFMT(os.stat(path).st_mode), "")


def check_regular(path: str | os.PathLike) -> int:
  """The bytes of a regular file.

  Raises:
    OSError: there is nothing, or it cannot be looked at.
    ValueError: a folder, a pipe, a device.
  """
  what = special(path)
  check(not what, f"{path} is {what}; expected a regular file: put one there.")
  return os.stat(path).st_size


def read_json(path: Path) -> dict[str, Any]:
  """The mapping in a JSON file, see `marjax.json_files.read_json`.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: no regular file, too large, no JSON, or changed since.
  """
  size = check_regular(path)
  json_files.check_json_size(size, str(path))
  return json_files.read_json(path.read_bytes(), str(path))


def sha256(path: AnyPath) -> str:
  """The file's SHA-256 in hexadecimal; OSError if it cannot be read."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def fault(
  folder: AnyPath,
  records: Mapping[str, tuple[int, str | None]],
  where: str,
  most_hashed: int | float,
) -> str | None:
  """What is wrong with the first bad file of a folder, None if nothing is.

  Args:
    folder: of the files. where: the name of their list, for the sentence.
    records: name → bytes, and the SHA-256 where that is known.
    most_hashed: bytes of the largest file whose hash is compared.
  """

  def fault_of(name: str) -> str | None:
    path, (num_bytes, expected) = folder / name, records[name]
    is_hashed = expected is not None and num_bytes <= most_hashed
    size = found = None
    try:
      if outputs.is_remote(path) or path.is_file():
        size = outputs.size(path)
      if size == num_bytes and is_hashed:
        found = sha256(path)
    except FileNotFoundError:
      size = None
    except Exception as error:
      return f"{name} cannot be read ({outputs.reason(error)})"
    if size != num_bytes:
      what = "missing" if size is None else f"{size} bytes long"
      return f"{name} is {what}; {where} says {num_bytes} bytes"
    if found not in (None, expected):
      return (
        f"{name} has another content than {where} says (sha256"
        f" {found[:12]}..., expected {expected[:12]}...)"
      )
    return None

  with ThreadPoolExecutor(NUM_HASHING) as pool:
    return next(filter(None, pool.map(fault_of, records)), None)


def check_name(name: str, where: str, is_sibling: bool = False) -> None:
  """Refuses a name that leaves its folder.

  Args:
    name: with slashes. where: the list that has it, for the message.
    is_sibling: `../NAME` is allowed too.
  """
  path = PurePosixPath(name)
  inner = path.parts[1:] if is_sibling and name[:3] == "../" else path.parts
  check(
    bool(inner)
    and not path.is_absolute()
    and ".." not in inner
    and "\\" not in name
    and printable(name) == name,
    f"{where} names {printable(name)!r}; expected a name inside its folder"
    f"{', or ../NAME beside it' if is_sibling else ''}: take another copy.",
  )


@contextlib.contextmanager
def opened(path: Path, advice: str) -> Iterator[Any]:
  """A .safetensors file; one sentence of what is wrong with it.

  Args:
    advice: the sentence's end, from the semicolon on.

  Raises:
    ValueError: it cannot be read, also inside the context.
  """
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, "numpy") as file:
      yield file
  except (OSError, SafetensorError) as error:
    raise ValueError(
      f"{path} cannot be read ({outputs.reason(error)}); {advice}"
    ) from None
