"""Image files in class folders.

1. The split's name is a folder below ROOT; "." means ROOT itself. A missing
   split is an error, never another split's images.
2. Classes are the class folders of the train split, so every split numbers them
   alike: sorted as numbers if all names are numbers, else as text. In a class,
   files are sorted by name.
3. What operating systems and tools leave behind, files with another suffix
   than an image's and folders inside of classes are passed over, and counted. A
   class without an image is an error.
4. With data.num_classes = 0 the images lie in the split's folder itself, and
   have no classes.
5. A file is decoded whole and converted to grey or RGB (`decoding`).
"""

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from marjax import outputs
from marjax.data import decoding
from marjax.data.decoding import SUFFIXES
from marjax.experiment import DataConfig
from marjax.outputs import shown
from marjax.schema import check

MARKED = 4096
"""Bytes, at a file's end, by which it is told from others."""

SHOWN = 10
"""Names that are printed."""

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


class Listing(NamedTuple):
  """What lies in a folder: images and folders by name, the rest by kind."""

  images: list[str]
  folders: list[str]
  others: Counter


NOTHING = Listing([], [], Counter())


class FolderSource:
  """Image files in class folders; see the module's docstring.

  Images are read as grey or RGB, as config.channels says.
  """

  def __init__(self, config: DataConfig, split: str):
    check(
      config.channels in (1, 3),
      f"data.channels is {config.channels}; expected 1 (grey) or 3 (RGB) for an"
      " image folder.",
    )
    check(
      bool(config.data_dir),
      "data.data_dir is empty; expected the folder that holds"
      " SPLIT/CLASS/*.png.",
    )
    self._mode = "L" if config.channels == 1 else "RGB"
    root = outputs.path_of(config.data_dir)
    check(
      not outputs.is_remote(root),
      f"data.data_dir is {root}; expected a folder of images on this machine,"
      " or one that is mounted here.",
    )
    folder, train = root / split, root / config.train_split
    if not folder.is_dir():
      raise FileNotFoundError(_no_split(root, folder))
    self._root, self._split, self._config = root, split, config
    whole = _listed(folder)
    if config.num_classes == 0:
      _check_flat(folder, whole)
      names, classes, skipped = [], {"": whole}, Counter()
    else:
      own = _in_order(whole.folders)
      is_train = not train.is_dir() or train.samefile(folder)
      names = own if is_train else _in_order(_listed(train).folders)
      classes = {name: _listed(folder / name) for name in own}
      _check_classes(folder, whole, classes, names, config.num_classes)
      loose = Counter({"images outside of a class folder": len(whole.images)})
      skipped = whole.others + loose
    self._files: list[tuple[str, int]] = []
    for label, name in enumerate(names or [""]):
      images, folders, others = classes.get(name, NOTHING)
      path = os.path.join(folder, name, "")
      self._files += [(path + image, label) for image in images]
      skipped += others
      skipped["folders inside of class folders"] += len(folders)
    # Entry i names class i; none where images have no classes.
    self.class_names = tuple(map(shown, names))
    # What was passed over: kind → how many.
    self.skipped = {kind: n for kind, n in sorted(skipped.items()) if n}

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict:
    """{"image": uint8 [H, W, C], "label": int, "id": int}."""
    path, label = self._files[index]
    image = decoding.read(path, self._mode)
    return {"image": image, "label": label, "id": index}

  def header(self, index: int) -> decoding.Header:
    """Of the file; errors as in `decoding.read`."""
    path, _ = self._files[index]
    with decoding.naming(path):
      return decoding.header(path)

  def mark(self, index: int) -> tuple[int, int]:
    """Bytes of the file, and a checksum of the last of them."""
    with open(self._files[index][0], "rb") as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - MARKED))
      return size, zlib.crc32(file.read())

  def name(self, index: int) -> str:
    """Path relative to ROOT, without control characters."""
    return shown(os.path.relpath(self._files[index][0], self._root))

  def hashes(self, count: int) -> list[tuple[int, str]]:
    """Of the first `count` images, by class: how many, hash of their names."""
    names = [[] for _ in self.class_names or [""]]
    for path, label in self._files[:count]:
      names[label].append(os.path.basename(path))
    return [(len(x), _hash("\n".join(x))) for x in names]

  def other_splits(self) -> dict[str, int]:
    """Images of the config's other splits, where they are there."""
    counts = {}
    for split in (self._config.train_split, self._config.test_split):
      folder = self._root / split
      if split != self._split and folder.is_dir():
        listing = _listed(folder)
        parts = [_listed(folder / name) for name in listing.folders]
        counts[split] = sum(len(part.images) for part in parts)
        counts[split] += len(listing.images) * (not self.class_names)
    return counts

  @property
  def identity(self) -> dict[str, str]:
    """What else tells this data from other data."""
    return {"kind": "folder", "split": self._split}

  @property
  def description(self) -> str:
    """Split, number of images and a hash of their names and labels."""
    start = len(str(self._root))
    names = "".join(f"{path[start:]} {label}\n" for path, label in self._files)
    return (
      f"folder {self._split}: {len(self)} images, sha256 {_hash(names)} of"
      " their names"
    )


def holds(folder: Path) -> tuple[bool, bool]:
  """Whether there are images, and folders, directly in a folder."""
  listing = _listed(folder)
  return bool(listing.images), bool(listing.folders)


def _hash(names: str) -> str:
  return hashlib.sha256(os.fsencode(names)).hexdigest()[:16]


def _listed(folder: Path) -> Listing:
  images, folders, others = [], [], Counter()
  try:
    entries = list(os.scandir(folder))
  except OSError as error:
    raise type(error)(
      f"{shown(folder)} cannot be listed ({outputs.reason(error)}); expected a"
      " folder that you can read."
    ) from None
  for entry in entries:
    if entry.name.startswith(".") or entry.name.lower() in LEFT_BEHIND:
      others["hidden or left behind by a system"] += 1
    elif _is(entry.is_dir):
      folders.append(entry.name)
    elif not entry.name.lower().endswith(SUFFIXES):
      suffix = shown(os.path.splitext(entry.name)[1].lower())
      others[f"{suffix} files" if suffix else "files without a suffix"] += 1
    elif not _is(entry.is_file):
      others["pipes, devices or links to nothing"] += 1
    else:
      images.append(entry.name)
  return Listing(sorted(images), sorted(folders), others)


def _is(question) -> bool:
  try:
    return question()
  except OSError:  # a circle of links
    return False


def _in_order(names: Sequence[str]) -> list[str]:
  """As numbers if all are, else as text."""
  if all(name.isascii() and name.isdecimal() for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)


def _check_classes(
  folder: Path,
  whole: Listing,
  classes: dict[str, Listing],
  names: list[str],
  num_classes: int,
) -> None:
  """Refuses classes that no split may have, and those without an image."""
  strange = sorted(classes.keys() - set(names))
  check(
    not strange,
    f"{shown(folder / (strange or ['.'])[0])} is a class that the train split"
    " does not have; expected the same class folders in every split.",
  )
  if not any(listing.images for listing in classes.values()):
    raise FileNotFoundError(_no_images(folder, whole, classes))
  empty = {name: x for name, x in classes.items() if not x.images}
  check(
    not empty,
    f"{shown(folder)} has class folders without an image that can be read:"
    f" {some([f'{name} (in it: {_rest(x)})' for name, x in empty.items()])};"
    f" expected {', '.join(SUFFIXES)} files directly in each: move or convert"
    " them, or remove the folder.",
  )
  check(
    len(names) <= num_classes,
    f"{shown(folder)} has {len(names)} class folders, {some(names)}, and"
    f" data.num_classes is {num_classes}; set data.num_classes to {len(names)},"
    " and the model's to that or 0.",
  )


def _check_flat(folder: Path, whole: Listing) -> None:
  check(
    not whole.folders,
    f"{shown(folder)} has class folders, {some(whole.folders)}, and"
    f" data.num_classes is 0; set data.num_classes to {len(whole.folders)} (a"
    " model without classes has model.backbone.condition.num_classes = 0), or"
    " put all images directly into that folder.",
  )
  if not whole.images:
    raise FileNotFoundError(_no_images(folder, whole, {}))


def _no_split(root: Path, folder: Path) -> str:
  names = _listed(root).folders if root.is_dir() else []
  return (
    f"{shown(folder)} is no folder; expected {shown(root)}/SPLIT/CLASS/*.png:"
    " name a split that is there with data.train_split and data.test_split, or"
    " marjax evaluate --split; or '.' if the class folders lie directly in"
    f" data.data_dir. Folders there: {some(names) or 'none'}."
  )


def _no_images(
  folder: Path, whole: Listing, classes: dict[str, Listing]
) -> str:
  if whole.images:
    return (
      f"{shown(folder)} holds {len(whole.images)} images and no class folders"
      " with images; expected CLASS/*.png below it: put them into one folder"
      " for each class, or, to train without classes, set data.num_classes and"
      " model.backbone.condition.num_classes to 0 (cache-latents:"
      " --without_classes)."
    )
  parts = [f"{name} ({_rest(x)})" for name, x in classes.items()]
  return (
    f"{shown(folder)} holds no images; expected CLASS/*.png below it"
    f" ({', '.join(SUFFIXES)}). In it: {some(parts) or _rest(whole)}."
  )


def _rest(listing: Listing) -> str:
  """What lies in a folder without images, in words."""
  words = [f"{n} {kind}" for kind, n in sorted(listing.others.items())]
  if listing.folders:
    words.insert(0, f"{len(listing.folders)} folders")
  return ", ".join(words) or "nothing"


def some(words: Sequence[str], between: str = ", ") -> str:
  """The first few, fit for print, for a message."""
  few = [shown(word) for word in words[:SHOWN]]
  return between.join(few + ["..."] * (len(words) > SHOWN))
