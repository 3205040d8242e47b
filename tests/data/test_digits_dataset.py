"""The digits are scikit-learn's, split for good, and prepared whole or not."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from marjax.data import batches, digits, sources


@pytest.fixture
def splits(make_config):
  return [batches.load_all(make_config(), name) for name in ("train", "test")]


def test_every_image_comes_back_as_scikit_learn_has_it(splits):
  real = load_digits()
  for images, labels, ids in splits:
    assert (images.min(), images.max()) == (0, 255)
    levels = np.rint(images[..., 0] * (16 / 255))
    np.testing.assert_array_equal(levels, real.images[ids])
    np.testing.assert_array_equal(labels, real.target[ids])


def test_splits_are_disjoint_complete_and_stratified(splits):
  train, test = splits
  assert (len(train.ids), len(test.ids)) == (1347, 450)
  both = np.concatenate([train.ids, test.ids])
  np.testing.assert_array_equal(np.sort(both), np.arange(1797))
  counts = np.bincount(load_digits().target)
  share = np.bincount(test.labels) - counts * 450 / 1797
  assert np.abs(share).max() < 1


def test_the_split_stays_the_same_forever(splits):
  ids = splits[1].ids
  assert ids[:6].tolist() == [0, 6, 8, 13, 16, 18]
  assert zlib.crc32(ids.astype("<i8").tobytes()) == 3409653656


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
  code = (
    "import sys, pathlib; from marjax.data import digits;"
    "print(digits.prepare(pathlib.Path(sys.argv[1])))"
  )
  command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
  root = Path(__file__).parents[2]
  both = [
    subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  written = [process.communicate()[0].strip() for process in both]
  assert [process.returncode for process in both] == [0, 0]
  assert written == [str(tmp_path / "digits" / "1.0.0")] * 2
  assert len(sources.TfdsSource(Path(written[0]), "test", 10, "")) == 450
  assert os.listdir(tmp_path) == ["digits"]


def test_the_slower_of_two_keeps_what_the_quicker_wrote(tmp_path, monkeypatch):
  def write(name):
    for folder in (Path(name), tmp_path):  # the other finishes meanwhile
      (folder / "digits" / "1.0.0").mkdir(parents=True)
      (folder / "digits" / "1.0.0" / folder.name).touch()

  monkeypatch.setattr(digits, "_write", write)
  folder = digits.prepare(tmp_path)
  assert os.listdir(folder) == [tmp_path.name]


def test_a_preparation_that_fails_leaves_nothing(tmp_path, monkeypatch):
  def write(name):
    (Path(name) / "digits" / "1.0.0").mkdir(parents=True)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(digits, "_write", write)
    with pytest.raises(KeyboardInterrupt):
      digits.prepare(tmp_path)
  assert list(tmp_path.rglob("1.0.0")) == []


def test_scikit_learn_is_needed_to_prepare_only(
  digits_dir, make_config, tmp_path, monkeypatch
):
  digits.prepare(digits_dir)
  monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
  assert len(sources.open_source(make_config(), "test")) == 450
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'marjax\[demo\]"):
    sources.open_source(make_config(data_dir=str(tmp_path)), "test")


def damage_nothing_there(folder):
  for path in folder.iterdir():
    path.unlink()


def damage_missing_records(folder):
  next(folder.glob("*train.array_record*")).unlink()


def damage_truncated_records(folder):
  os.truncate(next(folder.glob("*train.array_record*")), 70_000)


def damage_flipped_bits(folder):
  path = next(folder.glob("*train.array_record*"))
  content = bytearray(path.read_bytes())
  content[30_000:40_000] = bytes(10_000)
  path.write_bytes(content)


def damage_truncated_info(folder):
  os.truncate(folder / "dataset_info.json", 100)


def damage_missing_features(folder):
  (folder / "features.json").unlink()


@pytest.mark.parametrize(
  "damage",
  [
    damage_nothing_there,
    damage_missing_records,
    damage_truncated_records,
    damage_flipped_bits,
    damage_truncated_info,
    damage_missing_features,
  ],
)
def test_damage_is_one_sentence(damage, tmp_path, make_config):
  folder = digits.prepare(tmp_path)
  damage(folder)
  with pytest.raises(
    ValueError, match=r"1\.0\.0 is damaged \(.+\); expected .+: delete that"
  ) as caught:
    batches.load_all(make_config(data_dir=str(tmp_path)), "train")
  assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written(tmp_path, make_config):
  (tmp_path / "file").touch()
  config = make_config(data_dir=str(tmp_path / "file"))
  with pytest.raises(OSError, match=r"cannot hold the digits .*MARJAX_DATA"):
    sources.open_source(config, "train")


def test_where_datasets_lie(monkeypatch, tmp_path):
  monkeypatch.setenv("MARJAX_DATA", str(tmp_path))
  assert sources.dataset_dir("") == tmp_path
  assert sources.dataset_dir("elsewhere") == Path("elsewhere")
  monkeypatch.delenv("MARJAX_DATA")
  assert sources.dataset_dir("") == Path.home() / ".cache/marjax/datasets"
