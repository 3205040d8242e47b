"""The loop's contract, and a run that is stopped and resumed."""

import logging
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.shared import assert_same, at_batch, losses, tiny

from marjax import ticks
from marjax.parallel.mesh import host_mesh
from marjax.release import workdir as workdirs
from marjax.requests import pictures
from marjax.train import loop, samples, writers
from marjax.train.checkpoint import Checkpointer
from marjax.train.writers import Writer

pytestmark = pytest.mark.usefixtures("shared_programs")


class Stop(Exception):
  """Stands in for whatever ends a run."""


def stop(batch):
  raise Stop


@pytest.fixture(scope="module")
def straight(shared_programs, tmp_path_factory):
  """A run of 12 steps that nothing disturbed: its state and its losses."""
  workdir = tmp_path_factory.mktemp("straight")
  return loop.train(tiny(), workdir), losses(workdir)


def test_a_run_leaves_its_last_state_as_a_checkpoint(straight, tmp_path):
  state = loop.train(tiny(checkpoint_every=100), tmp_path)
  with Checkpointer(tmp_path, 2) as checkpoints:
    assert checkpoints.steps() == [12]
  assert_same(state, straight[0])
  assert int(state.step) == 12


def test_each_reported_step_has_one_line(straight):
  assert [step for step, _ in straight[1]] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("number", [2, 7])
def test_a_stopped_run_ends_with_the_same_bits(
  straight, tmp_path, monkeypatch, number
):
  with monkeypatch.context() as patch:
    at_batch(patch, number, stop)
    with pytest.raises(Stop):
      loop.train(tiny(), tmp_path)
  state = loop.train(tiny(), tmp_path)
  assert_same(state, straight[0])
  assert losses(tmp_path) == straight[1]


def test_no_mean_spans_a_kill(tmp_path, monkeypatch):
  habits = {"log_every": 5, "checkpoint_every": 4}
  loop.train(tiny(**habits), tmp_path / "straight")
  with monkeypatch.context() as patch:
    at_batch(patch, 10, stop)
    with pytest.raises(Stop):
      loop.train(tiny(**habits), tmp_path / "stopped")
  loop.train(tiny(**habits), tmp_path / "stopped")
  assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")


def test_a_longer_run_goes_on_where_the_shorter_one_ended(straight, tmp_path):
  loop.train(tiny(num_steps=6), tmp_path)
  state = loop.train(tiny(), tmp_path)
  assert_same(state, straight[0])
  assert [step for step, _ in losses(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_a_finished_run_says_so(straight, tmp_path, caplog):
  loop.train(tiny(), tmp_path)
  caplog.set_level(logging.INFO)
  state = loop.train(tiny(), tmp_path)
  assert "is finished: 12 of 12 steps" in caplog.text
  assert_same(state, straight[0])
  assert losses(tmp_path) == straight[1]


def with_nan(batch):
  return batch | {"image": np.full_like(batch["image"], np.nan)}


def test_a_nan_stops_the_run_and_names_the_step(tmp_path, monkeypatch):
  at_batch(monkeypatch, 7, with_nan)
  with pytest.raises(FloatingPointError, match="is nan at step 7; training"):
    loop.train(tiny(), tmp_path)
  with Checkpointer(tmp_path, 2) as checkpoints:
    assert checkpoints.steps() == [4]
  assert [step for step, _ in losses(tmp_path)] == [2, 4, 6]


def test_a_nan_in_the_step_before_a_save_is_not_saved(tmp_path, monkeypatch):
  at_batch(monkeypatch, 8, with_nan)
  with pytest.raises(FloatingPointError, match="at step 8"):
    loop.train(tiny(), tmp_path)
  with Checkpointer(tmp_path, 2) as checkpoints:
    assert checkpoints.steps() == [4]


def test_a_report_does_not_wait_for_the_newest_step(monkeypatch):
  read = []
  monkeypatch.setattr(
    loop.jax, "device_get", lambda metrics: read.append(metrics) or metrics
  )
  report = loop.Report(tiny(log_every=100), 1000, Writer())
  first, second = {"loss": jnp.float32(1)}, {"loss": jnp.float32(2)}
  report.add(1, first)
  assert read == []
  report.add(2, second)
  assert read == [first]
  with report.paused("saving"):
    assert read == [first, second], "what is saved was seen to be finite"


def test_nothing_moves_to_the_device_by_accident(tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "place", lambda batch, *where: batch)
  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    loop.train(tiny(), tmp_path)


def test_samples_are_drawn_and_do_not_change_the_run(straight, tmp_path):
  state = loop.train(tiny(sample_every=8), tmp_path)
  names = sorted(path.name for path in (tmp_path / "samples").iterdir())
  assert names == ["step_00000008.png", "step_00000012.png"]
  assert_same(state, straight[0])


def test_a_batch_that_devices_cannot_share_is_one_sentence(tmp_path):
  with pytest.raises(ValueError, match="batch_size is 12; expected a multiple"):
    loop.train(tiny(batch_size=12), tmp_path)


def test_another_model_in_the_work_directory_is_one_sentence(tmp_path):
  loop.train(tiny(num_steps=1), tmp_path)
  other = tiny("model.backbone.width=16")
  with pytest.raises(ValueError, match=r"model\.backbone\.width is 8 there"):
    loop.train(other, tmp_path)


@pytest.mark.slow
def test_after_a_nan_the_advice_is_taken(straight, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    at_batch(patch, 7, with_nan)
    with pytest.raises(FloatingPointError, match="run the same com") as caught:
      loop.train(tiny(), tmp_path)
  flag = re.search(r"with --config\.(\S+),", str(caught.value)).group(1)
  assert flag == "training.learning_rate=0.0005"
  lower = tiny(flag)
  with monkeypatch.context() as patch:
    at_batch(patch, 3, with_nan)
    with pytest.raises(FloatingPointError, match="at step 7"):
      loop.train(lower, tmp_path)
  assert int(loop.train(lower, tmp_path).step) == 12
  # It has gone on since, so what decides the numbers is fixed again.
  assert not (tmp_path / "stopped.json").exists()
  with pytest.raises(ValueError, match=r"learning_rate is 0\.0005 there"):
    loop.train(tiny(), tmp_path)


@pytest.mark.slow
def test_memory_and_speed_may_change(straight, tmp_path):
  loop.train(tiny(num_steps=4, batch_size=16), tmp_path)
  other = tiny("model.backbone.remat=none", num_microbatches=2, batch_size=16)
  state = loop.train(other, tmp_path)
  assert int(state.step) == 12


@pytest.mark.parametrize(
  "place",
  [
    "generate",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("png", "events")),
  ],
)
def test_a_failing_picture_costs_nothing(
  straight, tmp_path, monkeypatch, caplog, place
):
  def fail(*args, **kwargs):
    raise RuntimeError("no picture\ntoday")

  where, name = {
    "generate": (samples.Pipeline, "generate"),
    "png": (pictures, "save_png"),
    "events": (writers.TensorBoardWriter, "write_images"),
  }[place]
  monkeypatch.setattr(where, name, fail)
  state = loop.train(tiny(sample_every=4), tmp_path)
  assert_same(state, straight[0])
  said = [r.getMessage() for r in caplog.records if "picture" in r.getMessage()]
  assert said == [
    f"no picture of step {step} (RuntimeError: no picture); training goes on"
    for step in (4, 8, 12)
  ]


def test_the_checkpoint_is_saved_before_the_picture(tmp_path, monkeypatch):
  def stopped(self, step, params):
    raise KeyboardInterrupt

  monkeypatch.setattr(samples.Sampler, "draw", stopped)
  with pytest.raises(
    KeyboardInterrupt, match="newest checkpoint is that of st"
  ):
    loop.train(tiny(sample_every=4), tmp_path)
  with Checkpointer(tmp_path, 2) as checkpoints:
    assert checkpoints.steps() == [4]


def test_a_line_that_cannot_be_written_costs_no_checkpoint(
  tmp_path, monkeypatch
):
  def fail(self, step, scalars):
    raise OSError("metrics cannot be written")

  monkeypatch.setattr(writers.JsonLinesWriter, "write_scalars", fail)
  with pytest.raises(OSError, match="metrics cannot be written"):
    loop.train(tiny(log_every=4), tmp_path)
  with Checkpointer(tmp_path, 2) as checkpoints:
    assert checkpoints.steps() == [4]


@pytest.mark.slow
def test_a_run_starts_from_weights(straight, tmp_path):
  loop.train(tiny(num_steps=6), tmp_path / "first")
  first = workdirs.load(tmp_path / "first", host_mesh())[1]
  log = tiny(num_steps=6, init_from=tmp_path / "first", learning_rate=0.0)
  state = loop.train(log, tmp_path / "second")
  assert_same(state.params, first)
  # An average of equal numbers is rounded.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    state.ema_params,
    first,
  )
  # The source is not read again.
  shutil.rmtree(tmp_path / "first")
  loop.train(log, tmp_path / "second")


def test_weights_of_another_model_are_one_sentence(tmp_path):
  loop.train(tiny(num_steps=1), tmp_path / "first")
  other = tiny("model.backbone.width=16", init_from=tmp_path / "first")
  with pytest.raises(ValueError, match=r"init_from.*: \S+ is of shape .*; ex"):
    loop.train(other, tmp_path / "second")


def test_what_takes_long_says_so(tmp_path, monkeypatch, caplog):
  caplog.set_level(logging.INFO, "marjax")
  monkeypatch.setattr(ticks, "EVERY", 0.1)

  def slow(*call):
    time.sleep(0.25)
    return call[2](*call[3:]) if len(call) > 3 else None

  monkeypatch.setattr(loop.Profile, "run", slow)
  monkeypatch.setattr(loop.Sampler, "draw", slow)
  loop.train(tiny(num_steps=1, sample_every=1), tmp_path)
  told = {message.partition(":")[0] for message in caplog.messages}
  assert {"compiling the step", "drawing samples"} <= told


def test_slow_steps_are_not_silent(tmp_path, monkeypatch, caplog):
  caplog.set_level(logging.INFO, "marjax")
  monkeypatch.setattr(ticks, "EVERY", 0.1)
  run = loop.Profile.run

  pauses = iter([0.3, 1.3, 0.3, 0.3])

  def slow(*call):
    time.sleep(next(pauses))
    return run(*call)

  monkeypatch.setattr(loop.Profile, "run", slow)
  loop.train(tiny(num_steps=4, log_every=4), tmp_path)
  told = [text for text in caplog.messages if text.startswith("step ")]
  # What follows the last step may take long as well.
  (last,) = (text for text in told if "loss" in text)
  ticked = told[: told.index(last)]
  assert {*told[len(ticked) + 1 :]} <= {"step 4/4"}
  assert all(re.fullmatch(r"step \d/4(: \d s)?", text) for text in ticked)
  assert any(text.endswith(": 1 s") for text in ticked)
  steps = dict.fromkeys(text.partition("/")[0] for text in ticked)
  assert [*steps][:3] == ["step 1", "step 2", "step 3"]
  assert last.startswith("step 4/4  loss")
