"""Small data sets on disk, and the configs that read them."""

import dataclasses
import io

import jax
import numpy as np
import pytest
import small
from data.prepared import prepare
from PIL import Image

from marjax.data import latent_writer, sources
from marjax.data.latent_index import CacheSettings, Choices
from marjax.experiment import DataConfig
from marjax.parallel.mesh import make_mesh
from marjax.release import directory, loading
from marjax.release.card import Card
from marjax.release.digest import digest


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

  def features_of(kinds):
    return {
      "image": kinds.Image(shape=(9, 9, 3)),
      "label": kinds.ClassLabel(num_classes=4),
      "file_name": kinds.Text(),
    }

  def row(i):
    file = io.BytesIO()
    picture = Image.fromarray(np.full((9, 9, 3), i, np.uint8))
    picture = picture if i % 4 else picture.quantize(2)
    picture.save(file, "PNG")
    file.seek(0)
    return {"image": file, "label": i % 4, "file_name": f"n_{i}.png"}

  data_dir = tmp_path_factory.mktemp("tfds")
  prepare(data_dir, "tiny", features_of, map(row, range(20)), "2.0.0")
  return data_dir


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory):
  """A released autoencoder: 8×8 RGB images to 4×4×4 latents."""
  folder = tmp_path_factory.mktemp("releases") / "autoencoder"
  directory.save(folder, Card("small KL", small.CODEC), small.codec_params())
  return folder


@pytest.fixture(scope="session")
def loaded(autoencoder):
  """The autoencoder on a mesh of one device: (release, mesh)."""
  mesh = make_mesh(devices=jax.devices()[:1])
  return loading.load(autoencoder, mesh), mesh


@pytest.fixture
def write_cache(loaded, autoencoder):
  """Writes a cache of 23 synthetic images in shards of 5, or another.

  Called with its folder, a source, changes of settings and of choices.
  """
  release, mesh = loaded
  params_digest = digest(release.codec_params)

  def write(cache, source=None, choices=None, **changes):
    if source is None:
      source = sources.open_source(image_config(), "train")
    settings = CacheSettings(
      source=source.description,
      split="train",
      num_source=len(source),
      codec=small.CODEC,
      digest=params_digest,
      shard_size=5,
    )
    settings = dataclasses.replace(settings, **changes)
    choices = Choices(**{"batch_size": 2, "num_threads": 2, **(choices or {})})
    return latent_writer.write(
      cache, source, release, autoencoder, mesh, settings, choices
    )

  return write


def image_config(**changes) -> DataConfig:
  """23 synthetic RGB images of 8×8 in 7 classes."""
  fields = {"num_examples": 23, "num_classes": 7, "image_size": 8}
  return DataConfig("synthetic", **{**fields, **changes})


@pytest.fixture
def latents_config():
  """The DataConfig that reads a cache."""

  def make(cache, **changes) -> DataConfig:
    fields = {"image_size": 8, "num_classes": 7, "data_dir": str(cache)}
    return DataConfig("latents", **{**fields, **changes})

  return make
