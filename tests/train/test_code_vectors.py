"""A codec's code vectors as a model's input: put in place, never trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax.backbone.embeddings import CODE_VECTORS
from marjax.experiment import Experiment
from marjax.head.categorical import CategoricalHeadConfig, CategoricalSettings
from marjax.latents.codebook import CodebookConfig
from marjax.model import ModelConfig
from marjax.schema import from_dict, to_dict
from marjax.train.step import make_train_program

CODEC = CodebookConfig(8, channels=1, patch=2, num_codes=12)


def experiment(code_dim=4) -> Experiment:
  backbone = dataclasses.replace(
    small.MODEL.backbone, num_codes=12, code_dim=code_dim
  )
  return dataclasses.replace(
    small.EXPERIMENT,
    codec=CODEC,
    model=ModelConfig(backbone, CategoricalHeadConfig(num_codes=12)),
    sampling=dataclasses.replace(
      small.EXPERIMENT.sampling, head=CategoricalSettings()
    ),
  )


def test_they_are_those_of_the_codec_and_stay_so():
  codes = {"codes": np.random.default_rng(0).normal(size=(12, 4))}
  codes = jax.tree.map(np.float32, codes)
  mesh = small.one_device()
  program = make_train_program(experiment(), mesh, 64, codes)
  state = program.init()
  before = jax.tree.map(np.asarray, state.params["backbone"]["embed_token"])
  np.testing.assert_array_equal(before[CODE_VECTORS], codes["codes"])
  for _ in range(2):
    state, metrics = program.step(state, small.images(16))
  after = state.params["backbone"]["embed_token"]
  np.testing.assert_array_equal(after[CODE_VECTORS], codes["codes"])
  kernels = (after["linear"]["kernel"], before["linear"]["kernel"])
  assert np.abs(np.subtract(*kernels)).max() > 1e-5
  assert jnp.isfinite(metrics["loss"])


def test_other_sizes_are_refused():
  with pytest.raises(ValueError, match="4 numbers of the codec's code vectors"):
    experiment(code_dim=3)
  with pytest.raises(ValueError, match="where tokens are floats"):
    dataclasses.replace(small.MODEL.backbone, code_dim=4)


def test_the_config_holds_it():
  once = to_dict(experiment())
  assert once["model"]["backbone"]["code_dim"] == 4
  assert from_dict(Experiment, once) == experiment()
