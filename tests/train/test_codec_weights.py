"""A run whose codec has weights and no cache, from the first step to export.

The codec is one of float tokens, pixels divided by a learned number for each
place in a patch, so that any head will do.
"""

import dataclasses
import shutil
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.shared import assert_same, tiny

import marjax
from marjax import schema
from marjax.latents.patched import Patched
from marjax.model import register
from marjax.parallel.mesh import host_mesh, mesh_for
from marjax.preflight import programs
from marjax.protocols import Codec
from marjax.release import directory, loading
from marjax.release.card import Card
from marjax.train import loop

pytestmark = pytest.mark.usefixtures("shared_programs")


@schema.config
class ScaledConfig(Patched):
  """Pixels over {"scale": [image_size, image_size, 1]}."""

  image_size: int
  channels: Literal[1] = 1
  patch: int = 2
  kind: Literal["scaled"] = "scaled"
  is_cached: ClassVar[bool] = False
  stride: ClassVar[int] = 1

  @property
  def latent_shape(self):
    return (self.image_size, self.image_size, 1)

  def init_params(self, key):
    return {"scale": 1 + jax.random.uniform(key, self.latent_shape)}

  def encode(self, params, images):
    return images / params["scale"]

  def decode(self, params, latents):
    return latents * params["scale"]

  def record(self, params, images):
    return {"image": images}

  def record_shapes(self):
    return {"image": jax.ShapeDtypeStruct(self.latent_shape, jnp.float32)}

  def draw(self, params, record, keys: Any):
    return self.encode(params, record["image"])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  kinds = {protocol: {**known} for protocol, known in schema._KINDS.items()}
  monkeypatch.setattr(schema, "_KINDS", kinds)
  register(Codec, ScaledConfig)


def saved(folder, seed=0):
  codec = ScaledConfig(4)
  params = jax.device_get(codec.init_params(jax.random.key(seed)))
  directory.save(folder, Card(name="scaled", codec=codec), params)
  return folder


def experiment_of(folder, **training):
  made = tiny(num_steps=4, checkpoint_every=2, **training)
  data = dataclasses.replace(made.data, autoencoder=str(folder))
  return dataclasses.replace(made, codec=ScaledConfig(4), data=data)


@pytest.mark.slow
def test_a_run_from_the_first_step_to_export(tmp_path):
  folder, workdir = saved(tmp_path / "codec"), tmp_path / "run"
  experiment = experiment_of(folder, sample_every=4)
  whole = loop.train(experiment, workdir)
  assert (workdir / "samples" / "step_00000004.png").exists()
  # Half of it, then the rest with the copy alone.
  half = dataclasses.replace(
    experiment, training=dataclasses.replace(experiment.training, num_steps=2)
  )
  again = tmp_path / "again"
  loop.train(half, again)
  shutil.rmtree(folder)
  resumed = loop.train(experiment, again)
  assert_same(resumed.ema_params, whole.ema_params)
  pipe = marjax.load(workdir, host_mesh())
  images = pipe.generate([0, 1])
  assert images.shape == (2, 4, 4, 1)
  loading.export(workdir, tmp_path / "exported")
  shutil.rmtree(workdir)
  exported = marjax.load(tmp_path / "exported", host_mesh())
  assert exported.card.autoencoder == "autoencoder"
  np.testing.assert_array_equal(exported.generate([0, 1]), images)


@pytest.mark.slow
def test_the_weights_decide_what_is_learned(tmp_path):
  one, other = (
    loop.train(
      experiment_of(saved(tmp_path / f"codec{seed}", seed)),
      tmp_path / f"run{seed}",
    )
    for seed in (0, 1)
  )
  leaves = zip(
    jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True
  )
  assert any(not np.array_equal(a, b) for a, b in leaves)
  # Going on with others is refused, and nothing is written.
  mixed = experiment_of(tmp_path / "codec1")
  mixed = dataclasses.replace(
    mixed, data=dataclasses.replace(mixed.data, autoencoder="")
  )
  with pytest.raises(ValueError, match=r"data\.autoencoder is"):
    loop.train(mixed, tmp_path / "run0")
  shutil.rmtree(tmp_path / "codec0")
  shutil.copytree(tmp_path / "codec1", tmp_path / "codec0")
  with pytest.raises(ValueError, match="was trained on latents of the autoen"):
    loop.train(experiment_of(tmp_path / "codec0"), tmp_path / "run0")


def test_the_step_is_lowered_without_the_weights(tmp_path):
  experiment = experiment_of(tmp_path / "not there")
  mesh = mesh_for(experiment)
  (program,) = programs.train_programs(experiment, mesh)
  assert program.name == "step"


def test_nothing_to_take_weights_from_is_told_before_training(tmp_path):
  workdir = tmp_path / "run"
  with pytest.raises(ValueError, match=r"data\.autoencoder names none"):
    loop.train(experiment_of(""), workdir)
  assert not (workdir / "checkpoints").exists() or not any(
    (workdir / "checkpoints").iterdir()
  )
