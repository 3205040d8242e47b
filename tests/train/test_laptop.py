"""Configs made small: they train, sample and load."""

import dataclasses
import itertools
import pathlib

import jax
import numpy as np
import pytest

import marjax
from marjax.cli import configs
from marjax.parallel.mesh import make_mesh
from marjax.train import codebook, loop
from marjax.train.step import make_train_program

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NAMES = ("mar_b", "mar_l", "mar_h", "mar_l_default")
FIRST = (("digits", "mar"), ("table1", "ar_random_ce"), ("table1", "guided_ce"))
CELLS = ("ar_raster", "ar_random", "mar_one", "mar", "guided")
ALL = (*CELLS, *(f"{cell}_ce" for cell in CELLS))


@pytest.fixture
def laptop(tmp_path):
  """A function: config and cell of table 1, made small, and its codebook."""

  def load(name: str, cell: str):
    address = f"{CONFIGS}/{name}.py:{cell},laptop"
    experiment = configs.load(address)
    if experiment.data.autoencoder:
      codes = tmp_path / "codes"
      few = codebook.Choices(num_iterations=3, num_images=200)
      codebook.fit(experiment.codec, experiment.data, codes, few)
      experiment = configs.load(address, [f"config.data.autoencoder={codes}"])
    return experiment

  return load


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


EVERY = [
  *itertools.product(["digits", "table1"], ALL),
  ("cifar10", "mar"),
  ("cifar10", "guided_ce"),
]


@pytest.mark.parametrize(("name", "cell"), EVERY)
def test_every_cell_made_small_can_be_drawn_from(name, cell):
  experiment = configs.load(f"{CONFIGS}/{name}.py:{cell},laptop")
  assert experiment.sampling.for_model(experiment.model) == experiment.sampling


@pytest.mark.parametrize(
  ("name", "cell"),
  [
    pytest.param(*each, marks=() if each in FIRST else pytest.mark.slow)
    for each in (
      *(("digits", cell) for cell in CELLS),
      *(("table1", f"{cell}_ce") for cell in CELLS),
      ("cifar10", "guided_ce"),
    )
  ],
)
def test_a_cell_made_small_is_a_program(name, cell):
  experiment = configs.load(f"{CONFIGS}/{name}.py:{cell},laptop")
  mesh = make_mesh(devices=jax.devices()[:1])
  codec = experiment.codec
  patch = codec.patch**2 * codec.channels if codec.has_params() else 0
  codes = np.zeros((getattr(codec, "num_codes", 0), patch), np.float32)
  params = {"codes": codes} if codec.has_params() else None
  program = make_train_program(experiment, mesh, 100, params)
  lowered = program.step.lower(program.abstract_state, program.abstract_batch)
  assert "loss" in lowered.out_info[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "cell"),
  [
    ("digits", "ar_raster"),
    ("digits", "ar_random_ce"),
    ("digits", "guided"),
    ("digits", "mar_ce"),
    ("cifar10", "mar"),
    ("table1", "ar_raster_ce"),
    ("table1", "guided_ce"),
  ],
)
def test_a_cell_made_small_trains_samples_and_loads(
  laptop, tmp_path, name, cell
):
  experiment = laptop(name, cell)
  state = loop.train(experiment, tmp_path / "run")
  assert int(state.step) == experiment.training.num_steps
  assert (tmp_path / "run" / "samples" / "step_00000004.png").exists()
  images = marjax.load(tmp_path / "run").generate([0, 3], seed=1)
  side = experiment.codec.image_size
  assert images.shape == (2, side, side, experiment.codec.channels)
  assert images.dtype == np.uint8
