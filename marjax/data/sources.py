"""Where images come from: four kinds of random access source.

    kind        data_dir    what is there
    digits      datasets    scikit-learn's digits, prepared when missing
    tfds        datasets    any TFDS dataset in array_record files, by name
    folder      ROOT        ROOT/SPLIT/CLASS/*.png, jpg, ... (`folders`), also
                            in a .zip or .tar; parquet files (`parquet`); one
                            version of a TFDS dataset
    synthetic   unused      nothing: images are computed

Every source has a length, and source[i] is {"image": uint8 [H, W, C],
"label": int, "id": int}; i and id stay with an image for good. name(i) is what
people call it, `description` tells one set of images from another, and the rest
is for the record of what was read, `contents`. Datasets lie in `data_dir`, else
in $MARJAX_DATA, else in ~/.cache/marjax/datasets.
"""

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

from marjax import outputs
from marjax.data import decoding, folders, parquet, trees
from marjax.data.folders import FolderSource
from marjax.data.parquet import ParquetSource
from marjax.data.synthetic import SyntheticSource
from marjax.experiment import DataConfig
from marjax.outputs import shown
from marjax.schema import check


class TfdsSource:
  """One split of a TFDS dataset that lies in array_record files.

  Args:
    folder: of one version of the dataset, e.g. DATA_DIR/cifar10/3.0.2.
    split: its name, or a slice of it.
    num_classes: of the config; the dataset may not have more.
    cure: what to do when the files are damaged, a clause for messages.
    id_name: the feature that is an image's id; "" takes its position.
  """

  skipped: ClassVar[dict[str, int]] = {}
  skipped_names: ClassVar[dict[str, str]] = {}

  def __init__(
    self,
    folder: Path,
    split: str,
    num_classes: int,
    cure: str,
    id_name: str = "",
  ):
    import tensorflow_datasets as tfds

    self._folder, self._split = folder, split
    self._cure, self._id_name = cure, id_name
    try:
      builder = tfds.builder_from_directory(folder)
    except Exception as error:
      raise _damaged(folder, error, cure) from error
    found, features = builder.info.file_format, builder.info.features
    check(
      found is tfds.core.FileFormat.ARRAY_RECORD,
      f"{folder} holds {found.value} files; expected array_record: {cure}.",
    )
    check(
      {"image", "label"} <= set(features),
      f"{folder} has the features {', '.join(features)}; expected image and"
      " label: choose a dataset of labelled images.",
    )
    self._splits = builder.info.splits
    known = getattr(features["label"], "num_classes", None) or 0
    names = features["label"].names if known else ()
    self.class_names = tuple(map(shown, names))
    check(
      known <= num_classes,
      f"{folder} has {known} classes, and data.num_classes is {num_classes};"
      f" set data.num_classes to {known}.",
    )
    # Of images that are encoded files. TFDS would give a palette's indices as
    # pixels, and would use another decoder, OpenCV, where that is installed.
    decoders, self._mode = None, None
    if isinstance(features["image"], tfds.features.Image):
      decoders = {"image": tfds.decode.SkipDecoding()}
      channels = features["image"].shape[-1]
      self._mode = {1: "L", 4: "RGBA"}.get(channels, "RGB")
    try:
      self._records = builder.as_data_source(split, decoders=decoders)
    except Exception as error:
      raise ValueError(
        f"{folder} has no split {split!r}; expected one of"
        f" {', '.join(self._splits)}, or a slice such as 'train[:90%]'."
      ) from error

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    """{"image": uint8 [H, W, C], "label": int, "id": int}."""
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}.")
    try:
      example = self._records[index]
      image = example["image"]
      if self._mode:
        image = decoding.decode(io.BytesIO(image), self._mode)
    except Exception as error:
      raise self._unreadable(index, error) from error
    return {
      "image": image,
      "label": int(example["label"]),
      "id": int(example[self._id_name]) if self._id_name else index,
    }

  def header(self, index: int) -> decoding.Header | None:
    """Of an image that is an encoded file."""
    if self._mode is None:
      return None
    try:
      return decoding.header(io.BytesIO(self._records[index]["image"]))
    except Exception as error:
      raise self._unreadable(index, error) from error

  def _unreadable(self, index: int, error: Exception) -> ValueError:
    if isinstance(error, decoding.Refused):
      return ValueError(
        f"{self.name(index)} of {self._folder} cannot be read as an image"
        f" ({error}); expected another: choose a split or data set without it."
      )
    return _damaged(self._folder, error, self._cure)

  def name(self, index: int) -> str:
    """The feature `file_name` where there is one that can be read."""
    try:
      name = self._records[index]["file_name"]
    except Exception:
      return f"image {index} of {self._split}"
    return shown(os.fsdecode(name) if isinstance(name, bytes) else str(name))

  def other_splits(self) -> dict[str, int]:
    """All that the dataset has."""
    return {
      shown(name): split.num_examples
      for name, split in self._splits.items()
      if name != self._split
    }

  @property
  def identity(self) -> dict[str, str]:
    """Dataset, split, and the sizes of its files."""
    sizes = [
      (name, split.num_bytes, *split.shard_lengths)
      for name, split in self._splits.items()
    ]
    return {
      "kind": "tfds",
      "data set": "/".join(self._folder.parts[-2:]),
      "split": self._split,
      "images": str(len(self)),
      "files": hashlib.sha256(repr(sizes).encode()).hexdigest()[:16],
    }

  @property
  def description(self) -> str:
    """Name, version, split and number of images."""
    dataset = "/".join(self._folder.parts[-2:])
    return f"tfds {dataset} {self._split}: {len(self)} images"


Source = TfdsSource | FolderSource | ParquetSource | SyntheticSource


def open_source(
  config: DataConfig, split: str, names: frozenset[str] | None = None
) -> Source:
  """The images of one split, as the module's docstring describes them.

  Args:
    config: a DataConfig.
    split: a name the source knows, e.g. config.train_split; TFDS slices such
      as "train[:90%]" work for digits and tfds.
    names: of a folder's images, those to read; None for all.

  Raises:
    ValueError: the source does not fit the config, or is damaged.
    FileNotFoundError: there is no such dataset, folder or split.
  """
  match config.source:
    case "digits":
      from marjax.data import digits

      folder = digits.prepare(dataset_dir(config.data_dir))
      cure = "delete that folder and run again, it is prepared anew in a second"
      return TfdsSource(folder, split, config.num_classes, cure, id_name="id")
    case "tfds":
      return _open_tfds(config, split)
    case "folder":
      return _open_pictures(config, split, names)
    case "synthetic":
      return SyntheticSource(config, split)
  raise ValueError(
    f"data.source is {config.source!r}; expected one of digits, tfds, folder,"
    " synthetic."
  )


def moved(config: DataConfig, split: str, data_dir: str) -> DataConfig:
  """The same images, of another split or in another folder, unless "".

  Raises:
    FileNotFoundError: there is no such folder, or no digits there, which are
      not prepared in it.
  """
  if data_dir:
    root = outputs.path_of(data_dir)
    place, there = root, root.exists()
    if config.source == "digits":
      place = root / "digits"
      there = place.exists() and any(place.glob("*/dataset_info.json"))
    if not there:
      raise FileNotFoundError(
        f"data_dir is {data_dir}, and there is nothing in {place}; expected the"
        " folder of the real images that the model was trained on: leave it out"
        " for the one that the checkpoint names."
      )
  return dataclasses.replace(
    config,
    test_split=split or config.test_split,
    data_dir=data_dir or config.data_dir,
  )


class Place(NamedTuple):
  """What pictures there are at a path, before a config says how to read them.

  Attributes:
    root: the split that is all of it. splits: names that may be splits.
    classes: split → names of its classes.
    can_share: whether a part of a split can be another.
  """

  root: str
  splits: list[str]
  classes: Callable[[str], list[str]]
  can_share: bool


def look(data_dir: str) -> Place:
  """What there is at a path; errors as in `open_source`."""
  path = outputs.local(data_dir)
  if _is_dataset(path):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    features = builder.info.features
    known = "label" in features and getattr(features["label"], "names", None)
    names = [*(known or [])]
    return Place("train", [*builder.info.splits], lambda split: names, False)
  if _is_parquet(path):
    splits = [*parquet.splits_of(path)]

    def classes(split: str) -> list[str]:
      return parquet.class_names(path, split) if split in splits else []

    return Place(splits[0], splits, classes, can_share=True)
  tree = trees.open_tree(path)
  return Place(*folders.layout(tree, path.stem), can_share=True)


def _open_pictures(
  config: DataConfig, split: str, names: frozenset[str] | None
) -> Source:
  """Of what lies at data.data_dir: array_record, parquet, or picture files."""
  if config.data_dir and not outputs.is_remote(
    outputs.path_of(config.data_dir)
  ):
    path = outputs.local(config.data_dir)
    if _is_dataset(path):
      cure = "prepare or copy it again"
      return TfdsSource(path, split, config.num_classes, cure)
    if _is_parquet(path):
      return ParquetSource(config, split)
  return FolderSource(config, split, names)


def _is_dataset(path: Path) -> bool:
  """Whether it is one version of a prepared TFDS dataset."""
  return (path / "dataset_info.json").is_file()


def _is_parquet(path: Path) -> bool:
  """Whether it is a .parquet file, or a folder with some but no pictures."""
  if path.is_file():
    return path.name.lower().endswith(parquet.SUFFIX)
  places = [path / name for name in ("", "data", *folders.TRAIN)]
  return any(any(place.glob(f"*{parquet.SUFFIX}")) for place in places)


def dataset_dir(data_dir: str) -> Path:
  """Where prepared datasets lie; ValueError for a bucket."""
  chosen = data_dir or os.environ.get("MARJAX_DATA", "")
  return outputs.local(chosen or "~/.cache/marjax/datasets")


def _damaged(folder: Path, error: Exception, cure: str) -> ValueError:
  reason = str(error).split(";")[0].strip() or type(error).__name__
  reason = reason.splitlines()[0].rstrip(".")
  return ValueError(
    f"{folder} is damaged ({reason}); expected a whole dataset: {cure}."
  )


def _open_tfds(config: DataConfig, split: str) -> TfdsSource:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  check(
    bool(config.name), "data.name is empty; expected a TFDS dataset's name."
  )
  data_dir = dataset_dir(config.data_dir)
  command = (
    'python -c "import tensorflow_datasets as tfds; tfds.builder('
    f"'{config.name}', data_dir='{data_dir}', file_format='array_record')"
    '.download_and_prepare()" (preparing may need TensorFlow, reading does not;'
    f" what must be fetched by hand, as ImageNet, goes to {data_dir}"
    "/downloads/manual first)"
  )
  cure = f"delete that folder and prepare it again with {command}"
  try:
    builder = read_only_builder.builder_from_files(
      config.name, data_dir=str(data_dir)
    )
  except tfds.core.DatasetNotFoundError as error:
    raise FileNotFoundError(
      f"{data_dir} holds no prepared dataset {config.name}; prepare it with"
      f" {command}."
    ) from error
  except Exception as error:
    raise _damaged(data_dir / config.name, error, cure) from error
  folder = Path(builder.data_dir)
  return TfdsSource(folder, split, config.num_classes, cure)
