"""Parameters of the tiny published-layout checkpoints, as users get them.

They go the whole way: a .pth file as published, `marjax convert`, the weights
of the release. Where PyTorch is not installed only the table is used.
"""

import importlib.util

import jax
import pytest

from parity.published import params_of


@pytest.fixture(scope="session")
def published_file(golden, tmp_path_factory):
  """A .pth file of raw and averaged weights, in the published layout."""
  torch = pytest.importorskip("torch")
  sets = {"model": "weights_model.npz", "model_ema": "weights_ema.npz"}
  content = {
    key: {n: torch.from_numpy(a) for n, a in golden(file).items()}
    for key, file in sets.items()
  }
  path = tmp_path_factory.mktemp("published") / "checkpoint-last.pth"
  torch.save({**content, "epoch": 3}, path)
  return path


@pytest.fixture(scope="session")
def converted(request, tmp_path_factory):
  """Runs `marjax convert` on that file: "raw" or "ema" → release folder."""
  from marjax.cli import main

  done = {}

  def convert(weights: str):
    if weights not in done:
      source = str(request.getfixturevalue("published_file"))
      out = tmp_path_factory.mktemp("converted") / weights
      flags = ["--weights", weights, "--num_heads", "4"]
      assert main.main(["convert", source, "--out", str(out), *flags]) == 0
      done[weights] = out
    return done[weights]

  return convert


def params(golden, converted, weights: str, file: str):
  if importlib.util.find_spec("torch") is None:
    return params_of(golden(file))
  from marjax.parallel.mesh import host_mesh
  from marjax.release import loading

  loaded = loading.load(converted(weights), host_mesh())
  return jax.device_get(loaded.params)


@pytest.fixture(scope="session")
def model_params(golden, converted):
  return params(golden, converted, "raw", "weights_model.npz")


@pytest.fixture(scope="session")
def ema_params(golden, converted):
  return params(golden, converted, "ema", "weights_ema.npz")
