"""Files that others wrote: what is opened, what they may name, what is copied.

1. Only a regular file is opened: a pipe or a device may keep a reader waiting
   for ever. A link to a regular file is one.
2. A JSON file is measured before it is read.
3. A name in a list of files never leaves its folder: it is relative and has no
   `..`. Only an autoencoder may also be beside its model: `../NAME`.
4. Links are not followed when files are copied, since what they point to may
   be private: they are refused.
"""

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from marjax import schema
from marjax.schema import check, printable

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
  """The mapping in a JSON file, see `marjax.schema.read_json`.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: no regular file, too large, no JSON, or changed since.
  """
  size = check_regular(path)
  schema.check_json_size(size, str(path))
  return schema.read_json(path.read_bytes(), str(path))


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


def copy(source: Path, target: Path, names: Iterable[str]) -> None:
  """Copies the files of these names; makes the folder `target`.

  Raises:
    ValueError: a name leaves the folder, or leads over a link, or is no file.
    OSError: a file is missing, or cannot be read or written.
  """
  for name in names:
    check_name(name, str(source))
    place = source
    for part in PurePosixPath(name).parts:
      place = place / part
      check(
        not place.is_symlink(),
        f"{place} is a link, which is not followed when a release is copied:"
        f" what it points to may be private; copy {source} with what its links"
        " point to (cp -rL), look through it, and name the copy.",
      )
    check_regular(place)
    copied = target / name
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(place, copied)
