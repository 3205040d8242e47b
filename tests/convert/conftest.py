"""Commands, and weight files in the published layout."""

from pathlib import Path

import pytest
from convert.weights_server import serving


@pytest.fixture(autouse=True)
def direct(monkeypatch):
  """No proxy stands before this machine."""
  monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
  with serving() as made:
    yield made


@pytest.fixture
def path(tmp_path):
  return tmp_path / "folder" / "file.pth"


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


@pytest.fixture
def save(torch, tmp_path):
  """Writes a PyTorch file; returns its path."""

  def write(content, is_zip=True, name="file.pth"):
    path = tmp_path / name
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path

  return write


@pytest.fixture(scope="module")
def save_sets(tmp_path_factory):
  """Writes state dicts as a PyTorch file; returns its path."""
  torch = pytest.importorskip("torch")

  def do(name: str, **sets) -> Path:
    path = tmp_path_factory.mktemp("source") / name
    tensors = {
      key: {n: torch.from_numpy(array) for n, array in arrays.items()}
      for key, arrays in sets.items()
    }
    torch.save(tensors, path)
    return path

  return do


@pytest.fixture(scope="module")
def model_file(save_sets, golden):
  return save_sets(
    "tiny.pth",
    model=golden("weights_model.npz"),
    model_ema=golden("weights_ema.npz"),
  )


@pytest.fixture(scope="module")
def codec_file(save_sets, golden):
  return save_sets("kl16.ckpt", model=golden("vae_small_weights.npz"))
