"""Where files lie in folders: on the disk, in a .zip or in a .tar.

1. A place is a path in the tree, its parts joined by slashes, "" the tree
   itself. `listed` tells images from folders and from what is passed over.
2. An archive is read in place. Its list of members is read once; a picture is
   then one seek and one read, so a compressed .tar is refused: it has no index.
3. Members that lie outside of the archive's folder, by "/" or "..", are passed
   over, as are links.
"""

import collections
import contextlib
import io
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from marjax import outputs
from marjax.data.decoding import SUFFIXES
from marjax.outputs import shown
from marjax.schema import check

LEFT_BEHIND = {
  "thumbs.db",
  "ehthumbs.db",
  "desktop.ini",
  "icon\r",
  "__macosx",
  "__pycache__",
  "@eadir",
  "@__thumb",
  "@recycle",
  "#recycle",
  "#snapshot",
  "$recycle.bin",
  "system volume information",
  "lost+found",
  "temporary items",
  "network trash folder",
}
"""Names, in lower case, besides all that begin with a full stop."""

ARCHIVES = (".zip", ".tar")

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz")


_DAMAGE = (
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
  OSError,
  ValueError,
  EOFError,
  RuntimeError,  # also a compression that zipfile does not know
)


class Listing(NamedTuple):
  """What lies in a folder: images and folders by name; kind → other names."""

  images: list[str]
  folders: list[str]
  others: dict[str, list[str]]


def nothing() -> Listing:
  """What lies in a folder that is not there."""
  return Listing([], [], {})


class FolderTree:
  """A folder on this machine."""

  def __init__(self, root: Path):
    self.root = str(root)

  def shown(self, place: str = "") -> str:
    """The path, fit for print."""
    return shown(os.path.join(self.root, place) if place else self.root)

  def is_folder(self, place: str) -> bool:
    """Whether there is such a folder."""
    return os.path.isdir(os.path.join(self.root, place))

  def is_same(self, one: str, other: str) -> bool:
    """Whether two folders that are there are one."""
    paths = (os.path.join(self.root, place) for place in (one, other))
    return os.path.samefile(*paths)

  def listed(self, place: str) -> Listing:
    """What lies in a folder; OSError where that cannot be seen."""
    try:
      entries = list(os.scandir(os.path.join(self.root, place)))
    except OSError as error:
      raise type(error)(
        f"{self.shown(place)} cannot be listed ({outputs.reason(error)});"
        " expected a folder that you can read."
      ) from None
    return sort_out(
      (entry.name, _is(entry.is_dir), _is(entry.is_file)) for entry in entries
    )

  def file(self, place: str) -> str:
    """What `decoding` opens."""
    return os.path.join(self.root, place)

  def tail(self, place: str, count: int) -> tuple[int, bytes]:
    """Bytes of a file, and the last `count` of them."""
    with open(self.file(place), "rb") as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - count))
      return size, file.read()


class ArchiveTree:
  """A .zip or a .tar file on this machine.

  Raises:
    ValueError: it is damaged, or has a password.
  """

  def __init__(self, path: Path):
    self.root, self._path = str(path), path
    self._folders = collections.defaultdict(dict)
    self._folders[""] = {}
    is_zip = path.name.lower().endswith(".zip")
    with self._explained():
      members = self._zipped() if is_zip else self._taken()
    for place, how in members.items():
      *folders, name = place.split("/")
      for depth, folder in enumerate(folders):
        self._folders["/".join(folders[:depth])][folder] = None
        self._folders["/".join(folders[: depth + 1])].update({})
      self._folders["/".join(folders)][name] = how

  def shown(self, place: str = "") -> str:
    """The path, with that in the archive behind it, fit for print."""
    return shown(posixpath.join(self.root, place) if place else self.root)

  def is_folder(self, place: str) -> bool:
    """Whether a member lies in such a folder."""
    return place in self._folders

  def is_same(self, one: str, other: str) -> bool:
    """Whether two folders are one."""
    return one == other

  def listed(self, place: str) -> Listing:
    """What lies in a folder."""
    entries = self._folders.get(place, {})
    return sort_out(
      (name, how is None, how is not None) for name, how in entries.items()
    )

  def file(self, place: str) -> io.BytesIO:
    """What `decoding` opens: the bytes of a member."""
    folder, _, name = place.rpartition("/")
    with self._explained():
      return io.BytesIO(self._read(self._folders[folder][name]))

  def tail(self, place: str, count: int) -> tuple[int, bytes]:
    """Bytes of a member, and the last `count` of them."""
    content = self.file(place).getvalue()
    return len(content), content[-count:]

  def _zipped(self) -> dict:
    self._zip = zipfile.ZipFile(self._path)
    self._read = self._zip.read
    infos = [info for info in self._zip.infolist() if not info.is_dir()]
    locked = [info.filename for info in infos if info.flag_bits & 1]
    check(not locked, f"it has a password, as {shown(''.join(locked[:1]))}")
    return _inside((info.filename, info) for info in infos)

  def _taken(self) -> dict:
    with tarfile.open(self._path, "r:") as archive:
      infos = [info for info in archive if info.isreg() and not info.sparse]
    self._file = os.open(self._path, os.O_RDONLY)

    def read(member):
      offset, size = member
      content = os.pread(self._file, size, offset)
      check(len(content) == size, "it ends too early")
      return content

    self._read = read
    return _inside((x.name, (x.offset_data, x.size)) for x in infos)

  def __del__(self):
    if hasattr(self, "_file"):
      os.close(self._file)

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Makes one sentence of what is wrong with the archive."""
    try:
      yield
    except _DAMAGE as error:
      raise ValueError(
        f"{self.shown()} cannot be read as an archive"
        f" ({outputs.reason(error)}); expected a whole {self._path.suffix}"
        " file without a password: make or copy it again, or unpack it and name"
        " the folder."
      ) from error


Tree = FolderTree | ArchiveTree


def open_tree(path: Path) -> Tree:
  """The tree at a path.

  Raises:
    ValueError: it is a file but no archive, or one that is compressed whole.
    FileNotFoundError: there is nothing.
  """
  if not path.exists():
    raise FileNotFoundError(
      f"data.data_dir is {shown(path)}, and there is nothing; expected your"
      " folder of pictures, or a .zip, .tar or .parquet file."
    )
  name, kind = path.name.lower(), ", ".join(ARCHIVES)
  if path.is_file():
    check(
      not name.endswith(COMPRESSED),
      f"{shown(path)} is compressed as a whole, so no picture in it can be"
      f" read alone; expected {kind}: decompress it, or unpack it and name the"
      " folder.",
    )
    check(
      name.endswith(ARCHIVES),
      f"{shown(path)} is a file of an unknown kind; expected a folder of"
      f" pictures, {kind}, .parquet or .array_record.",
    )
    return ArchiveTree(path)
  return FolderTree(path)


def sort_out(entries: Iterable[tuple[str, bool, bool]]) -> Listing:
  """Of (name, is a folder, is a file): images, folders and the rest."""
  images, folders, others = [], [], collections.defaultdict(list)
  for name, is_folder, is_file in entries:
    if name.startswith(".") or name.lower() in LEFT_BEHIND:
      others["hidden or left behind by a system"].append(name)
    elif is_folder:
      folders.append(name)
    elif not name.lower().endswith(SUFFIXES):
      suffix = shown(os.path.splitext(name)[1].lower())
      kind = f"{suffix} files" if suffix else "files without a suffix"
      others[kind].append(name)
    elif not is_file:
      others["pipes, devices or links to nothing"].append(name)
    else:
      images.append(name)
  others = {kind: sorted(names) for kind, names in others.items()}
  return Listing(sorted(images), sorted(folders), others)


def normal(place: str) -> str:
  """A place as trees write it: "." is the tree itself."""
  place = posixpath.normpath(place.replace(os.sep, "/"))
  return "" if place == "." else place


def _inside(members: Iterable[tuple[str, object]]) -> dict:
  """Normal place → how to read it, of those that lie inside."""
  places = {}
  for name, how in members:
    place = normal(name.replace("\\", "/"))
    if place and not place.startswith(("/", "..")):
      places[place] = how
  return places


def _is(question) -> bool:
  try:
    return question()
  except OSError:  # a circle of links
    return False
