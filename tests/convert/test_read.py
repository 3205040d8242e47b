"""Weight files: told by their bytes, found by their layout, read lazily."""

import argparse
import collections
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from marjax.convert.read import read, sha256

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3) / 7


def write_over(path, array):
  """Puts nines in the array's place inside a file."""
  start = path.read_bytes().index(array.tobytes())
  with path.open("r+b") as file:
    file.seek(start)
    file.write(np.full_like(array, 9).tobytes())


@pytest.fixture
def published(torch):
  """The contents of a file in the published layout."""
  ema = {"a.weight": torch.tensor(WEIGHTS), "a.bias": torch.ones(2)}
  raw = {name: -tensor for name, tensor in ema.items()}
  return {"model": raw, "model_ema": ema}


# PyTorch files.


@pytest.mark.parametrize("is_zip", [True, False])
def test_published_weights_are_read_as_they_were_saved(save, published, is_zip):
  file = read(save(published, is_zip))
  assert (file.weights, file.metadata) == ("ema", {})
  assert [*file.arrays] == ["a.weight", "a.bias"]
  assert file.arrays["a.weight"].shape == (2, 3)
  loaded = file.arrays["a.weight"].load()
  assert loaded.dtype == np.float32
  np.testing.assert_array_equal(loaded, WEIGHTS)


def test_the_raw_weights_are_read_when_asked_for(save, published):
  path = save(published)
  raw, ema = read(path, "raw"), read(path, "ema")
  assert (raw.weights, ema.weights) == ("raw", "ema")
  np.testing.assert_array_equal(raw.arrays["a.weight"].load(), -WEIGHTS)
  np.testing.assert_array_equal(ema.arrays["a.weight"].load(), WEIGHTS)


@pytest.mark.parametrize("is_zip", [True, False])
def test_training_files_are_read(save, published, torch, is_zip):
  parameter = torch.nn.Parameter(torch.zeros(2))
  optimizer = torch.optim.AdamW([parameter])
  parameter.sum().backward()
  optimizer.step()
  content = published | {
    "optimizer": optimizer.state_dict(),
    "epoch": 3,
    "scaler": {"scale": 65536.0, "growth_tracker": 7},
    "args": argparse.Namespace(lr=1e-4, model="mar_base", betas=(0.9, 0.95)),
  }
  file = read(save(content, is_zip))
  np.testing.assert_array_equal(file.arrays["a.weight"].load(), WEIGHTS)


@pytest.mark.parametrize(
  "layout",
  [
    lambda weights: {"model": weights},
    lambda weights: {"model": weights, "epoch": 3},
    lambda weights: {"model": weights, "model_ema": None},
    lambda weights: {"state_dict": weights, "global_step": 3},
    lambda weights: {"state_dict": collections.OrderedDict(weights)},
    lambda weights: weights,
  ],
)
def test_single_sets_are_found(save, published, layout):
  path = save(layout(published["model_ema"]))
  file = read(path)
  assert file.weights == "only"
  assert [*file.arrays] == ["a.weight", "a.bias"]
  for asked in ("ema", "raw"):
    with pytest.raises(ValueError, match=f"has no '{asked}' weights"):
      read(path, asked)


def test_averaged_weights_may_stand_alone(save, published):
  del published["model"]
  path = save(published)
  assert read(path).weights == "ema"
  with pytest.raises(ValueError, match="has no 'raw' weights"):
    read(path, "raw")


def test_every_real_number_becomes_float32(save, torch):
  values = [1.5, -2.0, 3.0]
  content = {
    str(kind): torch.tensor(values, dtype=kind)
    for kind in (torch.float16, torch.bfloat16, torch.float64, torch.int64)
  }
  content["bool"] = torch.tensor([True, True, False])
  content["scalar"] = torch.tensor(5)
  content["turned"] = torch.tensor([values, values]).T
  content["part"] = torch.tensor(values)[1:]
  content["parameter"] = torch.nn.Parameter(torch.tensor(values))
  arrays = read(save(content)).arrays
  for name, array in arrays.items():
    loaded = array.load()
    assert loaded.dtype == np.float32
    assert loaded.flags.c_contiguous
    assert loaded.shape == array.shape
    np.testing.assert_array_equal(loaded, content[name].detach().float())


def test_torch_arrays_stay_on_disk_until_loaded(save, published):
  path = save({"model": published["model_ema"]})
  arrays = read(path).arrays
  write_over(path, WEIGHTS)
  assert (arrays["a.weight"].load() == 9).all()


def test_loaded_arrays_are_the_callers(save, torch):
  path = save({"a": torch.zeros(4)})
  array = read(path).arrays["a"]
  loaded = array.load()
  loaded += 1
  assert not array.load().any()
  assert not read(path).arrays["a"].load().any()


@pytest.mark.parametrize("name", ["file.safetensors", "file.txt", "file"])
def test_the_name_of_a_file_does_not_matter(save, published, name):
  path = save(published, name=name)
  loaded = read(path).arrays["a.weight"].load()
  np.testing.assert_array_equal(loaded, WEIGHTS)


# safetensors files; torch is not needed.


@pytest.fixture
def tensors(tmp_path):
  """A safetensors file of several types."""
  path = tmp_path / "file.bin"
  content = {
    "a.weight": WEIGHTS,
    "half": np.float16([1.5, -2]),
    "brain": np.array([1.5, -2], jnp.bfloat16),
    "double": np.float64([1.5, -2]),
    "scalar": np.array(3.0),
    "count": np.array([7]),
    "none": np.zeros((0, 3), np.float32),
  }
  save_file(content, path, metadata={"format": "pt", "license": "MIT"})
  return path, content


def test_safetensors_are_read_as_they_were_saved(tensors):
  path, content = tensors
  file = read(path)
  assert file.weights == "only"
  assert file.metadata == {"format": "pt", "license": "MIT"}
  assert {*file.arrays} == {*content}
  for name, array in file.arrays.items():
    assert array.shape == content[name].shape
    loaded = array.load()
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, content[name].astype(np.float32))


def test_safetensors_have_one_set_of_weights(tensors):
  with pytest.raises(ValueError, match="has no 'ema' weights"):
    read(tensors[0], "ema")


def test_safetensors_stay_on_disk_until_loaded(tmp_path):
  path = tmp_path / "file.safetensors"
  save_file({"a": WEIGHTS, "b": WEIGHTS[0]}, path)
  arrays = read(path).arrays
  write_over(path, WEIGHTS)
  assert (arrays["a"].load() == 9).all()


def test_the_digest_is_the_files(tmp_path):
  content = bytes(range(256)) * 100
  path = tmp_path / "file"
  path.write_bytes(content)
  assert sha256(path) == hashlib.sha256(content).hexdigest()
