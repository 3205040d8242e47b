"""One's own pictures: what a config of them leaves open, read from them.

1. `splits_of` finds the train and the test split where nobody named them: a
   folder "train" with one of TEST beside it, or else the place itself. A single
   folder in an archive that has the archive's name is the place.
2. Class folders that hold pictures are classes; pictures alone have none.
3. Channels: 1 if every picture looked at is grey, else 3.
4. Where there is no test split, a share of the pictures is (`folders`, 6).
5. Mean and deviation are those of the cropped pixels, in [-1, 1], of at most
   MEASURED pictures, evenly chosen.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from marjax import outputs
from marjax.data import contents, decoding, sources
from marjax.data.contents import LOOKED_AT, evenly
from marjax.data.examples import Examples
from marjax.data.folders import FEWEST_TO_SHARE, TEST, TRAIN
from marjax.experiment import DataConfig
from marjax.schema import check, from_dict

TEST_SHARE = 0.1
"""Held out where no split is for testing, of FEWEST_TO_SHARE or more."""

MEASURED = 500
"""Pictures whose pixels are read."""

SIZES = (64, 32, 16, 8)
"""Pixels of a side where nobody says how many: the first that fits."""

ROWS, COLUMNS = 16, 10
"""Of the page."""

GREY = {"1", "L", "LA", "La", *decoding.GREY}


class Found(NamedTuple):
  """A value that was left open, and the reason for it, in a few words."""

  value: Any
  why: str


def complete(asked: Mapping[str, Any]) -> tuple[DataConfig, dict[str, Found]]:
  """The DataConfig of pictures, and what of it was found.

  Args:
    asked: fields of a DataConfig, None where they are to be found.

  Raises:
    ValueError, FileNotFoundError: there are no such pictures, none of them can
      be read, or all are too small.
  """
  found: dict[str, Found] = {}
  fields = {key: value for key, value in asked.items() if value is not None}

  def fill(name: str, value: Any, why: str) -> None:
    if name not in fields:
      fields[name], found[name] = value, Found(value, why)

  check(
    bool(fields.get("data_dir")),
    "data.data_dir is empty; expected your folder of pictures, or a .zip, .tar"
    " or .parquet file: --config.data.data_dir=FOLDER.",
  )
  place = sources.look(fields["data_dir"])
  train, test = splits_of(place.splits, place.root)
  fill("train_split", train, "where the pictures are")
  train = fields["train_split"]
  fill("num_classes", *_classes(place.classes(train)))
  base = {"source": "folder", "image_size": 1, "num_classes": 0} | fields
  draft = from_dict(DataConfig, base | {"channels": 3}, "config.data")
  source = sources.open_source(draft, train)
  headers = look_at(source)
  if source.identity["kind"] == "tfds":
    fill("channels", source[0]["image"].shape[-1], "as the data set has it")
  is_grey = all(header.mode in GREY for header in headers)
  how = "every picture is grey" if is_grey else "there are coloured pictures"
  fill("channels", 1 if is_grey else 3, how)
  sides = [min(header.width, header.height) for header in headers]
  sides = sides or [min(source[0]["image"].shape[:2])]
  fill("image_size", *_size(sides))
  _check_sizes(sides, fields["image_size"], fields["data_dir"])
  if test or "test_split" in fields or not place.can_share:
    fill("test_split", test or train, "a split of that name")
    fill("test_share", 0.0, "there is a test split")
  else:
    few = len(source) < FEWEST_TO_SHARE
    fill("test_split", "test", "no split has that name")
    share, why = TEST_SHARE, f"held out of {len(source)} pictures"
    fill("test_share", *((0.0, "too few pictures") if few else (share, why)))
  return from_dict(DataConfig, base | fields, "config.data"), found


def splits_of(names: Iterable[str], root: str) -> tuple[str, str]:
  """Names of the train and the test split, "" where there is none.

  Args:
    names: of folders, or of splits. root: the place if none is "train".
  """
  by_name = {name.lower().rpartition("/")[2]: name for name in names}
  train = next((by_name[name] for name in TRAIN if name in by_name), "")
  test = next((by_name[name] for name in TEST if name in by_name), "")
  return (train, test) if train else (root, "")


def look_at(source: sources.Source) -> list[decoding.Header]:
  """Headers of at most LOOKED_AT pictures that can be read, evenly chosen.

  Raises:
    ValueError: none can be; says why of the first.
  """
  headers, wrong = contents.look_at(source, evenly(len(source), LOOKED_AT))
  check(
    bool(headers) or not wrong,
    f"none of {len(source)} pictures can be read; the first:"
    f" {outputs.one_line(next(iter(wrong.values()), ''))}",
  )
  return headers


def statistics(
  config: DataConfig, names: frozenset[str] | None = None
) -> tuple[float, float]:
  """Mean and deviation of the train split's pixels, in [-1, 1].

  Raises:
    ValueError: all pixels have one value, or a picture cannot be read.
  """
  examples = Examples(config, config.train_split, names)
  chosen = evenly(len(examples), MEASURED)
  images = _images(examples, chosen, "measured")
  pixels = images.astype(np.float64) / 127.5 - 1
  mean, deviation = float(pixels.mean()), float(pixels.std())
  check(
    deviation > 0,
    f"every pixel of {config.data_dir} has the same value; expected pictures"
    " with something in them.",
  )
  return round(mean, 3), max(0.001, round(deviation, 3))


def _images(
  examples: Examples, chosen: Sequence[int], verb: str
) -> UInt8[np.ndarray, "N H W C"]:
  """Cropped pictures, read by threads."""

  def read(index: int) -> np.ndarray:
    return examples.gather(np.array([index])).images

  return np.concatenate(contents.in_threads(read, chosen, verb))


def names_of(config: DataConfig) -> frozenset[str] | None:
  """Names of the training pictures that can be read; None for all."""
  if not config.skip_unreadable:
    return None
  return contents.readable(sources.open_source(config, config.train_split))


def _classes(names: list[str]) -> Found:
  if not names:
    return Found(0, "no class folders")
  return Found(len(names), ", ".join(map(outputs.shown, names))[:60])


def _size(sides: list[int]) -> Found:
  middle = int(np.median(sides))
  size = next((n for n in SIZES if n <= middle), max(1, middle))
  return Found(size, f"half of the pictures have {middle} pixels or more")


def _check_sizes(sides: list[int], size: int, where: str) -> None:
  """Refuses to enlarge all of them: there is nothing in it to learn."""
  largest = max(sides)
  check(
    largest >= size,
    f"every picture in {outputs.shown(where)} is smaller than the {size} pixels"
    f" of image_size, the largest has {largest} on its shorter side; expected"
    f" some at least that large: set --config.image_size={largest} or less.",
  )


def report(
  config: DataConfig, split: str, names: frozenset[str] | None = None
) -> contents.Contents:
  """What is in a split, for people; errors as in `sources.open_source`."""
  return contents.of_source(sources.open_source(config, split, names))


def has_split(config: DataConfig, split: str) -> bool:
  """Whether a split is there, and another one than the train split."""
  if config.test_share and split == config.test_split:
    return True
  if split == config.train_split:
    return False
  return split in sources.look(config.data_dir).splits


def sheet(
  config: DataConfig, names: frozenset[str] | None = None
) -> np.ndarray:
  """A page of what training sees, uint8 [height, width, 3].

  A row for each of the first ROWS classes, pictures evenly chosen; every second
  one mirrored if training mirrors.
  """
  from marjax.requests import pictures

  examples = Examples(config, config.train_split, names)
  names, labels = examples.source.class_names, labels_of(examples.source)
  rows, captions = [], []
  for label in range(min(ROWS, max(1, len(names)))):
    own = np.flatnonzero(labels == label)
    rows.append(own[evenly(len(own), COLUMNS if names else 4 * COLUMNS)])
    captions.append(names[label] if names else "")
  chosen = np.concatenate(rows)
  images = _images(examples, chosen.tolist(), "drew")
  columns = np.concatenate([np.arange(len(row)) for row in rows])
  if config.flip:
    images[columns % 2 == 1] = images[columns % 2 == 1, :, ::-1]
  blank = np.full(images.shape[1:], 255, np.uint8)
  width = COLUMNS if names else min(COLUMNS, len(chosen))
  cells, start = [], 0
  for row in rows:
    cells += [*images[start : start + len(row)]]
    cells += [blank] * (-len(row) % width)
    start += len(row)
  title = "every second picture is mirrored" if config.flip else None
  return pictures.grid(
    np.stack(cells),
    width,
    scale=max(1, 64 // config.image_size),
    row_labels=captions if names else None,
    title=title,
  )


def labels_of(source: sources.Source) -> np.ndarray:
  """Class of each picture, int [N], without decoding where that is known."""
  if hasattr(source, "labels"):
    return np.asarray(source.labels)
  every = (source[i]["label"] for i in range(len(source)))
  return np.array([*contents.told(every, len(source), "read")])
