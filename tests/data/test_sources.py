"""Folders, TFDS datasets and synthetic images; what they say when wrong."""

import json
import re

import numpy as np
import pytest
from data.prepared import prepare
from PIL import Image

from marjax.data import batches, sources


def folder_config(make_config, folder, **changes):
  fields = {"data_dir": str(folder), "num_classes": 3, "channels": 3}
  return make_config("folder", **{**fields, **changes})


def test_folder_classes_and_files_are_sorted(make_config, folder):
  source = sources.open_source(folder_config(make_config, folder), "train")
  found = [source[i] for i in range(len(source))]
  assert [example["label"] for example in found] == [0, 0, 1] + 9 * [2]
  assert [example["id"] for example in found] == list(range(12))
  for i, cat in enumerate(found[3:], 1):
    pixels = np.asarray(Image.open(folder / "train" / "cat" / f"{i}.png"))
    np.testing.assert_array_equal(cat["image"], pixels)


def test_folder_splits_number_classes_alike(make_config, folder):
  source = sources.open_source(folder_config(make_config, folder), "test")
  assert [source[i]["label"] for i in range(2)] == [0, 2]


def test_folder_without_splits(make_config, folder):
  config = folder_config(make_config, folder / "train", train_split=".")
  assert len(sources.open_source(config, ".")) == 12


def test_folder_skips_what_is_no_image(make_config, folder):
  (folder / "train" / ".cache").mkdir()
  (folder / "train" / "bee" / "notes.txt").touch()
  (folder / "train" / "bee" / "2.JPG").write_bytes(
    (folder / "train" / "bee" / "1.png").read_bytes()
  )
  source = sources.open_source(folder_config(make_config, folder), "train")
  assert len(source) == 13


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_folder_reads_grey_or_colour(make_config, folder, channels, mode):
  config = folder_config(make_config, folder, channels=channels)
  path = folder / "train" / "bee" / "1.png"
  Image.open(path).convert("P").save(path)
  image = sources.open_source(config, "train")[2]["image"]
  expected = np.asarray(Image.open(path).convert(mode))
  np.testing.assert_array_equal(image, expected.reshape(12, 10, channels))


@pytest.mark.parametrize("length", [0, 10, 200])
def test_folder_names_a_corrupt_image(make_config, folder, length):
  path = folder / "train" / "bee" / "1.png"
  path.write_bytes(path.read_bytes()[:length])
  config = folder_config(make_config, folder)
  with pytest.raises(ValueError, match=f"^{re.escape(str(path))} cannot be"):
    batches.load_all(config, "train")


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA"])
def test_folder_images_of_any_mode_become_rgb(make_config, folder, mode):
  path = folder / "train" / "bee" / "1.png"
  suffix = {"CMYK": ".JPEG", "L": ".JPEG"}.get(mode, ".png")
  saved = path.with_suffix(suffix)
  Image.open(path).convert(mode).save(saved)
  if saved != path:
    path.unlink()
  config = folder_config(make_config, folder)
  image = sources.open_source(config, "train")[2]["image"]
  with Image.open(saved) as picture:
    assert picture.mode == mode
    np.testing.assert_array_equal(image, picture.convert("RGB"))


def test_folder_names_and_describes_its_images(make_config, folder):
  def opened(split="train"):
    return sources.open_source(folder_config(make_config, folder), split)

  source = opened()
  assert source.name(3) == "train/cat/1.png"
  assert source.description.startswith("folder train: 12 images, sha256 ")
  assert source.description != opened("test").description
  moved = folder.rename(folder.parent / "elsewhere")
  config = folder_config(make_config, moved)
  again = sources.open_source(config, "train")
  assert again.description == source.description
  (moved / "train" / "ant" / "1.png").rename(moved / "train" / "ant" / "0.png")
  other = sources.open_source(config, "train")
  assert other.description != source.description


def test_folder_that_does_not_fit(make_config, folder):
  def opened(split="train", **changes):
    return sources.open_source(
      folder_config(make_config, folder, **changes), split
    )

  with pytest.raises(ValueError, match=r"3 class folders.*num_classes to 3"):
    opened(num_classes=2)
  with pytest.raises(ValueError, match=r"channels is 4; expected 1 .* or 3"):
    opened(channels=4)
  with pytest.raises(ValueError, match=r"data_dir is empty; expected the fold"):
    opened(data_dir="")
  with pytest.raises(FileNotFoundError, match=r"valid is no folder; .*SPLIT/"):
    opened("valid")
  (folder / "test" / "dog").mkdir()
  with pytest.raises(ValueError, match=r"dog is a class that the train split"):
    opened("test")
  (folder / "empty" / "ant").mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match=r"empty holds no images; expect"):
    opened("empty")


def tiny_config(make_config, tfds_dir, **changes):
  fields = {"data_dir": str(tfds_dir), "num_classes": 4, "channels": 3}
  return make_config("tfds", **{"name": "tiny", **fields, **changes})


def test_tfds_dataset_by_name(make_config, tfds_dir):
  for name in ("tiny", "tiny:2.0.0"):
    config = tiny_config(make_config, tfds_dir, name=name, image_size=9)
    images, labels, ids = batches.load_all(config, "train")
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(20))
    np.testing.assert_array_equal(labels, np.arange(20) % 4)
    np.testing.assert_array_equal(ids, np.arange(20))
  quarter = sources.open_source(config, "train[:25%]")
  assert len(quarter) == 5
  assert quarter.description == "tfds tiny/2.0.0 train[:25%]: 5 images"
  assert quarter.name(4) == "n_4.png"


def test_tfds_dataset_that_does_not_fit(make_config, tfds_dir):
  def opened(split="train", **changes):
    return sources.open_source(
      tiny_config(make_config, tfds_dir, **changes), split
    )

  with pytest.raises(
    ValueError, match=r"has 4 classes, and .*num_classes to 4"
  ):
    opened(num_classes=3)
  with pytest.raises(
    ValueError, match=r"no split 'test'; expected one of trai"
  ):
    opened("test")
  with pytest.raises(ValueError, match=r"data\.name is empty; expected a TFDS"):
    opened(name="")
  with pytest.raises(
    FileNotFoundError, match=r"no prepared dataset mnist; .*builder\('mnist'"
  ):
    opened(name="mnist")
  config = tiny_config(make_config, tfds_dir, channels=1)
  with pytest.raises(ValueError, match=r"uint8 of shape \(9, 9, 3\); expect"):
    batches.load_all(config, "train")


@pytest.fixture
def tiny_copy(tfds_dir, tmp_path):
  """The dataset's folder, in a copy that may be spoilt."""
  folder = tmp_path / "tiny" / "2.0.0"
  folder.mkdir(parents=True)
  for path in (tfds_dir / "tiny" / "2.0.0").iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  return folder


def test_tfds_dataset_in_another_format(make_config, tiny_copy):
  info = json.loads((tiny_copy / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  (tiny_copy / "dataset_info.json").write_text(json.dumps(info))
  config = tiny_config(make_config, tiny_copy.parents[1])
  with pytest.raises(
    ValueError, match=r"tfrecord files; expected array_record"
  ):
    sources.open_source(config, "train")


@pytest.mark.parametrize("name", ["dataset_info.json", "array_record"])
def test_tfds_dataset_that_is_damaged(make_config, tiny_copy, name):
  path = next(tiny_copy.glob(f"*{name}*"))
  path.write_bytes(path.read_bytes()[:50])
  config = tiny_config(make_config, tiny_copy.parents[1])
  with pytest.raises(ValueError, match=r"is damaged .*delete that .*builder\("):
    batches.load_all(config, "train")


def test_tfds_dataset_without_labels(tmp_path):
  folder = prepare(
    tmp_path, "bare", lambda kinds: {"word": kinds.Text()}, [{"word": "one"}]
  )
  with pytest.raises(
    ValueError, match=r"features word; expected image and lab"
  ):
    sources.TfdsSource(folder, "train", 10, "")


def test_synthetic_images_are_functions_of_seed_split_and_index(make_config):
  config = make_config("synthetic", image_size=12, channels=3, num_examples=30)
  train = sources.open_source(config, "train")
  assert len(train) == 30
  again = sources.open_source(config, "train")[7]
  np.testing.assert_array_equal(train[7]["image"], again["image"])
  assert train[7]["label"] == 7
  others = [
    train[17],
    sources.open_source(config, "test")[7],
    sources.open_source(
      make_config("synthetic", image_size=12, channels=3, seed=1), "train"
    )[7],
  ]
  for other in others:
    assert (other["image"] != train[7]["image"]).mean() > 0.5
  with pytest.raises(IndexError):
    train[30]


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (20, 5)])
def test_synthetic_images_show_their_class(make_config, size, channels):
  config = make_config(
    "synthetic", image_size=size, channels=channels, num_examples=200
  )
  train, test = (batches.load_all(config, name) for name in ("train", "test"))
  assert train.images.shape == (200, size, size, channels)
  pixels = train.images.reshape(200, -1).astype(float)
  means = np.stack([pixels[train.labels == c].mean(0) for c in range(10)])
  distances = np.square(
    test.images.reshape(200, 1, -1).astype(float) - means
  ).sum(-1)
  assert (distances.argmin(1) == test.labels).mean() > 0.9


def test_unknown_source(make_config):
  config = make_config()
  object.__setattr__(config, "source", "cloud")  # past its type's own check
  with pytest.raises(ValueError, match=r"'cloud'; expected one of digits, tf"):
    sources.open_source(config, "train")
