"""What people and their systems do to folders of images, and what is said."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from marjax.cli import main
from marjax.data import contents, sources
from marjax.experiment import DataConfig


def fill(folder, *names):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    path = folder / name
    if path.suffix in (".png", ".jpg"):
      Image.fromarray(np.full((8, 8, 3), len(name), np.uint8)).save(path)
    else:
      path.write_bytes(b"something")


def opened(root, num_classes=2, split="train", **changes):
  config = DataConfig("folder", 8, num_classes, data_dir=str(root), **changes)
  return sources.open_source(config, split)


def labels(source):
  return [source[i]["label"] for i in range(len(source))]


def test_what_systems_leave_behind_is_ignored_and_counted(tmp_path):
  train = tmp_path / "train"
  fill(train / "cat", "1.png", "._1.png", "Thumbs.db", ".DS_Store", "2.heic")
  fill(train / "dog", "1.png", "desktop.ini", "notes", "Icon\r")
  fill(train / "dog" / "more", "1.png")
  fill(train / "dog" / "@eaDir", "1.png")
  for name in ("__MACOSX", ".Trashes", "@eaDir", "$RECYCLE.BIN", "lost+found"):
    fill(train / name, "1.png")
  fill(train, "loose.png", "._cat")
  os.mkfifo(train / "cat" / "pipe.png")
  (train / "cat" / "link.png").symlink_to(tmp_path / "gone.png")
  (train / "cat" / "folder.png").mkdir()
  (train / "cat" / "3.png").symlink_to(train / "dog" / "1.png")
  source = opened(tmp_path)
  assert labels(source) == [0, 0, 1]
  assert source.class_names == ("cat", "dog")
  assert source.skipped == {
    ".heic files": 1,
    "files without a suffix": 1,
    "folders inside of class folders": 2,
    "hidden or left behind by a system": 12,
    "images outside of a class folder": 1,
    "pipes, devices or links to nothing": 2,
  }
  said = str(contents.of_source(source))
  heic = "1 .heic file (cat/2.heic)"
  assert f"passed over: {heic}, 1 file without a suffix (dog/notes)" in said
  assert "3 images, 2 classes with names" in said
  assert "classes: 0 cat (2), 1 dog (1)" in said


def test_classes_without_an_image_are_refused_by_name(tmp_path):
  fill(tmp_path / "train" / "cat", "1.png")
  fill(tmp_path / "train" / "dog", "1.heic", "2.heic", "3.ppm")
  fill(tmp_path / "train" / "eel" / "young", "1.png")
  (tmp_path / "train" / "fox").mkdir()
  with pytest.raises(ValueError, match="without an image") as error:
    opened(tmp_path, num_classes=4)
  for words in (
    "dog (in it: 2 .heic files, 1 .ppm file)",
    "eel (in it: 1 folder)",
    "fox (in it: nothing)",
  ):
    assert words in str(error.value)
  # As it says: converted, moved, removed.
  fill(tmp_path / "train" / "dog", "1.png")
  os.rename(tmp_path / "train/eel/young/1.png", tmp_path / "train/eel/1.png")
  (tmp_path / "train" / "fox").rmdir()
  # The empty classes are told before their number is, which they would change.
  with pytest.raises(ValueError, match=r"3 class folders, cat, dog, eel, and"):
    opened(tmp_path, num_classes=2)
  assert labels(opened(tmp_path, num_classes=3)) == [0, 1, 2]


@pytest.mark.parametrize(
  ("names", "order"),
  [
    (["10", "2", "1"], ["1", "2", "10"]),
    (["010", "2", "1"], ["1", "2", "010"]),
    (["10", "2", "a"], ["10", "2", "a"]),
    (["class10", "class2"], ["class10", "class2"]),
  ],
)
def test_numbers_are_sorted_as_numbers(tmp_path, names, order):
  for name in names:
    fill(tmp_path / "train" / name, "1.png")
  fill(tmp_path / "test" / names[0], "1.png")
  source = opened(tmp_path, num_classes=3)
  assert source.class_names == tuple(order)
  test = opened(tmp_path, num_classes=3, split="test")
  assert test.class_names == tuple(order)
  assert labels(test) == [order.index(names[0])]
  assert f"classes: 0 {order[0]} (1), 1 {order[1]}" in str(
    contents.of_source(source)
  )


def test_a_flat_folder_trains_without_classes(tmp_path):
  fill(tmp_path / "train", "1.png", "2.jpg", ".3.png", "4.txt")
  with pytest.raises(FileNotFoundError, match="holds 2 images and no") as error:
    opened(tmp_path)
  assert (
    "set data.num_classes and model.backbone.condition.num_classes to 0"
    in str(error.value)
  )
  source = opened(tmp_path, num_classes=0)
  assert labels(source) == [0, 0]
  assert source.class_names == ()
  assert "2 images, no classes" in str(contents.of_source(source))
  assert len(opened(tmp_path / "train", 0, ".", train_split=".")) == 2
  fill(tmp_path / "train" / "cat", "1.png")
  with pytest.raises(ValueError, match=r"class folders, cat, .*classes to 1"):
    opened(tmp_path, num_classes=0)
  assert labels(opened(tmp_path, num_classes=1)) == [0]


def test_names_are_printed_without_control_characters(tmp_path):
  strange = "a\x1b[31m\n\u202eb"
  fill(tmp_path / "train" / strange, "1.png", "2\r.png")
  broken = os.fsencode(tmp_path / "train" / "c") + b"\xff"
  fill(tmp_path / "train" / "c", "1.png")
  os.rename(tmp_path / "train" / "c", broken)
  source = opened(tmp_path)
  assert source.class_names == ("a\\x1b[31m\\n\\u202eb", "c\\udcff")
  assert source.name(1).endswith("2\\r.png")
  found = contents.of_source(source)
  assert str(found).replace("\n", "").isprintable()
  contents.write(tmp_path / "data.json", found)
  assert contents.read(tmp_path / "data.json") == found
  with pytest.raises(ValueError, match="has 2 class folders") as error:
    opened(tmp_path, num_classes=1)
  assert str(error.value).isprintable()
  (tmp_path / "train" / strange / "1.png").write_bytes(b"x")
  with pytest.raises(ValueError, match="cannot be read") as error:
    source[0]
  assert str(error.value).isprintable()


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
  fill(tmp_path / "train" / "cat", "1.png")

  def scandir(path):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(PermissionError, match=r"train cannot be listed \(permis"):
    opened(tmp_path)
  monkeypatch.undo()
  monkeypatch.setattr("marjax.outputs._prepare_gcsfs", lambda: None)
  with pytest.raises(ValueError, match=r"gs://b; expected a folder of images"):
    opened("gs://b")


def test_images_looked_at_are_few_and_evenly_chosen(tmp_path, monkeypatch):
  fill(tmp_path / "train" / "a", *(f"{i:02}.png" for i in range(40)))
  monkeypatch.setattr(contents, "LOOKED_AT", 4)
  source, asked = opened(tmp_path), []
  header = source.header
  monkeypatch.setattr(source, "header", lambda i: asked.append(i) or header(i))
  found = contents.of_source(source)
  assert sorted(asked) == [0, 13, 26, 39]
  assert found.num_looked_at == 4
  assert found.sizes == {"8×8": 4}
  # The sizes of those files are part of the fingerprint.
  path = tmp_path / "train" / "a" / "13.png"
  path.write_bytes(path.read_bytes() + b"\0")
  assert contents.of_source(source).fingerprint != found.fingerprint


def test_other_splits_are_counted(tmp_path):
  fill(tmp_path / "train" / "a", "1.png")
  fill(tmp_path / "test" / "a", "1.png", "2.png", "._3.png")
  found = contents.of_source(opened(tmp_path))
  assert found.other_splits == {"test": 2}
  assert "other splits: 2 test" in str(found)


def test_a_cache_of_a_flat_folder(tmp_path, autoencoder, capsys):
  fill(tmp_path / "train", "1.png", "2.png")
  flags = ["--source", "folder", "--data_dir", tmp_path, "--batch_size", "2"]
  flags += ["--autoencoder", autoencoder, "--out", tmp_path / "cache"]
  command = ["cache-latents", *map(str, flags)]
  assert main.main(command) == 2
  assert "--without_classes" in capsys.readouterr().err
  assert main.main([*command, "--without_classes"]) == 0
  assert "2 images, no classes" in capsys.readouterr().out
  shutil.rmtree(tmp_path / "cache")
