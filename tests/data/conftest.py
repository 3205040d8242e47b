"""Small data sets on disk, and the configs that read them."""

import io

import numpy as np
import pytest
from PIL import Image

from marjax.experiment import DataConfig


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
  """A folder in which the digits are prepared, or will be."""
  return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def make_config(digits_dir):
  """A DataConfig: the digits by default, or of another source."""

  def make(source: str = "digits", **changes) -> DataConfig:
    fields = {"image_size": 8, "channels": 1, "num_classes": 10}
    if source == "digits":
      fields["data_dir"] = str(digits_dir)
    return DataConfig(source=source, **{**fields, **changes})

  return make


@pytest.fixture
def folder(tmp_path):
  """train/{ant,bee,cat} and test/{ant,cat} with 12×10 RGB images."""
  rng = np.random.default_rng(0)
  for split, name, count in (
    ("train", "cat", 9),
    ("train", "ant", 2),
    ("train", "bee", 1),
    ("test", "ant", 1),
    ("test", "cat", 1),
  ):
    place = tmp_path / "images" / split / name
    place.mkdir(parents=True)
    for i in rng.permutation(count):
      pixels = rng.integers(0, 256, (12, 10, 3), np.uint8)
      Image.fromarray(pixels).save(place / f"{i + 1}.png")
  return tmp_path / "images"


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
  """A prepared dataset "tiny": 20 PNG files of 9×9, labels i modulo 4.

  Its images are RGB; every fourth file has a palette.
  """
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("2.0.0")
    code_path = None

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(9, 9, 3)),
            "label": tfds.features.ClassLabel(num_classes=4),
          }
        ),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(20):
        file = io.BytesIO()
        picture = Image.fromarray(np.full((9, 9, 3), i, np.uint8))
        picture = picture if i % 4 else picture.quantize(2)
        picture.save(file, "PNG")
        file.seek(0)
        yield i, {"image": file, "label": i % 4}

  data_dir = tmp_path_factory.mktemp("tfds")
  offline = tfds.download.DownloadConfig(try_download_gcs=False)
  builder = Tiny(data_dir=str(data_dir), file_format="array_record")
  builder.download_and_prepare(download_config=offline)
  return data_dir
