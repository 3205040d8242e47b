"""Traces of training steps: which steps, where, and what names are in them."""

import gzip
import json
import logging
import re

import jax
import jax.numpy as jnp
import pytest
import small

from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.train.profile import Profile, move, parse
from marjax.train.step import make_train_program


def test_steps_are_read():
  assert parse(None) is None
  assert parse("10:13") == (10, 13)


@pytest.mark.parametrize(
  "text", ["", "10", "3:3", "4:3", "-1:2", "a:b", "1:2:"]
)
def test_another_form_is_refused(text):
  with pytest.raises(ValueError, match=r"--profile_steps is .* expected A:B"):
    parse(text)


@pytest.mark.parametrize("steps", [(0, 2), (4, 6), (5, 6), (9, 11), (10, 12)])
def test_steps_that_this_run_does_not_reach_are_refused(tmp_path, steps):
  with pytest.raises(ValueError, match="expected steps within 6:10"):
    Profile(steps, tmp_path, start=5, num_steps=10)
  Profile((6, 10), tmp_path, start=5, num_steps=10)


@jax.jit
def double(x):
  return 2 * x


def run(profile, steps):
  x = jnp.ones(3)
  with profile, jax.transfer_guard("disallow"):
    for step in steps:
      x = profile.run(step, double, x)
  return x


def traced_steps(folder):
  """Numbers of the steps that a trace holds."""
  (path,) = folder.rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  return {
    int(event["args"]["step_num"])
    for event in events
    if event.get("name") == "train"
  }


def test_the_steps_asked_for_are_traced(tmp_path, caplog):
  caplog.set_level(logging.INFO, "marjax")
  pauses = []

  def paused():
    pauses.append(1)
    return jax.named_scope("paused")

  profile = Profile((2, 4), tmp_path, 0, 6, paused)
  assert run(profile, range(6))[0] == 2**6
  assert [path.name for path in (tmp_path / "profile").iterdir()] == ["2"]
  assert traced_steps(tmp_path / "profile/2") == {2, 3}
  assert list((tmp_path / "profile/2/plugins/profile").glob("*/*.xplane.pb"))
  assert f"steps 2 to 3 are traced in {tmp_path}/profile/2;" in caplog.text
  assert len(pauses) == 2


def test_a_run_that_leaves_keeps_its_trace_and_resumes(tmp_path, caplog):
  caplog.set_level(logging.INFO, "marjax")
  run(Profile((1, 5), tmp_path, 0, 6), range(3))
  assert traced_steps(tmp_path / "profile/1") == {1, 2}
  before = sorted((tmp_path / "profile").rglob("*"))
  run(Profile((1, 5), tmp_path, 3, 6), range(3, 6))
  assert sorted((tmp_path / "profile").rglob("*")) == before
  assert "profile/1 is there already" in caplog.text
  assert "steps 1 to 2 are traced" in caplog.text
  # From the start again, as where nothing was saved before the run ended.
  run(Profile((1, 5), tmp_path, 0, 6), range(6))
  assert sorted((tmp_path / "profile").rglob("*")) == before
  assert "no trace" not in caplog.text


def test_other_processes_trace_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  run(Profile((1, 2), tmp_path, 0, 3), range(3))
  assert not (tmp_path / "profile").exists()


def test_a_trace_that_cannot_be_written_stops_nothing(tmp_path, caplog):
  profile = Profile((1, 2), tmp_path, 0, 3)
  (tmp_path / "profile").write_text("in the way")
  assert run(profile, range(3))[0] == 8
  assert "no trace of steps" in caplog.text


def test_a_trace_is_never_replaced(tmp_path):
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text(name)
  move(tmp_path / "one", tmp_path / "there")
  with pytest.raises(OSError, match="there cannot be written"):
    move(tmp_path / "two", tmp_path / "there")
  assert (tmp_path / "there/file").read_text() == "one"
  assert {path.name for path in tmp_path.iterdir()} == {"one", "there", "two"}


def scopes(lowered):
  """Names of operations as traced, without their last part.

  What is inside a loop has a name of its own, which XLA appends to the loop's.
  """
  names = re.findall(r'"([^"\n]+)"', lowered.as_text(debug_info=True))
  return {name.rpartition("/")[0] for name in names}


def lacking(expected, names):
  return [part for part in expected if not any(part in name for name in names)]


def test_operations_of_a_step_are_named():
  mesh = small.one_device()
  program = make_train_program(small.EXPERIMENT, mesh, num_examples=64)
  lowered = program.step.lower(program.abstract_state, program.abstract_batch)
  expected = (
    *("(step)/encode", "(step)/draw", "(step)/optimizer", "(step)/ema"),
    "/loss/jvp(MarModel.loss)/",
    "/loss/transpose(jvp(MarModel.loss))/",
    "/backbone.encode_all/encoder/encoder._scanned/while/body",
    "/backbone.decode/decoder/decoder._scanned/while/body",
    "/layers/block/Block/attention",
    "/head.loss/head.loss_terms/net.denoise/blocks_0/linear_in",
  )
  assert lacking(expected, scopes(lowered)) == []


@pytest.mark.slow
def test_operations_of_generating_are_named():
  settings = small.EXPERIMENT.sampling.for_model(small.MODEL)
  static = reveal.static_for(small.MODEL, settings)
  draws = draw_batch(jax.random.key(3), jnp.arange(2), small.MODEL.backbone)
  numbers = reveal.numbers_for(static.plan, settings)
  lowered = jax.jit(reveal.generate, static_argnums=0).lower(
    static, small.params(), jnp.arange(2), draws, numbers
  )
  expected = (
    "/backbone.decode/decoder/decoder._apply/layers/block/Block/attention",
    "MarModel.sample/head.sample/head.walk_through/net.embed_time",
    "MarModel.sample/head.sample/head.walk_through/reverse/while/body",
    "Denoiser.denoise/blocks_0/linear_in",
  )
  assert lacking(expected, scopes(lowered)) == []
