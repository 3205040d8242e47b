"""A run on cached latents: trained, sampled, loaded, and held to its cache."""

import dataclasses
import shutil

import numpy as np
import pytest
import small

import marjax
from marjax.backbone.conditions import ClassesConfig
from marjax.data.latent_cache import CachedLatents
from marjax.train import loop


@pytest.fixture
def experiment(write_cache, latents_config, tmp_path):
  """Two steps of the small model on the cache of 23 images."""
  write_cache(tmp_path / "cache")
  backbone = dataclasses.replace(
    small.MODEL.backbone, condition=ClassesConfig(7)
  )
  return dataclasses.replace(
    small.EXPERIMENT,
    codec=small.CODEC,
    model=dataclasses.replace(small.MODEL, backbone=backbone),
    data=latents_config(tmp_path / "cache", flip=True),
    training=dataclasses.replace(
      small.EXPERIMENT.training, num_steps=2, checkpoint_every=1, sample_every=2
    ),
  )


@pytest.mark.slow
def test_training_on_cached_latents(experiment, tmp_path):
  workdir = tmp_path / "run"
  loop.train(experiment, workdir)
  assert (workdir / "samples" / "step_00000002.png").exists()
  cache = tmp_path / "cache"
  shutil.rmtree(cache)
  pipe = marjax.load(workdir)
  assert pipe.generate([0, 6], seed=0).shape == (2, 8, 8, 3)
  latents = pipe.latents([0, 6], seed=0)
  np.testing.assert_array_equal(pipe.decode(latents), pipe.generate([0, 6]))


@pytest.mark.slow
def test_going_on_with_another_autoencoder_is_refused(
  experiment, tmp_path, monkeypatch
):
  longer = dataclasses.replace(experiment.training, num_steps=3)
  workdir = tmp_path / "run"
  loop.train(dataclasses.replace(experiment, training=longer), workdir)
  opened = CachedLatents.__init__

  def other(self, config):
    opened(self, config)
    self.digest = "0" * 64

  monkeypatch.setattr(CachedLatents, "__init__", other)
  with pytest.raises(ValueError, match="the cache was made by 000000000000"):
    loop.train(dataclasses.replace(experiment, training=longer), workdir)
