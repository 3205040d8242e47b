"""Checkpoints: what a killed run needs to go on as if nothing had happened.

1. `save` copies the state off the device and returns; a thread writes
   `STEP.orbax-checkpoint-tmp/`, lists size and hash of every file in it, and
   renames it to `STEP/`. A kill before the rename leaves no step, a kill after
   it a whole one. In a bucket, where nothing can be renamed, it writes to
   `STEP/`, and a marker is the last file: a step without it does not count.
2. What such a kill left is deleted when the next run opens the directory.
3. The oldest steps beyond `keep` are deleted only after that rename.
4. `restore` compares file sizes, hashes and array shapes first, so that a
   damaged copy or another model is one sentence; then it puts every array where
   its abstract value says it lives, and looks for NaN and infinity.
5. A save checks that the directory is still there and has the step before it:
   else Orbax would make it anew, and a run whose folder was removed would end
   well with half of its checkpoints.

This is the only module that saves through Orbax.
"""

import contextlib
import errno
import gc
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from marjax import outputs
from marjax.parallel import hosts
from marjax.release import workdir as workdirs
from marjax.train import interrupts


class Checkpointer:
  """Saves and restores (state, data state) pairs under WORKDIR/checkpoints.

  With several processes every method is called by all of them. A context
  manager: leaving it waits for the save under way.
  """

  def __init__(
    self, workdir: str | os.PathLike, keep: int = 2, checksums: bool = True
  ):
    """Opens the directory, which is made when missing.

    Args:
      workdir: of the run.
      keep: how many of the newest checkpoints stay on disk, at least 1.
      checksums: write and compare hashes of files, not their sizes only.

    Raises:
      OSError: the directory cannot be made or read.
    """
    import orbax.checkpoint as ocp

    self.directory = outputs.absolute(workdir) / "checkpoints"
    self._checksums = checksums
    self._saving = self._saved = self._failed = None
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      # By the first process, in a thread that its first save waits for; the
      # others wait for that save to begin.
      cleanup_tmp_directories=outputs.is_remote(self.directory),
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._list_files
      ),
    )
    handlers = {"state": _state_handler(), "data": ocp.JsonCheckpointHandler()}
    try:
      self._tidy()
      self._manager = ocp.CheckpointManager(
        self.directory, options=options, item_handlers=handlers
      )
    except Exception as error:
      raise outputs.unwritable(self.directory, error) from error

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, error_type, *_) -> None:
    if error_type is KeyboardInterrupt and self._saving != self._saved:
      interrupts.tell(f"finishing the checkpoint of step {self._saving}")
    self.close()
    if error_type is None:
      self._check_there()
    if error_type is KeyboardInterrupt:
      newest = max(self.steps(), default=None)
      raise KeyboardInterrupt(
        "no checkpoint is saved yet"
        if newest is None
        else f"the newest checkpoint is that of step {newest}, where the same"
        " command goes on"
      )

  def steps(self) -> list[int]:
    """The steps on disk, oldest first; unfinished ones are not among them."""
    return workdirs.steps(self.directory)

  def latest_step(self) -> int | None:
    """The newest step on disk, None before the first save."""
    # Listings of a network file system may lag behind; all must agree.
    newest = int(hosts.gathered(np.int32(max(self.steps(), default=-1)))[0])
    return None if newest < 0 else newest

  def save(self, step: int, state: Any, data_state: dict) -> None:
    """Copies `state` to the host and returns; writing goes on in a thread.

    Args:
      step: number of updates in `state`.
      state: a pytree of arrays; may be donated as soon as this returns.
      data_state: JSON-able, small.

    Raises:
      OSError: this save, or the one before it, could not be written, or the
        directory is gone; the checkpoints already on disk are intact.
    """
    import orbax.checkpoint as ocp

    self.wait()
    self._check_there()
    self._saving = step
    items = ocp.args.Composite(
      state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data_state)
    )
    # The copy off the device is this function's purpose, not an accident.
    with self._one_sentence("copying"), jax.transfer_guard("allow"):
      self._check_room(state)
      self._manager.save(step, args=items)

  def restore(self, abstract_state: Any) -> tuple[Any, dict]:
    """The newest (state, data state).

    Args:
      abstract_state: the state's pytree of `jax.ShapeDtypeStruct` with
        shardings; they need not be those of the run that saved.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged, holds NaN, or belongs to another model.
    """
    import orbax.checkpoint as ocp

    step = self.latest_step()
    if step is None:
      raise FileNotFoundError(
        f"{self.directory} has no checkpoint; train first, or name the work"
        " directory of a run that has saved one."
      )
    self._check_files(step)
    items = ocp.args.Composite(
      state=ocp.args.PyTreeRestore(
        abstract_state,
        ocp.checkpoint_utils.construct_restore_args(abstract_state),
      ),
      data=ocp.args.JsonRestore(),
    )
    root = self.directory / str(step)
    try:
      self._check_shapes(step, abstract_state)
      restored = self._manager.restore(step, args=items)
    except Exception as error:
      raise ValueError(
        f"the checkpoint {root} cannot be restored ({outputs.reason(error)});"
        f" {workdirs.way_out(root)}."
      ) from None
    workdirs.check_finite(restored.state, root)
    return restored.state, restored.data

  def wait(self) -> None:
    """Blocks until the save under way is on disk; OSError if that fails."""
    with self._one_sentence():
      self._manager.wait_until_finished()
    # Unless it was told before that it failed.
    if self._saving != self._failed:
      self._saved = self._saving

  def close(self) -> None:
    """Waits and ends Orbax's threads; the checkpointer cannot be used after."""
    self.wait()
    with self._one_sentence():
      self._manager.close()

  def _tidy(self) -> None:
    """Deletes what kills left on this machine, before any process goes on.

    The others wait for the first where Orbax's manager is made.
    """
    if jax.process_index() == 0 and not outputs.is_remote(self.directory):
      for unfinished in self.directory.glob("*.orbax-checkpoint-tmp*"):
        # Files may still vanish if it is this process's save that failed.
        shutil.rmtree(unfinished, ignore_errors=True)

  def _list_files(self) -> None:
    """Runs in the saving thread, after the last write, before the rename."""
    if jax.process_index() > 0:
      return
    pattern = f"{self._saving}.orbax-checkpoint-tmp*"
    if outputs.is_remote(self.directory):
      pattern = str(self._saving)
    (root,) = self.directory.glob(pattern)
    workdirs.write_files(root, self._checksums)

  def _check_files(self, step: int) -> None:
    """Each process looks at its share of the files; all stop if one must."""
    root = self.directory / str(step)
    share = jax.process_index(), jax.process_count()
    fault = workdirs.damage(root, self._checksums, share)
    faults = hosts.gathered(fault is not None)
    if faults.any() and not fault:
      fault = f"process {faults.argmax()} says how"
    if fault:
      raise ValueError(
        f"the checkpoint {root} is damaged: {fault}; {workdirs.way_out(root)}."
      )

  def _check_there(self) -> None:
    """Refuses to go on where the newest checkpoint of this run is gone."""
    if jax.process_index() > 0:
      return
    is_local = not outputs.is_remote(self.directory)
    is_gone = self._saved not in (None, *self.steps())
    if is_gone or (is_local and not self.directory.is_dir()):
      raise FileNotFoundError(
        f"{self.directory} was removed, renamed or emptied while the run was"
        " writing there, so nothing more is saved: put it back, or choose"
        " another --workdir, and run the same command again."
      )

  def _check_room(self, state: Any) -> None:
    """Tells of a full disk at once; Orbax would with a traceback per array."""
    if jax.process_index() > 0 or outputs.is_remote(self.directory):
      return
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    disk = shutil.disk_usage(self.directory)
    # Trained weights hardly compress. Some file systems do not know their size.
    if disk.total and disk.free < 0.8 * num_bytes:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def _check_shapes(self, step: int, abstract_state: Any) -> None:
    import orbax.checkpoint as ocp

    there, here = (
      {
        name: f"{leaf.dtype}{list(leaf.shape)}"
        for name, leaf in ocp.tree.to_flat_dict(tree, sep=".").items()
      }
      for tree in (self._manager.item_metadata(step).state, abstract_state)
    )
    for name in sorted(there.keys() | here.keys()):
      if there.get(name) != here.get(name):
        raise ValueError(
          f"{name} is {there.get(name, 'absent')} there and"
          f" {here.get(name, 'absent')} in this model"
        )

  @contextlib.contextmanager
  def _one_sentence(self, what: str = "finishing") -> Iterator[None]:
    sentence = None
    what = f"{what} the checkpoint of step {self._saving}"
    try:
      with interrupts.put_off(what):
        yield
    except Exception as error:
      sentence = self._failure(error)
    # Raised here, where the first error and all that it refers to is let go, so
    # that nothing of it is left for the end of the process.
    if sentence:
      gc.collect()
      raise OSError(sentence)

  def _failure(self, error: Exception) -> str:
    failed = self._failed = self._saving
    good = [step for step in self.steps() if step != failed]
    last = f"step {good[-1]} is intact" if good else "there is no earlier one"
    return (
      f"the checkpoint of step {failed} could not be written to"
      f" {self.directory} ({outputs.reason(error)}); {last}: make room, or see"
      " to it that you can write there, and run the same command again."
    )


def _state_handler():
  """Orbax's, but small arrays are not cut up to be saved.

  An array that all devices hold is cut so that each copies a part; for a small
  one the cutting takes five times as long as the copying.
  """
  import orbax.checkpoint as ocp

  arrays = ocp.type_handlers.ArrayHandler(
    min_slice_bytes_for_replica_parallel=2**20
  )
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
