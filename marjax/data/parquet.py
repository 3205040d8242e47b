"""Pictures in parquet files, as `datasets` of Hugging Face lays them out.

    DIR/data/train-00000-of-00002.parquet      image: {bytes, path}, label: int

1. The split of a file is its name up to the first "-"; of a file whose name is
   a number, that of its folder. Files of a split are in order of their names.
2. The image column is the first that holds encoded files: bytes, or a struct
   with a field `bytes`. The label column is the one that the schema's note of
   Hugging Face calls a ClassLabel, or else the first of LABELS.
3. Names of the classes stand in that note; without it the labels, as text, are
   the names, in order.
4. A group of rows is read whole. Groups of at most KEPT bytes stay in memory,
   so a set of that size is read from the disk once.
"""

import contextlib
import hashlib
import io
import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from marjax import outputs
from marjax.data import decoding
from marjax.data.folders import in_order, none_held_out, share_of, some
from marjax.experiment import DataConfig
from marjax.outputs import shown
from marjax.schema import check

KEPT = 2**30

LABELS = ("label", "labels", "class", "category", "fine_label")

SUFFIX = ".parquet"


class ParquetSource:
  """One split of the parquet files at a path; see the module's docstring.

  Raises:
    ModuleNotFoundError: pyarrow is not installed.
    ValueError, FileNotFoundError: no such split, no image column, damage.
  """

  skipped: ClassVar[dict[str, int]] = {}
  skipped_names: ClassVar[dict[str, str]] = {}

  def __init__(self, config: DataConfig, split: str):
    self._config, self._split = config, split
    self._mode = "L" if config.channels == 1 else "RGB"
    root = outputs.local(config.data_dir)
    self._root, self._splits = root, splits_of(root)
    is_held_out = bool(config.test_share) and split == config.test_split
    wanted = config.train_split if is_held_out else split
    if wanted not in self._splits:
      if split == config.test_split and config.train_split in self._splits:
        raise FileNotFoundError(f"{none_held_out(shown(root), split)}.")
      raise FileNotFoundError(
        f"{shown(root)} has no split {shown(wanted)!r}; expected one of"
        f" {some(list(self._splits))}: name it with data.train_split or"
        " data.test_split."
      )
    self._paths = self._splits[wanted]
    files = [_opened(path) for path in self._paths]
    self._image, label, names = _columns(self._paths[0], files[0])
    self._groups = [
      (i, group, file.metadata.row_group(group).num_rows)
      for i, file in enumerate(files)
      for group in range(file.num_row_groups)
    ]
    self._files = files
    self._ends = np.cumsum([rows for *_, rows in self._groups], dtype=int)
    count = int(self._ends[-1]) if self._groups else 0
    check(count > 0, f"{shown(root)} has no rows; expected pictures.")
    self._labels = np.zeros(count, np.int64)
    self.class_names: tuple[str, ...] = ()
    if label and config.num_classes:
      values = [x for i in range(len(files)) for x in self._column(i, label)]
      self._labels, names = _numbered(values, names, self._paths[0])
      self.class_names = tuple(map(shown, names))
    check(
      len(self.class_names) <= config.num_classes,
      f"{shown(root)} has {len(self.class_names)} classes, and"
      f" data.num_classes is {config.num_classes}; set it to"
      f" {len(self.class_names)}.",
    )
    self._rows = np.arange(count)
    if config.test_share and split in (config.train_split, config.test_split):
      shares = np.array([share_of(str(row)) for row in range(count)])
      is_test = shares < config.test_share
      self._rows = np.flatnonzero(is_test == is_held_out)
    self._kept: OrderedDict[int, list[Any]] = OrderedDict()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict:
    """{"image": uint8 [H, W, C], "label": int, "id": int}."""
    row = int(self._rows[index])
    with decoding.naming(self.name(index)):
      image = decoding.decode(io.BytesIO(self._content(row)), self._mode)
    return {"image": image, "label": int(self._labels[row]), "id": row}

  @property
  def labels(self) -> list[int]:
    """Class of each picture."""
    return self._labels[self._rows].tolist()

  def header(self, index: int) -> decoding.Header:
    """Of the encoded picture; errors as in `decoding.read`."""
    content = self._content(int(self._rows[index]))
    with decoding.naming(self.name(index)):
      return decoding.header(io.BytesIO(content))

  def name(self, index: int) -> str:
    """Its row, and where that is."""
    return f"row {self._rows[index]} of {shown(self._root)}"

  def counts(self) -> list[int]:
    """Pictures of each class."""
    labels = self._labels[self._rows]
    return np.bincount(labels, minlength=len(self.class_names)).tolist()

  def other_splits(self) -> dict[str, int]:
    """Pictures of the others."""
    config, counts = self._config, {}
    if config.test_share:
      other = {config.train_split, config.test_split} - {self._split}
      return {name: len(ParquetSource(config, name)) for name in sorted(other)}
    for name, paths in self._splits.items():
      if name != self._split:
        rows = [_opened(path).metadata.num_rows for path in paths]
        counts[shown(name)] = sum(rows)
    return counts

  @property
  def identity(self) -> dict[str, str]:
    """Split, rows, and the sizes of its files."""
    sizes = [(path.name, path.stat().st_size) for path in self._paths]
    share = self._config.test_share
    return {
      "kind": "parquet",
      "split": self._split,
      "images": str(len(self)),
      "files": hashlib.sha256(repr(sizes).encode()).hexdigest()[:16],
    } | ({"test share": f"{share:g}"} if share else {})

  @property
  def description(self) -> str:
    """Split, number of pictures, files."""
    files = self.identity["files"]
    return f"parquet {self._split}: {len(self)} images, files {files}"

  def _column(self, i: int, name: str) -> list[Any]:
    with _explained(self._paths[i]):
      return self._files[i].read([name])[name].to_pylist()

  def _content(self, row: int) -> bytes:
    group = int(np.searchsorted(self._ends, row, side="right"))
    i, number, rows = self._groups[group]
    with self._lock:
      if group not in self._kept:
        with _explained(self._paths[i]):
          table = self._files[i].read_row_group(number, [self._image])
        self._kept[group] = table[self._image].combine_chunks()
        while len(self._kept) > 1 and self._size() > KEPT:
          self._kept.popitem(last=False)
      self._kept.move_to_end(group)
      value = self._kept[group][row - int(self._ends[group]) + rows].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    check(
      content is not None,
      f"row {row} of {shown(self._root)} has no picture in it; expected the"
      " bytes of one: leave that row out, or embed the files.",
    )
    return content

  def _size(self) -> int:
    return sum(array.nbytes for array in self._kept.values())


def splits_of(root: Path) -> dict[str, list[Path]]:
  """Split → its files, in order of their names."""
  paths = [root] if root.is_file() else sorted(root.rglob(f"*{SUFFIX}"))
  splits = defaultdict(list)
  for path in paths:
    name = path.stem.split("-")[0]
    splits[path.parent.name if name.isdecimal() else name].append(path)
  return dict(splits)


def class_names(root: Path, split: str) -> list[str]:
  """Names of the classes of a split; none where it has no labels."""
  path = splits_of(root)[split][0]
  file = _opened(path)
  _, label, names = _columns(path, file)
  if not label or names:
    return names
  with _explained(path):
    values = [
      value
      for path in splits_of(root)[split]
      for value in _opened(path).read([label])[label].to_pylist()
    ]
  return _numbered(values, [], path)[1]


def _opened(path: Path):
  import pyarrow.parquet

  with _explained(path):
    return pyarrow.parquet.ParquetFile(path)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
  import pyarrow

  try:
    yield
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(
      f"{shown(path)} cannot be read as parquet ({outputs.reason(error)});"
      " expected a whole file: make or copy it again."
    ) from error


def _columns(path: Path, file) -> tuple[str, str, list[str]]:
  """Names of the image column and of the label column, and of the classes."""
  import pyarrow as pa

  schema = file.schema_arrow
  images = [
    field.name
    for field in schema
    if pa.types.is_binary(field.type)
    or pa.types.is_large_binary(field.type)
    or (
      pa.types.is_struct(field.type)
      and field.type.get_field_index("bytes") >= 0
    )
  ]
  check(
    bool(images),
    f"{shown(path)} has the columns {some(schema.names)}, and none of them"
    " holds pictures; expected one of bytes, or of {bytes, path}: embed the"
    " files when you write it.",
  )
  try:
    note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = dict(note["info"]["features"])
  except (ValueError, LookupError, TypeError):
    features = {}
  for name, feature in features.items():
    is_label = isinstance(feature, dict) and "ClassLabel" in feature.values()
    if is_label and name in schema.names:
      return images[0], name, [*map(str, feature.get("names") or [])]
  label = next((name for name in LABELS if name in schema.names), "")
  return images[0], label, []


def _numbered(
  values: list[Any], names: list[str], path: Path
) -> tuple[np.ndarray, list[str]]:
  """Labels 0, 1, ..., and the names of the classes."""
  if not names:
    names = in_order(sorted({str(value) for value in values}))
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[str(value)] for value in values]), names
  wrong = [
    x for x in values if not isinstance(x, int) or not -1 < x < len(names)
  ]
  check(
    not wrong,
    f"{shown(path)} has the label {some([str(x) for x in wrong[:1]])};"
    f" expected 0 to {len(names) - 1}: leave such rows out.",
  )
  return np.array(values, np.int64), names
