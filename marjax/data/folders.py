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
6. With data.test_share, where there is no test split, that share of the train
   split's images is the test split. A hash of its name says where an image is,
   so it stays there whatever is added; a class keeps one image to train on.
7. ROOT may be a .zip or a .tar with such folders in it (`trees`).
"""

import hashlib
import os
import posixpath
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence

from marjax import outputs
from marjax.data import decoding
from marjax.data.decoding import SUFFIXES
from marjax.data.trees import Listing, Tree, normal, nothing, open_tree
from marjax.experiment import DataConfig
from marjax.outputs import shown
from marjax.schema import check, counted

MARKED = 4096
"""Bytes, at a file's end, by which it is told from others."""

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "dev")
"""Folders that are splits, in lower case; the first that is there is taken."""

FEWEST_TO_SHARE = 50
"""Pictures of which a share is held out where no split is for testing."""

SHOWN = 10
"""Names that are printed."""

UNSEEN = (
  "expected pictures that the model has not seen: add some and train anew, or"
  " name their split, with data.test_split or --split, or their folder, with"
  " --scores and --against"
)
"""What a model is tested with."""


class FolderSource:
  """Image files in class folders; see the module's docstring.

  Images are read as grey or RGB, as config.channels says.

  Args:
    config: a DataConfig. split: a folder, or the part that is held out.
    names: those of the images to read; None for all.

  Attributes:
    added: names of images that are there and not among `names`.
  """

  def __init__(
    self,
    config: DataConfig,
    split: str,
    names: frozenset[str] | None = None,
  ):
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
    self._tree, self._split, self._config = open_tree(root), split, config
    self._is_held_out = bool(config.test_share) and split == config.test_split
    place = normal(config.train_split if self._is_held_out else split)
    if not self._tree.is_folder(place):
      raise FileNotFoundError(self._no_split(place))
    self._only, self.added = names, []
    names, classes, skipped = self._classes(place)
    self._files: list[tuple[str, int]] = []
    self._num_other = 0
    for label, name in enumerate(names or [""]):
      images, folders, others = classes.get(name, nothing())
      here = posixpath.join(place, name)
      self._num_other += len(images) - len(self._split_part(name, images))
      self._files += [
        (posixpath.join(here, image), label)
        for image in self._part(name, place, images)
      ]
      within = {"folders inside of class folders": folders}
      for kind, left in (others | within).items():
        skipped[kind] += [posixpath.join(name, x) for x in left]
    # Entry i names class i; none where images have no classes.
    self.class_names = tuple(map(shown, names))
    skipped = {kind: x for kind, x in sorted(skipped.items()) if x}
    # What was passed over: kind → how many, and the names of a few.
    self.skipped = {kind: len(x) for kind, x in skipped.items()}
    self.skipped_names = {kind: some(x) for kind, x in skipped.items()}

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict:
    """{"image": uint8 [H, W, C], "label": int, "id": int}."""
    place, label = self._files[index]
    with decoding.naming(self._tree.shown(place)):
      image = decoding.decode(self._tree.file(place), self._mode)
    return {"image": image, "label": label, "id": index}

  @property
  def names(self) -> list[str]:
    """Path of each image, relative to ROOT."""
    return [place for place, _ in self._files]

  @property
  def labels(self) -> list[int]:
    """Class of each image."""
    return [label for _, label in self._files]

  def header(self, index: int) -> decoding.Header:
    """Of the file; errors as in `decoding.read`."""
    place, _ = self._files[index]
    with decoding.naming(self._tree.shown(place)):
      return decoding.header(self._tree.file(place))

  def mark(self, index: int) -> tuple[int, int]:
    """Bytes of the file, and a checksum of the last of them."""
    size, tail = self._tree.tail(self._files[index][0], MARKED)
    return size, zlib.crc32(tail)

  def name(self, index: int) -> str:
    """Path relative to ROOT, without control characters."""
    return shown(self._files[index][0])

  def hashes(self, count: int) -> list[tuple[int, str]]:
    """Of the first `count` images, by class: how many, hash of their names."""
    names = [[] for _ in self.class_names or [""]]
    for place, label in self._files[:count]:
      names[label].append(posixpath.basename(place))
    return [(len(x), _hash("\n".join(x))) for x in names]

  def other_splits(self) -> dict[str, int]:
    """Images of the config's other splits, where they are there."""
    counts, config, tree = {}, self._config, self._tree
    if config.test_share:
      other = {config.train_split, config.test_split} - {self._split}
      return dict.fromkeys(sorted(other), self._num_other)
    for split in (config.train_split, config.test_split):
      place = normal(split)
      if split != self._split and tree.is_folder(place):
        listing = tree.listed(place)
        parts = [
          tree.listed(posixpath.join(place, name)) for name in listing.folders
        ]
        counts[split] = sum(len(part.images) for part in parts)
        counts[split] += len(listing.images) * (not self.class_names)
    return counts

  def _no_split(self, place: str) -> str:
    tree, config = self._tree, self._config
    here = tree.listed("").folders if tree.is_folder("") else []
    there = f"Folders there: {some(here) or 'none'}."
    if self._split == config.test_split and tree.is_folder(
      normal(config.train_split)
    ):
      return f"{none_held_out(tree.shown(), self._split)}. {there}"
    return (
      f"{tree.shown(place)} is no folder; expected {tree.shown()}/SPLIT/CLASS/"
      "*.png: name a split that is there with data.train_split and"
      " data.test_split, or marjax evaluate --split; or '.' if the class"
      f" folders lie directly in data.data_dir. {there}"
    )

  def _classes(self, place: str) -> tuple[list[str], dict, defaultdict]:
    """Names of the classes, what lies in each, and what is passed over."""
    tree, config = self._tree, self._config
    whole, train = tree.listed(place), normal(config.train_split)
    skipped = defaultdict(list, {k: [*x] for k, x in whole.others.items()})
    if config.num_classes == 0:
      _check_flat(tree.shown(place), whole)
      return [], {"": Listing(whole.images, whole.folders, {})}, skipped
    own = in_order(self._begun(place, whole.folders))
    is_train = not tree.is_folder(train) or tree.is_same(train, place)
    folders = [] if is_train else tree.listed(train).folders
    names = own if is_train else in_order(self._begun(train, folders))
    classes = {name: tree.listed(posixpath.join(place, name)) for name in own}
    _check_classes(tree.shown(place), whole, classes, names, config.num_classes)
    skipped["images outside of a class folder"] += whole.images
    return names, classes, skipped

  def _begun(self, place: str, folders: list[str]) -> list[str]:
    """Of class folders those that hold an image that is asked for."""
    if self._only is None:
      return folders
    asked = {posixpath.dirname(name) for name in self._only}
    here = {name: posixpath.join(place, name) for name in folders}
    self.added += [
      posixpath.join(path, image)
      for name, path in here.items()
      if path not in asked
      for image in self._split_part(name, self._tree.listed(path).images)
    ]
    return [name for name, path in here.items() if path in asked]

  def _part(self, name: str, place: str, images: list[str]) -> list[str]:
    """Of a class's images those of this split that are asked for."""
    images = self._split_part(name, images)
    if self._only is None:
      return images
    here = posixpath.join(place, name)
    is_asked = {x: posixpath.join(here, x) in self._only for x in images}
    self.added += [posixpath.join(here, x) for x in images if not is_asked[x]]
    return [name for name in images if is_asked[name]]

  def _split_part(self, name: str, images: list[str]) -> list[str]:
    """Of a class's images those of this split; see the module, step 6."""
    config = self._config
    if config.test_share == 0:
      return images
    if self._split not in (config.train_split, config.test_split):
      return images
    shares = {x: share_of(f"{name}/{x}") for x in images}
    last = max(shares, key=shares.get, default="")
    test = {x for x in images if shares[x] < config.test_share and x != last}
    return [x for x in images if (x in test) == self._is_held_out]

  @property
  def identity(self) -> dict[str, str]:
    """What else tells this data from other data."""
    share = self._config.test_share
    what = {"kind": "folder", "split": self._split}
    return what | ({"test share": f"{share:g}"} if share else {})

  @property
  def description(self) -> str:
    """Split, number of images and a hash of their names and labels."""
    names = "".join(f"/{place} {label}\n" for place, label in self._files)
    return (
      f"folder {self._split}: {len(self)} images, sha256 {_hash(names)} of"
      " their names"
    )


def _hash(names: str) -> str:
  return hashlib.sha256(os.fsencode(names)).hexdigest()[:16]


def layout(tree: Tree, stem: str) -> tuple[str, list[str], Callable]:
  """The place of the pictures, folders that may be splits, classes of one.

  `stem`: the file's name, which archives often repeat as their only folder.
  """
  whole, root = tree.listed(""), ""
  if whole.folders == [stem] and not whole.images:
    root, whole = stem, tree.listed(stem)

  def classes(split: str) -> list[str]:
    place = normal(split)
    if not tree.is_folder(place):
      return []
    names = tree.listed(place).folders
    parts = [tree.listed(posixpath.join(place, name)) for name in names]
    return in_order(names) if any(part.images for part in parts) else []

  splits = [posixpath.join(root, name) for name in whole.folders]
  is_class = any(name.lower() not in TRAIN + TEST for name in whole.folders)
  if is_class and not any(
    tree.listed(place).folders
    for name, place in zip(whole.folders, splits, strict=True)
    if name.lower() in TRAIN
  ):
    splits = []  # pictures of trains, beside those of ships
  return root or ".", splits, classes


def share_of(name: str) -> float:
  """A number from 0 to 1 that a name alone determines."""
  digest = hashlib.sha256(os.fsencode(name)).digest()
  return int.from_bytes(digest[:7]) / 2**56


def in_order(names: Sequence[str]) -> list[str]:
  """As numbers if all are, else as text."""
  if all(name.isascii() and name.isdecimal() for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)


def _check_classes(
  folder: str,
  whole: Listing,
  classes: dict[str, Listing],
  names: list[str],
  num_classes: int,
) -> None:
  """Refuses classes that no split may have, and those without an image."""
  strange = sorted(classes.keys() - set(names))
  check(
    not strange,
    f"{folder}/{shown((strange or ['.'])[0])} is a class that the train split"
    " does not have; expected the same class folders in every split.",
  )
  if not any(listing.images for listing in classes.values()):
    raise FileNotFoundError(_no_images(folder, whole, classes))
  empty = {name: x for name, x in classes.items() if not x.images}
  check(
    not empty,
    f"{folder} has class folders without an image that can be read:"
    f" {some([f'{name} (in it: {_rest(x)})' for name, x in empty.items()])};"
    f" expected {', '.join(SUFFIXES)} files directly in each: move or convert"
    " them, or remove the folder.",
  )
  check(
    len(names) <= num_classes,
    f"{folder} has {len(names)} class folders, {some(names)}, and"
    f" data.num_classes is {num_classes}; set data.num_classes to {len(names)},"
    " and the model's to that or 0.",
  )


def _check_flat(folder: str, whole: Listing) -> None:
  check(
    not whole.folders,
    f"{folder} has class folders, {some(whole.folders)}, and"
    f" data.num_classes is 0; set data.num_classes to {len(whole.folders)} (a"
    " model without classes has model.backbone.condition.num_classes = 0), or"
    " put all images directly into that folder.",
  )
  if not whole.images:
    raise FileNotFoundError(_no_images(folder, whole, {}))


def none_held_out(where: str, split: str) -> str:
  """What is said where there are pictures to train on, but none to test."""
  return (
    f"{where} has no split {shown(split)!r}, and training held none of its"
    f" pictures out (of {FEWEST_TO_SHARE} or more it does, where"
    f" data.test_share is left open); {UNSEEN}"
  )


def _no_images(folder: str, whole: Listing, classes: dict[str, Listing]) -> str:
  if whole.images:
    return (
      f"{folder} holds {len(whole.images)} images and no class folders"
      " with images; expected CLASS/*.png below it: put them into one folder"
      " for each class, or, to train without classes, set data.num_classes and"
      " model.backbone.condition.num_classes to 0 (cache-latents:"
      " --without_classes)."
    )
  parts = [f"{name} ({_rest(x)})" for name, x in classes.items()]
  return (
    f"{folder} holds no images; expected CLASS/*.png below it"
    f" ({', '.join(SUFFIXES)}). In it: {some(parts) or _rest(whole)}."
  )


def _rest(listing: Listing) -> str:
  """What lies in a folder without images, in words."""
  words = [counted(len(x), kind) for kind, x in sorted(listing.others.items())]
  if listing.folders:
    words.insert(0, counted(len(listing.folders), "folders"))
  return ", ".join(words) or "nothing"


def some(words: Sequence[str], between: str = ", ") -> str:
  """The first few, fit for print, for a message."""
  few = [shown(word) for word in words[:SHOWN]]
  return between.join(few + ["..."] * (len(words) > SHOWN))
