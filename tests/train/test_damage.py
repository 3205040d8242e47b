"""Damage in a work directory is told by name, and there is a way on.

Flipped bits, NaN in what is saved or read, and folders that go away.
"""

import json
import pathlib
import re
import shlex
import shutil
import subprocess

import flips
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.shared import at_batch, tiny

import marjax
from marjax import arrays
from marjax.parallel.mesh import host_mesh
from marjax.release import json_files, loading
from marjax.release import workdir as workdirs
from marjax.release.digest import digest
from marjax.train import loop
from marjax.train.checkpoint import Checkpointer


def train(workdir, **training):
  return loop.train(tiny(**training), workdir)


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
  """A work directory with two checkpoints, at 2 and 4."""
  workdir = tmp_path_factory.mktemp("trained")
  train(workdir, num_steps=4, checkpoint_every=2)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  """A copy of it."""
  return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def files_of(workdir):
  """All that a resumption may read; events and metrics are only written."""
  newest = workdir / "checkpoints" / "4"
  inside = [path for path in newest.rglob("*") if path.is_file()]
  files = [*inside, workdir / "config.json", workdir / "data.json"]
  return [path for path in files if path.stat().st_size]


def test_a_flipped_bit_is_told_by_a_resumption(workdir):
  def resumed():
    state = train(workdir, num_steps=4)
    return digest(jax.device_get(state.__dict__))

  seen = flips.outcomes(files_of(workdir), resumed)
  assert set(seen) <= {"told", "same"}, seen
  assert seen["told"] >= 18


def test_a_flipped_bit_is_told_where_it_is_generated_from(workdir):
  def loaded():
    release = loading.load(workdir, host_mesh())
    return release.card, digest(release.params)

  seen = flips.outcomes(files_of(workdir), loaded)
  assert set(seen) <= {"told", "same"}, seen
  assert seen["told"] >= 18


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


def largest(workdir):
  data = (workdir / "checkpoints" / "4").glob("state/ocdbt.process_0/d/*")
  return max(data, key=lambda path: path.stat().st_size)


def test_the_one_before_is_offered_and_the_advice_works(workdir):
  damaged = largest(workdir)
  flip(damaged)
  for use in (lambda: train(workdir), lambda: marjax.load(workdir)):
    with pytest.raises(ValueError, match=damaged.name) as caught:
      use()
    assert "checkpoints/4 is damaged" in str(caught.value)
    assert str(caught.value).endswith("to go on from step 2.")
  command = re.search(r"move it away \((mv .*?)\)", str(caught.value)).group(1)
  subprocess.run(shlex.split(command), check=True)
  assert workdirs.latest_step(workdir / "checkpoints") == 2
  assert marjax.load(workdir).card.step == 2
  assert int(train(workdir, num_steps=4).step) == 4


def test_hashes_are_skipped_on_demand(workdir):
  # Another file of the same size and meaning.
  data = workdir / "checkpoints" / "4" / "data" / "metadata"
  data.write_bytes(data.read_bytes().replace(b", ", b",\t"))
  with pytest.raises(ValueError, match="has another content"):
    marjax.load(workdir)
  marjax.load(workdir, verify=False)
  with pytest.raises(ValueError, match="has another content"):
    train(workdir)
  train(workdir, checksums="false", num_steps=6)
  listed = (workdir / "checkpoints" / "6" / workdirs.FILES).read_bytes()
  records = json_files.read_json(listed, workdirs.FILES).values()
  assert all(record.keys() == {"size"} for record in records)
  assert int(train(workdir, num_steps=7).step) == 7


def test_a_list_without_hashes_is_read(workdir):
  """As older versions wrote them: sizes alone, as plain JSON."""
  path = workdir / "checkpoints" / "4" / workdirs.FILES
  listed = json_files.read_json(path.read_bytes(), "list")
  sizes = {name: record["size"] for name, record in listed.items()}
  path.write_text(json.dumps(sizes))
  assert marjax.load(workdir).card.step == 4
  for wrong in ('{"a": []}', '{"a": {"size": "b"}}', "[1]", '{"a": 1e400}'):
    path.write_text(wrong)
    with pytest.raises(ValueError, match=r"files.json is missing or unread"):
      marjax.load(workdir)


def with_inf(state):
  ema = jax.tree.map(lambda leaf: leaf.at[...].set(jnp.inf), state.ema_params)
  return type(state)(state.step, state.params, ema, state.opt_state)


def test_an_infinite_average_is_not_saved(tmp_path, monkeypatch, quick):
  make = loop.make_train_program

  def make_broken(*args):
    program = make(*args)

    def step(state, batch):
      state, metrics = program.step(state, batch)
      with jax.transfer_guard("allow"):
        return (
          with_inf(state) if int(state.step) == 3 else state,
          metrics,
        )

    return type(program)(**{**program.__dict__, "step": step})

  monkeypatch.setattr(loop, "make_train_program", make_broken)
  with pytest.raises(FloatingPointError, match="NaN or infinity at step 4"):
    train(tmp_path)
  assert workdirs.steps(tmp_path / "checkpoints") == []


def test_an_infinite_average_is_not_loaded(workdir):
  state = with_inf(train(workdir, num_steps=4))
  with Checkpointer(workdir) as checkpoints:
    checkpoints.save(8, state, {"step": 8})
  for use in (lambda: train(workdir), lambda: marjax.load(workdir)):
    with pytest.raises(ValueError, match=r"8 has NaN or infinity in \S+") as e:
      use()
    assert str(e.value).endswith("to go on from step 4.")


def remove(workdir):
  shutil.rmtree(workdir, ignore_errors=True)  # a save may be under way


@pytest.mark.parametrize("act", [remove, lambda p: p.rename(f"{p}2")])
@pytest.mark.parametrize("at_step", [1, 5, 8])
def test_a_folder_that_goes_away_stops_the_run(
  quick, tmp_path, monkeypatch, act, at_step
):
  workdir = tmp_path / "run"

  def go_away(batch):
    act(workdir)

  at_batch(monkeypatch, at_step, go_away)
  with pytest.raises(OSError, match="run") as caught:
    train(workdir, num_steps=8)
  assert "\n" not in str(caught.value)


def test_of_arrays_the_first_that_is_not_finite_is_named():
  tree = {"a": np.ones(3), "b": {"c": jnp.array([1.0, jnp.nan])}}
  assert arrays.not_finite(tree) == "b/c"
  assert arrays.not_finite({"a": np.arange(3)}) is None
