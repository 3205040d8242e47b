"""A flipped bit in a weight file is told, or changes nothing."""

import shutil
import zipfile

import flips
import numpy as np
import pytest
from safetensors.numpy import save_file

from marjax.convert import run
from marjax.convert.read import read
from marjax.parallel.mesh import host_mesh
from marjax.release import loading
from marjax.release.digest import digest

HEADS = run.Choices(num_heads=4)


@pytest.fixture
def file(model_file, tmp_path):
  return shutil.copy(model_file, tmp_path / "file.pth")


def test_a_flipped_bit_in_a_torch_file_is_told(file, tmp_path):
  def converted():
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    report = run.convert(file, out, HEADS)
    params = loading.load(out, host_mesh()).params
    return report.card.model, report.card.codec, digest(params)

  seen = flips.outcomes([file], converted)
  assert set(seen) <= {"told", "same"}, seen
  assert seen["told"] >= 20


def packed_again(file, path, method):
  with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w", method) as new:
    for name in old.namelist():
      new.writestr(name, old.read(name))
  return path


def test_a_file_that_was_packed_again(file, tmp_path):
  path = packed_again(file, tmp_path / "a.pth", zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match="packed again, with compression; expec"):
    read(path)
  path = packed_again(file, tmp_path / "b.pth", zipfile.ZIP_STORED)
  for name, array in read(path).arrays.items():
    np.testing.assert_array_equal(array.load(), read(file).arrays[name].load())


def test_a_zip_with_two_files_of_one_name(file):
  with zipfile.ZipFile(file, "a") as archive:
    name = archive.namelist()[-1]
    with pytest.warns(UserWarning, match="Duplicate name"):
      archive.writestr(name, b"other")
  with pytest.raises(ValueError, match=r"two files of one name"):
    read(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_is_refused_by_its_name(value, golden, tmp_path):
  arrays = {
    n: a.astype(np.float64) for n, a in golden("weights_model.npz").items()
  }
  arrays["decoder_norm.bias"][3] = value
  save_file(arrays, tmp_path / "a.safetensors")
  with pytest.raises(ValueError, match=r"infinity in decoder_norm\.bias; exp"):
    run.convert(tmp_path / "a.safetensors", tmp_path / "out", HEADS)
  assert not (tmp_path / "out").exists()


def test_what_has_no_checksums_is_said(model_file, golden, tmp_path, torch):
  arrays = golden("weights_model.npz")
  save_file(arrays, tmp_path / "a.safetensors")
  tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
  old = tmp_path / "old.pth"
  torch.save(tensors, old, _use_new_zipfile_serialization=False)
  for source in (tmp_path / "a.safetensors", old):
    report = run.convert(source, tmp_path / source.stem, HEADS)
    assert run.UNCHECKED in str(report)
  report = run.convert(model_file, tmp_path / "zip", HEADS)
  assert run.UNCHECKED not in str(report)
