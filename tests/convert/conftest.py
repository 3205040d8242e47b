"""Commands, and weight files in the published layout."""

from pathlib import Path

import pytest

from marjax.cli import main


@pytest.fixture
def command(capsys):
  """Runs `marjax ...`: its exit code, then what it printed."""

  def do(*argv) -> tuple[int, str, str]:
    code = main.main([str(word) for word in argv])
    return code, *capsys.readouterr()

  return do


@pytest.fixture
def fails(command):
  """Runs a command that must fail with one line; returns it."""

  def do(*argv) -> str:
    code, _, shown = command(*argv)
    line = shown.replace("\r", "\n").splitlines()[-1]
    assert code == 2
    assert line.startswith("marjax: ")
    return line

  return do


@pytest.fixture(scope="module")
def save(tmp_path_factory):
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
def model_file(save, golden):
  return save(
    "tiny.pth",
    model=golden("weights_model.npz"),
    model_ema=golden("weights_ema.npz"),
  )


@pytest.fixture(scope="module")
def codec_file(save, golden):
  return save("kl16.ckpt", model=golden("vae_small_weights.npz"))
