"""A head of one's own, in a file outside the package, works everywhere.

It is the head that docs/architecture.md adds: a Gaussian whose mean is a linear
layer of z. A config file registers it, so training knows it; `--parts` names
the file to commands that read a checkpoint.
"""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import marjax
from marjax.cli import main

PARTS = """
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from marjax import keys, model, protocols, schema


@schema.config
class BellSettings:
  num_steps: Literal[1] = 1
  final_num_steps: None = None
  kind: Literal["bell"] = "bell"
  has_temperature: ClassVar[bool] = True
  PRESETS: ClassVar[dict[str, Any]] = {}

  def walk(self):
    return ()


@schema.config
class BellConfig:
  token_dim: schema.Size
  std: float = 0.5
  dtype: Literal["float32", "bfloat16"] = "float32"
  num_codes: ClassVar[int] = 0
  kind: Literal["bell"] = "bell"
  Settings: ClassVar[type] = BellSettings

  @property
  def token_shape(self):
    return (self.token_dim,)

  noise_shape = token_shape

  def build(self):
    return Bell(self)

  def row_cost(self, settings, z_width):
    return 1.0 * z_width * self.token_dim

  def is_float32(self, path):
    return True


class Bell(nn.Module):
  config: BellConfig

  def setup(self):
    self.mean = nn.Dense(self.config.token_dim)

  def loss(self, z, target, weights=None, *, key=None, draws=None):
    error = jnp.mean(jnp.square(self.mean(z) - target), axis=-1)
    weights = jnp.ones_like(error) if weights is None else weights
    return {"loss": jnp.sum(weights * error) / jnp.sum(weights)}

  def sample(
    self, z, settings=None, *, key=None, noise=None, temperature=1.0,
    guidance=None,
  ):
    mean = self.mean(z)
    if guidance is not None:
      other = self.mean(guidance[0])
      mean = other + guidance[1] * (mean - other)
    spread = self.config.std * temperature
    return mean + spread * noise.initial(self.config.noise_shape)


model.register(protocols.HeadConfig, BellConfig)
"""

CONFIG = """
import bell
import tiny


def get_config(variant=""):
  config = tiny.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.name = "bell"
    config.model.head = {"kind": "bell", "token_dim": 4}
    config.sampling = {"num_ar_steps": 2, "head": {"kind": "bell"}}
    config.training.num_steps = 4
  return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bell")
  tiny = pathlib.Path(__file__).parents[1] / "train" / "tiny.py"
  (folder / "tiny.py").write_text(tiny.read_text())
  (folder / "bell.py").write_text(PARTS)
  (folder / "config.py").write_text(CONFIG)
  return folder


@pytest.fixture(scope="module")
def run(folder):
  """A run of a few steps, trained by the command."""
  out = folder / "run"
  asked = ["--config", str(folder / "config.py"), "--workdir", str(out)]
  assert main.main(["train", *asked]) == 0
  return out


def test_it_trains_and_resumes(run, folder):
  lines = (run / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [2, 4]
  asked = ["--config", str(folder / "config.py"), "--workdir", str(run)]
  assert main.main(["train", *asked, "--config.training.num_steps=6"]) == 0


def test_it_loads_generates_and_is_guided(run):
  pipe = marjax.load(run)
  plain = pipe.latents([0, 1])
  assert plain.shape == (2, 4, 4, 1)
  np.testing.assert_array_equal(plain, pipe.latents([0, 1]))
  cold = pipe.latents([0, 1], settings={"temperature": 0.0})
  other = pipe.latents([0, 1], seed=1, settings={"temperature": 0.0})
  assert np.abs(plain - cold).max() > 0.1
  assert other.shape == cold.shape
  assert (
    pipe.generate([0, 1], settings={"guidance_scale": 3.0}).dtype == np.uint8
  )
  leaves = jax.tree.leaves(pipe.params["head"])
  assert sum(leaf.size for leaf in leaves) == 8 * 4 + 4


def test_the_command_generates_in_a_process_of_its_own(run, folder, tmp_path):
  out = tmp_path / "a.npy"
  command = [sys.executable, "-m", "marjax", "generate"]
  asked = ["--checkpoint", str(run), "--labels", "0,1", "--out", str(out)]
  alone = subprocess.run([*command, *asked], capture_output=True, text=True)
  assert alone.returncode == 2
  line = alone.stderr.strip().splitlines()[-1]
  assert "kind is 'bell'; expected one of" in line
  assert "--parts" in line
  parts = ["--parts", str(folder / "bell.py")]
  told = subprocess.run(
    [*command, *asked, *parts], capture_output=True, text=True
  )
  assert told.returncode == 0, told.stderr
  assert np.load(out).shape == (2, 4, 4, 1)


def test_parts_that_are_no_file_or_fail_are_one_sentence(run, tmp_path, capsys):
  broken = tmp_path / "broken.py"
  broken.write_text("1 / 0")
  for name, words in (("nothing.py", "no such file"), ("broken.py", "fails")):
    asked = ["--checkpoint", str(run), "--labels", "0", "--out", "a.npy"]
    parts = ["--parts", str(tmp_path / name)]
    assert main.main(["generate", *asked, *parts]) == 2
    assert words in capsys.readouterr().err
