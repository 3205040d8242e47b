"""What a run read is kept, compared when it goes on, and names its classes."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest
import small
from data.prepared import prepare
from PIL import Image

import marjax
from marjax.backbone.conditions import ClassesConfig
from marjax.cli import main
from marjax.data import contents, sources
from marjax.data.batches import Batches
from marjax.experiment import DataConfig
from marjax.release import workdir as workdirs
from marjax.release.json_files import HASH
from marjax.schema import to_dict
from marjax.train import loop


def fill(root, **counts):
  for name, count in counts.items():
    folder = root / "train" / name
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
      pixels = np.full((8, 8, 3), 9 * i + len(name), np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=0)


def batches(root, num_classes=3):
  config = DataConfig("folder", 8, num_classes, data_dir=str(root))
  return Batches(config, "train", 1)


@pytest.fixture
def root(tmp_path):
  fill(tmp_path / "images", cat=3, dog=2)
  return tmp_path / "images"


@pytest.fixture
def run(tmp_path, root):
  """A work directory whose run has begun."""
  folder = tmp_path / "run"
  folder.mkdir()
  contents.keep(batches(root), folder, "", is_new=True)
  return folder


def refusal(root, run, accept="") -> str:
  with pytest.raises(ValueError, match="the data is not what") as error:
    contents.keep(batches(root), run, accept, is_new=False)
  return str(error.value)


def accepted(said: str) -> str:
  """The fingerprint that a refusal offers."""
  return re.search(r"--config\.data\.accept=(\w+) ", said)[1]


def swap(root):
  os.rename(root / "train" / "cat", root / "train" / "x")
  os.rename(root / "train" / "dog", root / "train" / "cat")
  os.rename(root / "train" / "x", root / "train" / "dog")


def repaint(root):
  path = root / "train" / "cat" / "1.png"
  size = path.stat().st_size
  pixels = np.full((8, 8, 3), 200, np.uint8)
  Image.fromarray(pixels).save(path, compress_level=0)
  assert path.stat().st_size == size


def touch_up(root):
  path = root / "train" / "cat" / "1.png"
  path.write_bytes(path.read_bytes() + b"\0")


CHANGES = {
  "added": (lambda root: fill(root, cat=5), "cat had 3 images and has 5"),
  "removed": (
    lambda root: os.remove(root / "train/dog/1.png"),
    "dog had 2 images and has 1",
  ),
  "renamed file": (
    lambda root: os.rename(root / "train/cat/0.png", root / "train/cat/9.png"),
    "cat has files of other names",
  ),
  "renamed class": (
    lambda root: os.rename(root / "train/cat", root / "train/eel"),
    "class 0 was cat and is dog; class 1 was dog and is eel",
  ),
  "a class more": (
    lambda root: fill(root, bee=1),
    "class 0 was cat and is bee; class 1 was dog and is cat; class 2 was none",
  ),
  "exchanged": (swap, "cat had 3 images and has 2; dog had 2 images and has 3"),
  "replaced": (touch_up, "content of images was "),
  "repainted": (repaint, "content of images was "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_data_is_refused_saying_how(root, run, name):
  change, words = CHANGES[name]
  before = (run / "data.json").read_bytes()
  change(root)
  said = refusal(root, run)
  assert words in said
  assert len(said.splitlines()) == 1
  assert (run / "data.json").read_bytes() == before
  # The advice, followed.
  fingerprint = accepted(said)
  refusal(root, run, accept="0" * 12)
  contents.keep(batches(root), run, fingerprint, is_new=False)
  contents.keep(batches(root), run, "", is_new=False)
  found = contents.read(run / "data.json")
  assert found.fingerprint == fingerprint


def test_the_same_data_goes_on_wherever_it_lies(root, run):
  contents.keep(batches(root), run, "", is_new=False)
  (root / "train" / "cat" / "._0.png").touch()
  shutil.copytree(root, root.parent / "elsewhere")
  shutil.rmtree(root)
  contents.keep(batches(root.parent / "elsewhere"), run, "", is_new=False)


def test_what_was_never_trained_on_may_change(root, run):
  fill(root, bee=2)
  contents.keep(batches(root), run, "", is_new=True)
  names = [part.name for part in contents.read(run / "data.json").classes]
  assert names == ["bee", "cat", "dog"]


def test_a_record_that_was_damaged_is_one_sentence(root, run):
  path = run / "data.json"
  path.write_text(path.read_text().replace('"cat"', '"car"'))
  with pytest.raises(ValueError, match=r"data\.json was changed or damaged"):
    contents.keep(batches(root), run, "", is_new=False)


def test_runs_from_before_there_were_records(root, run):
  (run / "data.json").unlink()
  contents.keep(batches(root), run, "", is_new=False)
  assert (run / "data.json").exists()
  (run / "data.json").unlink()
  shutil.rmtree(root)
  fill(root, **{"2": 1, "10": 1})
  said = refusal(root, run)
  assert "as text, 10, 2, and now that is 2, 10" in said
  fingerprint = accepted(said)
  contents.keep(batches(root), run, fingerprint, is_new=False)


def test_an_unreadable_image_is_told_before_the_first_step(root, tmp_path):
  (root / "train" / "cat" / "1.png").write_bytes(b"")
  with pytest.raises(ValueError, match=r"cat/1\.png cannot be read as an im"):
    contents.keep(batches(root), tmp_path, "", is_new=True)


def test_tfds_names_and_changes(tfds_dir, digits_dir):
  config = DataConfig("tfds", 9, 4, name="tiny", data_dir=str(tfds_dir))
  found = contents.of_source(sources.open_source(config, "train"))
  assert found.modes == {"RGB": 15, "P": 5}
  assert [part.name for part in found.classes] == ["0", "1", "2", "3"]
  part = contents.of_source(sources.open_source(config, "train[:50%]"))
  assert "split was train and is train[:50%]" in contents.changes(found, part)
  config = DataConfig("digits", 8, 10, 1, data_dir=str(digits_dir))
  digits = contents.of_source(sources.open_source(config, "train"))
  assert digits.num_looked_at == 0
  assert digits.other_splits == {"test": 450}
  again = contents.of_source(sources.open_source(config, "train"))
  assert again == digits


def test_tfds_class_names_become_class_names(tmp_path):
  def features_of(kinds):
    image = kinds.Tensor(shape=(8, 8, 3), dtype=np.uint8)
    return {"image": image, "label": kinds.ClassLabel(names=["cat", "dog"])}

  one = {"image": np.zeros((8, 8, 3), np.uint8), "label": "dog"}
  folder = prepare(tmp_path, "pets", features_of, [one])
  assert sources.TfdsSource(folder, "train", 2, "").class_names == (
    "cat",
    "dog",
  )


def test_a_cache_keeps_the_names_and_counts_of_its_images(
  root, tmp_path, autoencoder, latents_config, capsys
):
  def write(cache, *more):
    flags = ["--source", "folder", "--data_dir", root, "--out", cache]
    flags += ["--autoencoder", autoencoder, "--batch_size", "2", *more]
    assert main.main(["cache-latents", *map(str, flags)]) == 0

  def latents(cache):
    return Batches(latents_config(cache, num_classes=2), "train", 1)

  write(tmp_path / "cache")
  assert "0 cat (3), 1 dog (2)" in capsys.readouterr().out
  run = tmp_path / "run"
  run.mkdir()
  contents.keep(latents(tmp_path / "cache"), run, "", is_new=True)
  found = contents.read(run / "data.json")
  parts = [(part.name, part.num_images) for part in found.classes]
  assert parts == [("cat", 3), ("dog", 2)]
  assert found.modes == {"RGB": 5}
  os.rename(tmp_path / "cache", tmp_path / "moved")
  contents.keep(latents(tmp_path / "moved"), run, "", is_new=False)
  # Without names, as caches were written before.
  (tmp_path / "moved" / "data.json").unlink()
  contents.keep(latents(tmp_path / "moved"), run, "", is_new=False)
  assert contents.read(run / "data.json") == found
  # Another cache: of exchanged classes, with damage in it.
  swap(root)
  (root / "train" / "cat" / "1.png").write_bytes(b"")
  write(tmp_path / "other")
  with pytest.raises(
    ValueError, match=r"trained on: images was 5 and is 4; shards wa"
  ):
    contents.keep(latents(tmp_path / "other"), run, "", is_new=False)
  contents.keep(latents(tmp_path / "other"), run, "", is_new=True)
  found = contents.read(run / "data.json")
  assert [part.num_images for part in found.classes] == [None, None]
  shutil.copy(run / "data.json", tmp_path / "other" / "data.json")
  with pytest.raises(ValueError, match="is of other images than the cache"):
    contents.keep(latents(tmp_path / "other"), run, "", is_new=False)


def experiment_on(data):
  """One step of a small RGB model of three classes."""
  backbone = dataclasses.replace(
    small.MODEL.backbone, token_dim=12, condition=ClassesConfig(3)
  )
  head = dataclasses.replace(small.MODEL.head, token_dim=12)
  return dataclasses.replace(
    small.EXPERIMENT,
    codec=dataclasses.replace(small.EXPERIMENT.codec, channels=3),
    model=dataclasses.replace(small.MODEL, backbone=backbone, head=head),
    data=data,
    training=dataclasses.replace(
      small.EXPERIMENT.training, batch_size=8, num_steps=1
    ),
  )


@pytest.mark.slow
def test_a_run_keeps_its_class_names_and_its_data(root, tmp_path, caplog):
  fill(root, cat=6, dog=3)
  data = DataConfig("folder", 8, 3, data_dir=str(root))
  experiment = experiment_on(data)
  caplog.set_level("INFO", logger="marjax.data")
  loop.train(experiment, tmp_path / "run")
  assert "classes: 0 cat (6), 1 dog (3)" in caplog.text
  assert "1 of data.num_classes=3 have no images" in caplog.text
  pipe = marjax.load(tmp_path / "run")
  # Entry i names class i; the third class of the model has no images.
  assert pipe.card.class_names == ("cat", "dog", "")
  assert pipe.labels(["dog", "cat", 2]).tolist() == [1, 0, 2]
  release = str(tmp_path / "release")
  assert main.main(["convert", str(tmp_path / "run"), "--out", release]) == 0
  assert marjax.load(release).card.class_names == ("cat", "dog", "")
  swap(root)
  with pytest.raises(ValueError, match="has 3; dog had 3 images") as error:
    loop.train(experiment, tmp_path / "run")
  accept = accepted(str(error.value))
  data = dataclasses.replace(data, accept=accept)
  loop.train(experiment_on(data), tmp_path / "run")


def record(folder, names):
  found = contents.Contents(
    fingerprint="0",
    identity={},
    description="",
    num_images=1,
    classes=tuple(map(contents.ClassPart, names)),
  )
  contents.write(folder / "data.json", found)


def test_class_names_of_a_work_directory(tmp_path):
  assert workdirs.class_names(tmp_path) == ()
  record(tmp_path, ["2", "10"])
  names = workdirs.class_names(tmp_path)
  assert names == ("2", "10")
  backbone = dataclasses.replace(
    small.MODEL.backbone, condition=ClassesConfig(3)
  )
  model = dataclasses.replace(small.MODEL, backbone=backbone)
  data = dataclasses.replace(small.EXPERIMENT.data, num_classes=3)
  experiment = dataclasses.replace(small.EXPERIMENT, model=model, data=data)
  card = workdirs.card_of(experiment, 1, names)
  assert card.class_names == ("2", "10", "")
  with pytest.raises(ValueError, match="'2' means class 2, but is also the na"):
    marjax.backbone.classes.resolve(["2"], card.class_names, 3)
  # Names that are the numbers themselves, as the digits', are none.
  record(tmp_path, map(str, range(10)))
  names = workdirs.class_names(tmp_path)
  assert workdirs.card_of(small.EXPERIMENT, 1, names).class_names == ()
  (tmp_path / "data.json").write_text(json.dumps({"classes": [3]}))
  with pytest.raises(ValueError, match="has no list of classes; restore it"):
    workdirs.class_names(tmp_path)


def test_the_record_is_json_with_a_hash(run):
  found = contents.read(run / "data.json")
  mapping = json.loads((run / "data.json").read_text())
  assert len(mapping.pop(HASH)) == 64
  assert mapping == json.loads(json.dumps(to_dict(found)))
