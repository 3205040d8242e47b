"""Image files in class folders.

1. The split's name is a folder below ROOT; "." means ROOT itself. A missing
   split is an error, never another split's images.
2. Classes are the class folders of the train split, sorted by name as text, so
   every split numbers them alike. In a class, files are sorted by name.
3. A file is decoded whole and converted to grey or RGB, whatever it holds: a
   palette, grey levels, CMYK.
"""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from marjax.experiment import DataConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class FolderSource:
  """Image files in class folders; see the module's docstring.

  Images are read as grey or RGB, as config.channels says. Hidden folders are
  no classes.
  """

  def __init__(self, config: DataConfig, split: str):
    if config.channels not in (1, 3):
      raise ValueError(
        f"data.channels is {config.channels}; expected 1 (grey) or 3 (RGB) for"
        " an image folder."
      )
    if not config.data_dir:
      raise ValueError(
        "data.data_dir is empty; expected the folder that holds"
        " SPLIT/CLASS/*.png."
      )
    self._mode = "L" if config.channels == 1 else "RGB"
    root = Path(config.data_dir).expanduser()
    folder = root / split
    if not folder.is_dir():
      raise FileNotFoundError(
        f"{folder} is no folder; expected {root}/SPLIT/CLASS/*.png: set the"
        " split to '.' if the class folders lie directly in data.data_dir."
      )
    train = root / config.train_split
    names = _class_names(train if train.is_dir() else folder)
    if len(names) > config.num_classes:
      raise ValueError(
        f"{folder} has {len(names)} class folders, and data.num_classes is"
        f" {config.num_classes}; set data.num_classes to {len(names)}."
      )
    self._root, self._split = root, split
    self._files = _labelled_files(folder, names)

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict:
    """{"image": uint8 [H, W, C], "label": int, "id": int}."""
    path, label = self._files[index]
    try:
      image = decode(path, self._mode)
    except Exception as error:
      raise ValueError(
        f"{path} cannot be read as an image ({type(error).__name__}); expected"
        " a whole image file: replace or remove it."
      ) from error
    return {"image": image, "label": label, "id": index}

  def name(self, index: int) -> str:
    """Path relative to ROOT."""
    return os.path.relpath(self._files[index][0], self._root)

  @property
  def description(self) -> str:
    """Split, number of images and a hash of their names and labels."""
    names = hashlib.sha256()
    start = len(str(self._root))
    for path, label in self._files:
      names.update(f"{path[start:]} {label}\n".encode(errors="surrogateescape"))
    return (
      f"folder {self._split}: {len(self)} images,"
      f" sha256 {names.hexdigest()[:16]} of their names"
    )


def decode(file: str | io.BytesIO, mode: str) -> UInt8[np.ndarray, "H W C"]:
  """The pixels of an image file, in a mode of Pillow's such as "RGB"."""
  from PIL import Image

  with Image.open(file) as picture:
    pixels = np.asarray(picture.convert(mode))
  return pixels.reshape(*pixels.shape[:2], -1)


def _class_names(folder: Path) -> list[str]:
  return sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and not entry.name.startswith(".")
  )


def _labelled_files(folder: Path, names: list[str]) -> list[tuple[str, int]]:
  """(path, label) of every image, by class, then by file name."""
  strange = sorted(set(_class_names(folder)) - set(names))
  if strange:
    raise ValueError(
      f"{folder / strange[0]} is a class that the train split does not have;"
      " expected the same class folders in every split."
    )
  files = []
  for label, name in enumerate(names):
    if not (folder / name).is_dir():
      continue
    entries = sorted(os.scandir(folder / name), key=lambda entry: entry.name)
    images = [
      (entry.path, label)
      for entry in entries
      if entry.name.lower().endswith(SUFFIXES)
    ]
    files += images
  if not files:
    raise FileNotFoundError(
      f"{folder} holds no images; expected CLASS/*.png below it"
      f" ({', '.join(SUFFIXES)})."
    )
  return files
