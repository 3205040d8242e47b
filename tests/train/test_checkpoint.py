"""A checkpoint is whole or absent, and bad ones are one sentence."""

import contextlib
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.shared import assert_same

from marjax.release import json_files
from marjax.train.checkpoint import Checkpointer


def make_state(step):
  values = np.random.default_rng(step).normal(size=(64, 64))
  return {
    "step": jnp.int32(step),
    "params": {"kernel": jnp.asarray(values, jnp.float32)},
    "opt_state": (jnp.zeros(3), {"mu": jnp.ones((), jnp.bfloat16)}),
  }


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def save_steps(workdir, *steps, keep=5):
  with Checkpointer(workdir, keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {"step": step})
  return workdir / "checkpoints"


def restore(workdir):
  with Checkpointer(workdir, 5) as checkpoints:
    return checkpoints.restore(abstract(make_state(0)))


def test_restore_gives_back_every_bit(tmp_path):
  save_steps(tmp_path, 3, 7)
  state, data = restore(tmp_path)
  assert_same(state, make_state(7))
  assert data == {"step": 7}


def test_a_saved_state_may_be_donated_at_once(tmp_path):
  add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  with Checkpointer(tmp_path, 2) as checkpoints:
    state = make_state(1)
    checkpoints.save(1, state, {"step": 1})
    state = add(state)
  assert_same(restore(tmp_path)[0], make_state(1))


def test_only_the_newest_are_kept(tmp_path):
  save_steps(tmp_path, 1, 2, 3, 4, keep=2)
  with Checkpointer(tmp_path, 2) as checkpoints:
    assert checkpoints.steps() == [3, 4]


def test_a_half_written_save_is_never_picked_up(tmp_path):
  directory = save_steps(tmp_path, 1)
  half = directory / "2.orbax-checkpoint-tmp" / "state"
  half.mkdir(parents=True)
  (half / "manifest.ocdbt").write_bytes(b"half")
  assert_same(restore(tmp_path)[0], make_state(1))
  assert not half.exists()


def test_a_half_deleted_old_step_does_not_stop_the_run(tmp_path):
  directory = save_steps(tmp_path, 1, 2)
  shutil.rmtree(directory / "1" / "state")
  (directory / "1" / "_CHECKPOINT_METADATA").unlink()
  with Checkpointer(tmp_path, 2) as checkpoints:
    checkpoints.restore(abstract(make_state(0)))
    checkpoints.save(3, make_state(3), {"step": 3})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]


def test_no_checkpoint_is_one_sentence(tmp_path):
  with pytest.raises(FileNotFoundError, match="has no checkpoint; train first"):
    restore(tmp_path)


def files_of(step_directory):
  listed = json.loads((step_directory / "files.json").read_text())
  del listed[json_files.HASH]
  return sorted(name for name, file in listed.items() if file["size"] > 1)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_every_damaged_file_is_one_sentence(tmp_path, damage):
  directory = save_steps(tmp_path / "good", 1, 2)
  names = [*files_of(directory / "2"), "files.json"]
  assert len(names) > 5
  for i, name in enumerate(names):
    copy = tmp_path / str(i)
    shutil.copytree(tmp_path / "good", copy)
    file = copy / "checkpoints" / "2" / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
      kept = 0 if damage == "empty" else len(content) // 2
      file.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"damaged.*to go on from step 1"):
      restore(copy)


def test_an_empty_step_directory_is_one_sentence(tmp_path):
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  with pytest.raises(ValueError, match=r"damaged: files.json.*to start again"):
    restore(tmp_path)


def test_another_model_is_one_sentence(tmp_path):
  save_steps(tmp_path, 1)
  other = make_state(1) | {"params": {"kernel": jnp.zeros((3, 3))}}
  with (
    pytest.raises(
      ValueError, match=r"params.kernel is float32\[64, 64\] there"
    ),
    Checkpointer(tmp_path, 5) as checkpoints,
  ):
    checkpoints.restore(abstract(other))


@contextlib.contextmanager
def full_disk():
  """Writes beyond 2 kB fail, as they would on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_harms_nothing(tmp_path):
  save_steps(tmp_path, 1, keep=1)
  with (
    pytest.raises(OSError, match=r"step 2 could.*step 1 is intact") as caught,
    full_disk(),
  ):
    save_steps(tmp_path, 2, keep=1)
  assert "\n" not in str(caught.value)
  assert "too large" in str(caught.value)
  assert_same(restore(tmp_path)[0], make_state(1))


def test_a_failed_save_is_told_at_the_next_one(tmp_path):
  with Checkpointer(tmp_path, 5) as checkpoints:
    checkpoints.save(1, make_state(1), {"step": 1})
    checkpoints.wait()
    with full_disk():
      checkpoints.save(2, make_state(2), {"step": 2})
      with pytest.raises(OSError, match=r"step 2 could.*step 1 is intact"):
        checkpoints.save(3, make_state(3), {"step": 3})
  assert_same(restore(tmp_path)[0], make_state(1))


def test_a_place_where_nothing_can_be_made_is_one_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="checkpoints cannot be written") as caught:
    Checkpointer(tmp_path / "file", 2)
  assert "\n" not in str(caught.value)
