"""Loading and generating through the public API, and what it refuses."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import marjax
from marjax.generate.draws import Draws
from marjax.head.noise import RecordedNoise
from marjax.outputs import write
from marjax.release.workdir import card_of
from marjax.requests.trajectory import Trajectory
from marjax.schema import to_dict
from marjax.train.checkpoint import Checkpointer
from marjax.train.state import TrainState

SETTINGS = marjax.Settings(
  num_ar_steps=3,
  num_buckets=1,
  head=marjax.ReverseSettings(num_steps=4, start=900),
)


@pytest.fixture(scope="module")
def pipe():
  return small.pipe()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """What a training run leaves: configuration and a checkpoint."""
  folder = tmp_path_factory.mktemp("run")
  config = json.dumps(to_dict(small.EXPERIMENT)).encode()
  write(folder / "config.json", config)
  params = small.params()
  state = TrainState(
    step=jnp.asarray(7),
    params=jax.tree.map(jnp.zeros_like, params),
    ema_params=params,
    opt_state={"count": jnp.asarray(7)},
  )
  with Checkpointer(folder) as checkpoints:
    checkpoints.save(7, state, {"step": 7})
  return folder


def test_a_work_directory_loads_with_its_averaged_parameters(workdir, pipe):
  loaded = marjax.load(str(workdir), small.one_device())
  assert loaded.card == card_of(small.EXPERIMENT, step=7)
  ours = loaded.generate([0, 1, 2], seed=3, settings=SETTINGS)
  assert ours.dtype == np.uint8
  assert ours.shape == (3, 8, 8, 1)
  theirs = pipe.generate([0, 1, 2], seed=3, settings=SETTINGS)
  np.testing.assert_array_equal(ours, theirs)


def test_batches_are_split_and_padded(pipe):
  whole = pipe.generate([0, 1, 2], settings=SETTINGS)
  split = pipe.generate([0, 1, 2], settings=SETTINGS, batch_size=2)
  # A pixel may round the other way: the arithmetic differs by 1e-6.
  assert np.abs(whole.astype(int) - split).max() <= 1


def test_seeds_and_settings_matter(pipe):
  first = pipe.generate([0], seed=0, settings=SETTINGS)
  assert (first != pipe.generate([0], seed=1, settings=SETTINGS)).any()
  cold = dataclasses.replace(SETTINGS, temperature=0.1)
  assert (first != pipe.generate([0], settings=cold)).any()


def test_a_run_can_be_replayed_from_recorded_draws(pipe):
  draws = pipe.draws(seed=5, num_images=2)
  steps = SETTINGS.head.num_steps
  recorded = RecordedNoise(
    draws.noise.initial((4,)),
    jnp.moveaxis(
      draws.noise.at_steps(jnp.arange(steps - 1, -1, -1), (4,)), 0, -2
    ),
  )
  replayed = pipe.generate(
    [3, 4], settings=SETTINGS, draws=Draws(draws.order, recorded)
  )
  original = pipe.generate([3, 4], seed=5, settings=SETTINGS)
  assert np.abs(replayed.astype(int) - original).max() <= 1


def test_a_trajectory_ends_in_the_images(pipe):
  trajectory = pipe.reveal([0, 1], settings=SETTINGS)
  assert isinstance(trajectory, Trajectory)
  np.testing.assert_array_equal(trajectory.frames[-1], trajectory.images)
  assert trajectory.is_known[-1].all()
  shares = trajectory.is_known.mean((1, 2, 3)) * 16
  np.testing.assert_allclose(shares, trajectory.num_known)


def test_images_without_a_class(pipe):
  images = pipe.generate(None, num_images=2, settings=SETTINGS)
  labelled = pipe.generate([-1, -1], settings=SETTINGS)
  np.testing.assert_array_equal(images, labelled)


def test_tokens_of_images(pipe):
  tokens = pipe.tokenise(small.images(2)["image"])
  assert tokens.shape == (2, 16, 4)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"labels": [10]}, r"labels \[10\] are not all classes .* 0 \.\. 9"),
    ({"labels": [-2]}, r"labels \[-2\] are not all classes"),
    ({"labels": [0.5]}, "not all classes"),
    ({"labels": []}, "a list with one class"),
    ({"labels": [[0, 1]]}, "a list with one class"),
    ({"labels": [0, 1], "num_images": 3}, "num_images is 3"),
    ({"labels": None}, "give num_images"),
    ({"labels": [0], "seed": -1}, "seed is -1; expected an integer"),
    ({"labels": [0], "batch_size": 0}, "batch_size is 0; expected 1 or more"),
    (
      {"labels": [0], "settings": marjax.Settings(num_ar_steps=17)},
      "num_ar_steps is 17; expected 1 to 16",
    ),
    (
      {"labels": [0], "temperature": 0.9, "head": {"sampler": "ddim"}},
      "temperature is 0.9; expected 1, .* adds no noise",
    ),
  ],
)
def test_bad_requests_are_one_sentence(pipe, arguments, message):
  with pytest.raises(ValueError, match=message):
    pipe.generate(**arguments)


def test_floats_go_in_and_out_of_the_codec(pipe):
  images = np.linspace(-0.9, 0.9, 128, dtype=np.float32).reshape(2, 8, 8, 1)
  latents = pipe.encode(images)
  floats = pipe.decode(latents, as_float=True)
  assert floats.dtype == np.float32
  np.testing.assert_allclose(floats, images, atol=1e-6)
  rounded = np.round((floats + 1) * 127.5)
  np.testing.assert_array_equal(pipe.decode(latents), rounded)
  with pytest.raises(ValueError, match="as_float is 1; expected True or False"):
    pipe.decode(latents, as_float=1)


def test_draws_of_another_count_are_refused(pipe):
  with pytest.raises(ValueError, match="recorded for 2 images; expected 3"):
    pipe.generate([0, 1, 2], draws=pipe.draws(0, 2))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("guidance_scale", float("nan")),
    ("guidance_scale", -1.0),
    ("temperature", float("inf")),
    ("temperature", -0.5),
    ("num_ar_steps", 0),
  ],
)
def test_bad_settings_name_the_field(field, value):
  with pytest.raises(ValueError, match=f"{field} is .*; expected"):
    marjax.Settings(**{field: value})


def test_a_missing_checkpoint_is_one_sentence(tmp_path, workdir):
  with pytest.raises(FileNotFoundError, match="is an empty folder; expected"):
    marjax.load(tmp_path)
  shutil.copy(workdir / "config.json", tmp_path)
  with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
    marjax.load(tmp_path)
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  with pytest.raises(ValueError, match=r"files\.json is missing or unreadable"):
    marjax.load(tmp_path)


def test_a_truncated_checkpoint_is_one_sentence(tmp_path, workdir):
  folder = tmp_path / "copy"
  shutil.copytree(workdir, folder)
  largest = max(
    (folder / "checkpoints" / "7" / "state").rglob("*"),
    key=lambda path: path.stat().st_size if path.is_file() else 0,
  )
  largest.write_bytes(largest.read_bytes()[:-10])
  with pytest.raises(
    ValueError, match=r"is damaged: .* bytes long; files.json says"
  ):
    marjax.load(folder)


def test_a_broken_configuration_is_one_sentence(tmp_path, workdir):
  folder = tmp_path / "copy"
  shutil.copytree(workdir, folder)
  (folder / "config.json").write_text('{"name": "x", "nmae": 1}')
  with pytest.raises(ValueError, match="nmae is not a known key; did you mean"):
    marjax.load(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(ValueError, match="cannot be read as a configuration"):
    marjax.load(folder)


@pytest.mark.parametrize(
  ("part", "change", "message"),
  [
    ("codec", {"patch": 3}, "image_size is 8; expected a multiple of"),
    ("codec", {"patch": 4}, "makes 4 tokens that are floats of shape .16,."),
    ("data", {"channels": 3}, "data has 8 pixels and 3 channels"),
    ("data", {"num_classes": 5}, "num_classes is 10; expected 0 or"),
    ("training", {"batch_size": 15}, "expected a multiple of"),
    ("training", {"total_epochs": 2.0}, "give exactly one"),
  ],
)
def test_an_experiment_that_does_not_fit_is_refused(part, change, message):
  def make():
    changed = dataclasses.replace(getattr(small.EXPERIMENT, part), **change)
    dataclasses.replace(small.EXPERIMENT, **{part: changed})

  with pytest.raises(ValueError, match=message):
    make()
