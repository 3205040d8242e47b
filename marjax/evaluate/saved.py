"""The folder of saved images: what it says of itself, and when it is whole.

    OUT/settings.json                       first: a `Saving`
    OUT/images-00003-of-00050/003000.png    a shard, renamed when whole
    OUT/images-00003-of-00050.json          then its labels: now it counts

Shard k holds the images [k·n, (k + 1)·n), n = shard_size: PNG files in a
folder, an array_record file of `record_type`, or the plain bytes of an .npz
that is not joined yet.
"""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from marjax import outputs, schema
from marjax.release.json_files import read_json
from marjax.schema import Positive, Range, check

SETTINGS, FORMAT = "settings.json", "marjax images"
SUFFIXES = {"png": "", "array_record": ".array_record", "npz": ".bytes"}
MOST_SHARDS = 100_000  # names have five digits

Side = Annotated[int, Range(1, 2**14)]


@schema.config(kw_only=True)
class Saving:
  """What is saved, and of what: OUT/settings.json.

  Attributes:
    kind: "png", "array_record", or "npz" for one file as ADM's samples are.
    num_images: in all. height, width, channels: of each.
    shard_size: images of a shard; it is what a killed run does again.
    made_from: what decides the images, as a checkpoint's hash, seed, settings;
      who goes on must have the same.
  """

  kind: Literal["png", "array_record", "npz"]
  num_images: Positive
  height: Side
  width: Side
  channels: Annotated[int, Range(1, 4)]
  shard_size: Positive = 1000
  made_from: dict[str, str] = field(default_factory=dict)
  format: Literal["marjax images"] = FORMAT
  format_version: Annotated[int, Range(1, 1)] = 1

  def __post_init__(self):
    check(
      self.channels != 2 and (self.kind != "npz" or self.channels != 4),
      f"images of {self.channels} channels are to be saved as {self.kind};"
      " expected 1 for grey or 3 for RGB.",
    )
    check(
      self.num_shards <= MOST_SHARDS,
      f"{self.num_images} images in shards of {self.shard_size} are"
      f" {self.num_shards} shards; expected at most {MOST_SHARDS}: raise"
      " shard_size.",
    )

  @property
  def shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return self.height, self.width, self.channels

  @property
  def num_shards(self) -> int:
    """Of which the last may have fewer images."""
    return -(-self.num_images // self.shard_size)

  @property
  def record_type(self) -> np.dtype:
    """One record of an array_record file."""
    fields = [("label", "<i4"), ("id", "<i8"), ("image", "u1", self.shape)]
    return np.dtype(fields)

  def span(self, shard: int) -> range:
    """Images of a shard."""
    start = shard * self.shard_size
    return range(start, min(start + self.shard_size, self.num_images))

  def shard_name(self, shard: int) -> str:
    """Without a suffix."""
    return f"images-{shard:05d}-of-{self.num_shards:05d}"

  def file_name(self, index: int) -> str:
    """Of one PNG file, as images-00003-of-00050/003000.png."""
    digits = max(5, len(str(self.num_images - 1)))
    name = self.shard_name(index // self.shard_size)
    return f"{name}/{index:0{digits}d}.png"


def is_saved(folder: Path) -> bool:
  """Whether a folder was begun by a `Writer`."""
  path = folder / SETTINGS
  if not path.is_file():
    return False
  try:
    return read_json(path.read_bytes(), str(path)).get("format") == FORMAT
  except ValueError:
    return False


def read_settings(folder: Path) -> Saving:
  """What a folder of saved images says of itself; ValueError if damaged."""
  path = folder / SETTINGS
  mapping = read_json(path.read_bytes(), outputs.shown(path))
  return schema.from_dict(Saving, mapping, where=outputs.shown(path))


def read_labels(path: Path, count: int) -> np.ndarray:
  """Labels int32 [count] of a shard; ValueError if it is damaged."""
  labels = read_json(path.read_bytes(), outputs.shown(path)).get("labels")
  is_whole = isinstance(labels, list) and len(labels) == count
  check(
    is_whole and all(type(label) is int for label in labels),
    f"{outputs.shown(path)} is damaged; expected {count} labels: delete it, and"
    " run the command that saved the images again.",
  )
  return np.array(labels, np.int32)
