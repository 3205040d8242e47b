"""scikit-learn's handwritten digits as a TFDS dataset, prepared offline.

1. 1 797 images, 8×8, with grey levels v = 0..16, kept as uint8:
   u = round(255/16·v), so v = round(16/255·u) gives the level back.
2. The split is stratified. Sort the rows by class, in pseudo-random order
   inside a class; spread the 450 test images evenly along that line:

       class   0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 2 2 2 ...
       test    · · · x · · · x · · · x · · · x · · ...

   so every class gives its share, less than one image off. The order comes from
   the raw bits of PCG64, which are the same in every version of numpy.
3. `prepare` writes array_record files into a temporary folder beside their
   place, then renames it: there is a whole dataset or none, whoever else
   prepares it at the same time.
"""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int

NUM_IMAGES = 1797
NUM_TEST = 450


class Digits(tfds.core.GeneratorBasedBuilder):
  """8×8 handwritten digits: train 1 347, test 450; image, label, id.

  `id` is the row in scikit-learn's array, so it tells all 1 797 apart.
  """

  VERSION = tfds.core.Version("1.0.0")
  # TFDS looks beside the code for checksums of downloads, of which there are
  # none here, and to find the code it imports a package it does not require.
  code_path = None

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Handwritten digits of 43 people, 8×8, from scikit-learn.",
      homepage="https://archive.ics.uci.edu/dataset/80",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
          "label": tfds.features.ClassLabel(num_classes=10),
          "id": tfds.features.Scalar(np.int64),
        }
      ),
      supervised_keys=("image", "label"),
      disable_shuffling=True,  # so that records lie in the order of their ids
    )

  def _split_generators(self, dl_manager) -> dict:
    try:
      from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(
        "scikit-learn is not installed; the digits are prepared from it, once:"
        " pip install 'marjax[demo]'."
      ) from error
    digits = load_digits()
    is_test = choose_test(digits.target)
    return {
      "train": self._generate_examples(digits, ~is_test),
      "test": self._generate_examples(digits, is_test),
    }

  def _generate_examples(self, digits, is_chosen):
    # From grey levels 0..16 to 0..255.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    for row in np.flatnonzero(is_chosen).tolist():
      label = int(digits.target[row])
      yield row, {"image": images[row], "label": label, "id": row}


def prepare(data_dir: Path) -> Path:
  """The folder of the prepared dataset, written first if it is not there.

  Raises:
    OSError: `data_dir` cannot be made or written.
    ModuleNotFoundError: not prepared yet, and scikit-learn is not installed.
  """
  folder = data_dir / Digits.name / str(Digits.VERSION)
  if folder.exists():
    return folder
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".digits-") as name:
      _write(name)
      (Path(name) / folder.relative_to(data_dir)).rename(folder)
  except OSError as error:
    if folder.exists():  # another process was quicker
      return folder
    raise type(error)(
      f"{data_dir} cannot hold the digits ({error.strerror or error}); expected"
      " a folder that you can write to: set data.data_dir or MARJAX_DATA."
    ) from error
  return folder


def choose_test(labels: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
  """Which rows are test images: a quarter, 450 of 1 797, of every class."""
  count = len(labels)
  line = np.lexsort((np.random.PCG64(0).random_raw(count), labels))
  is_test = np.empty(count, bool)
  is_test[line] = np.diff(np.arange(count + 1) * NUM_TEST // NUM_IMAGES) == 1
  return is_test


def _write(data_dir: str) -> None:
  builder = Digits(data_dir=data_dir, file_format="array_record")
  offline = tfds.download.DownloadConfig(try_download_gcs=False)
  # Its progress bars and messages tell nothing about a tenth of a second.
  noise = io.StringIO()
  with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
    builder.download_and_prepare(download_config=offline)
