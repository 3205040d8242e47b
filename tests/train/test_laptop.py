"""The ImageNet configs, made small: they train, sample and load."""

import dataclasses
import pathlib

import numpy as np
import pytest

import marjax
from marjax.cli import configs
from marjax.train import loop

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NAMES = ("mar_b", "mar_l", "mar_h", "mar_l_default")


def test_made_small_all_are_one_run():
  experiments = {
    dataclasses.replace(configs.load(f"{CONFIGS}/{name}.py:laptop"), name="")
    for name in NAMES
  }
  assert len(experiments) == 1, "then each needs a run of its own below"


@pytest.mark.slow
def test_a_laptop_run_trains_samples_and_loads(tmp_path):
  experiment = configs.load(f"{CONFIGS}/mar_b.py:laptop")
  state = loop.train(experiment, tmp_path)
  assert int(state.step) == experiment.training.num_steps
  assert (tmp_path / "samples" / "step_00000004.png").exists()
  images = marjax.load(tmp_path).generate([0, 3], seed=1)
  assert images.shape == (2, 16, 16, 3)
  assert images.dtype == np.uint8
