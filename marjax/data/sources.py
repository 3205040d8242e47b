"""Where images come from: four kinds of random access source.

    kind        data_dir    what is there
    digits      datasets    scikit-learn's digits, prepared when missing
    tfds        datasets    any TFDS dataset in array_record files, by name
    folder      ROOT        ROOT/SPLIT/CLASS/*.png, jpg, ... (`folders`)
    synthetic   unused      nothing: images are computed

Every source has a length, and source[i] is {"image": uint8 [H, W, C],
"label": int, "id": int}; i and id stay with an image for good. name(i) is what
people call it, `description` tells one set of images from another, and the rest
is for the record of what was read, `contents`. Datasets lie in `data_dir`, else
in $MARJAX_DATA, else in ~/.cache/marjax/datasets.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

from marjax import outputs
from marjax.data import decoding, folders
from marjax.experiment import DataConfig
from marjax.outputs import shown

KINDS = ("digits", "tfds", "folder", "synthetic")


@runtime_checkable
class Source(Protocol):
  """Random access to images."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict: ...

  def name(self, index: int) -> str:
    """What people call an image."""
    ...

  @property
  def description(self) -> str:
    """The set of images, in words that no other set has."""
    ...

  @property
  def class_names(self) -> tuple[str, ...]:
    """Entry i names class i; none where they have no names."""
    ...

  @property
  def identity(self) -> dict[str, str]:
    """What tells this data from other data; see `contents`."""
    ...

  def header(self, index: int) -> decoding.Header | None:
    """Of an image that is a file; None where all are made alike."""
    ...

  def other_splits(self) -> dict[str, int]:
    """Images of other splits."""
    ...


def open_source(config: DataConfig, split: str) -> Source:
  """The images of one split, as the module's docstring describes them.

  Args:
    config: a DataConfig.
    split: a name the source knows, e.g. config.train_split; TFDS slices such
      as "train[:90%]" work for digits and tfds.

  Raises:
    ValueError: the source does not fit the config, or is damaged.
    FileNotFoundError: there is no such dataset, folder or split.
  """
  match config.source:
    case "digits":
      return _open_digits(config, split)
    case "tfds":
      return _open_tfds(config, split)
    case "folder":
      return folders.FolderSource(config, split)
    case "synthetic":
      return _open_synthetic(config, split)
  raise ValueError(
    f"data.source is {config.source!r}; expected one of {', '.join(KINDS)}."
  )


def dataset_dir(data_dir: str) -> Path:
  """Where prepared datasets lie."""
  chosen = data_dir or os.environ.get("MARJAX_DATA", "")
  path = outputs.path_of(chosen or "~/.cache/marjax/datasets")
  if outputs.is_remote(path):
    raise ValueError(
      f"data.data_dir is {path}; expected a folder of data sets on this"
      " machine, or one that is mounted here."
    )
  return path


class TfdsSource:
  """One split of a TFDS dataset that lies in array_record files.

  Args:
    folder: of one version of the dataset, e.g. DATA_DIR/cifar10/3.0.2.
    split: its name, or a slice of it.
    num_classes: of the config; the dataset may not have more.
    cure: what to do when the files are damaged, a clause for messages.
    id_name: the feature that is an image's id; "" takes its position.
  """

  def __init__(
    self,
    folder: Path,
    split: str,
    num_classes: int,
    cure: str,
    id_name: str = "",
  ):
    self._folder, self._cure, self._id_name = folder, cure, id_name
    self._split = split
    builder = self._restored()
    features = builder.info.features
    missing = {"image", "label"} - set(features)
    if missing:
      raise ValueError(
        f"{folder} has the features {', '.join(features)}; expected image and"
        " label: choose a dataset of labelled images."
      )
    self._label, self._info = features["label"], builder.info
    known = getattr(self._label, "num_classes", None) or 0
    if known > num_classes:
      raise ValueError(
        f"{folder} has {known} classes, and data.num_classes is {num_classes};"
        f" set data.num_classes to {known}."
      )
    self._records, self._mode = self._opened(builder, split)

  def _restored(self):
    import tensorflow_datasets as tfds

    try:
      builder = tfds.builder_from_directory(self._folder)
    except Exception as error:
      raise _damaged(self._folder, error, self._cure) from error
    found = builder.info.file_format
    if found is not tfds.core.FileFormat.ARRAY_RECORD:
      raise ValueError(
        f"{self._folder} holds {found.value} files; expected array_record:"
        f" {self._cure}."
      )
    return builder

  def _opened(self, builder, split: str) -> tuple:
    """The records, and the mode of images that are encoded files, else None."""
    import tensorflow_datasets as tfds

    decoders, mode = None, None
    feature = builder.info.features["image"]
    if isinstance(feature, tfds.features.Image):
      # TFDS would give a palette's indices as pixels, and would use another
      # decoder, OpenCV, on machines where that is installed.
      decoders = {"image": tfds.decode.SkipDecoding()}
      mode = {1: "L", 4: "RGBA"}.get(feature.shape[-1], "RGB")
    try:
      return builder.as_data_source(split, decoders=decoders), mode
    except Exception as error:
      raise ValueError(
        f"{self._folder} has no split {split!r}; expected one of"
        f" {', '.join(builder.info.splits)}, or a slice such as 'train[:90%]'."
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

  @property
  def class_names(self) -> tuple[str, ...]:
    """Those of the feature `label`."""
    is_named = getattr(self._label, "num_classes", None)
    return tuple(map(shown, self._label.names)) if is_named else ()

  def other_splits(self) -> dict[str, int]:
    """All that the dataset has."""
    splits = self._info.splits.items()
    return {
      shown(name): split.num_examples
      for name, split in splits
      if name != self._split
    }

  @property
  def identity(self) -> dict[str, str]:
    """Dataset, split, and the sizes of its files."""
    dataset, version = self._folder.parts[-2:]
    splits = self._info.splits.items()
    sizes = [
      (name, split.num_bytes, *split.shard_lengths) for name, split in splits
    ]
    return {
      "kind": "tfds",
      "data set": f"{dataset}/{version}",
      "split": self._split,
      "images": str(len(self)),
      "files": hashlib.sha256(repr(sizes).encode()).hexdigest()[:16],
    }

  @property
  def description(self) -> str:
    """Name, version, split and number of images."""
    dataset, version = self._folder.parts[-2:]
    return f"tfds {dataset}/{version} {self._split}: {len(self)} images"


def _damaged(folder: Path, error: Exception, cure: str) -> ValueError:
  reason = str(error).split(";")[0].strip() or type(error).__name__
  reason = reason.splitlines()[0].rstrip(".")
  return ValueError(
    f"{folder} is damaged ({reason}); expected a whole dataset: {cure}."
  )


def _open_digits(config: DataConfig, split: str) -> TfdsSource:
  from marjax.data import digits

  folder = digits.prepare(dataset_dir(config.data_dir))
  cure = "delete that folder and run again, it is prepared anew in a second"
  return TfdsSource(folder, split, config.num_classes, cure, id_name="id")


def _open_tfds(config: DataConfig, split: str) -> TfdsSource:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  if not config.name:
    raise ValueError("data.name is empty; expected a TFDS dataset's name.")
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


def _open_synthetic(config: DataConfig, split: str) -> Source:
  from marjax.data import synthetic

  shape = (config.image_size, config.image_size, config.channels)
  return synthetic.SyntheticSource(
    shape, max(1, config.num_classes), config.num_examples, config.seed, split
  )
