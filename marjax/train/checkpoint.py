"""Checkpoints: what a killed run needs to go on as if nothing had happened.

1. `save` copies the state off the device and returns; a thread writes
   `STEP.orbax-checkpoint-tmp/`, lists the size of every file in it, and renames
   it to `STEP/`. A kill before the rename leaves no step, a kill after it a
   whole one. In a bucket, where nothing can be renamed, it writes to `STEP/`,
   and a marker is the last file: a step without it does not count.
2. What such a kill left is deleted when the next run opens the directory.
3. The oldest steps beyond `keep` are deleted only after that rename.
4. `restore` compares file sizes and array shapes first, so that a truncated
   copy or another model is one sentence; then it puts every array where its
   abstract value says it lives.

This is the only module that saves through Orbax.
"""

import contextlib
import functools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from marjax import outputs
from marjax.outputs import AnyPath
from marjax.release import workdir as workdirs


class Checkpointer:
  """Saves and restores (state, data state) pairs under WORKDIR/checkpoints.

  With several processes every method is called by all of them. A context
  manager: leaving it waits for the save under way.
  """

  def __init__(self, workdir: str | os.PathLike, keep: int = 2):
    """`keep`: how many of the newest checkpoints stay on disk, at least 1.

    Raises:
      OSError: the directory cannot be made or read.
    """
    import orbax.checkpoint as ocp

    if keep < 1:
      raise ValueError(f"keep_checkpoints is {keep}; expected at least 1.")
    self.directory = outputs.absolute(workdir) / "checkpoints"
    self._saving = None
    logging.getLogger("absl").addFilter(_is_not_orbax)
    _quieten_late_failures()
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
      logging.getLogger("absl").removeFilter(_is_not_orbax)
      raise outputs.unwritable(self.directory, error) from error

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def steps(self) -> list[int]:
    """The steps on disk, oldest first; unfinished ones are not among them."""
    return workdirs.steps(self.directory)

  def latest_step(self) -> int | None:
    """The newest step on disk, None before the first save."""
    newest = max(self.steps(), default=-1)
    if jax.process_count() > 1:
      # Listings of a network file system may lag behind; all must agree.
      from jax.experimental import multihost_utils

      newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))
    return None if newest < 0 else newest

  def save(self, step: int, state: Any, data_state: dict) -> None:
    """Copies `state` to the host and returns; writing goes on in a thread.

    Args:
      step: number of updates in `state`.
      state: a pytree of arrays; may be donated as soon as this returns.
      data_state: JSON-able, small.

    Raises:
      OSError: this save, or the one before it, could not be written; the
        checkpoints already on disk are intact.
    """
    import orbax.checkpoint as ocp

    self.wait()
    self._saving = step
    items = ocp.args.Composite(
      state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data_state)
    )
    # The copy off the device is this function's purpose, not an accident.
    with self._one_sentence(), jax.transfer_guard("allow"):
      self._manager.save(step, args=items)

  def restore(self, abstract_state: Any) -> tuple[Any, dict]:
    """The newest (state, data state).

    Args:
      abstract_state: the state's pytree of `jax.ShapeDtypeStruct` with
        shardings; they need not be those of the run that saved.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged, or belongs to another model.
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
    try:
      self._check_shapes(step, abstract_state)
      restored = self._manager.restore(step, args=items)
    except Exception as error:
      raise ValueError(
        f"the checkpoint {self.directory / str(step)} cannot be restored"
        f" ({_cause(error)}); {self._way_out(step)}."
      ) from None
    return restored.state, restored.data

  def wait(self) -> None:
    """Blocks until the save under way is on disk; OSError if that fails."""
    with self._one_sentence():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and ends Orbax's threads; the checkpointer cannot be used after."""
    try:
      with self._one_sentence():
        self._manager.wait_until_finished()
        self._manager.close()
    finally:
      logging.getLogger("absl").removeFilter(_is_not_orbax)

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
    sizes = {
      path.relative_to(root).as_posix(): outputs.size(path)
      for item in ("state", "data")
      for path in _files(root / item)
    }
    (root / workdirs.FILE_SIZES).write_text(json.dumps(sizes, indent=1))

  def _check_files(self, step: int) -> None:
    root = self.directory / str(step)
    if fault := workdirs.damage(root):
      raise ValueError(
        f"the checkpoint {root} is damaged: {fault}; {self._way_out(step)}."
      )

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

  def _way_out(self, step: int) -> str:
    older = [other for other in self.steps() if other < step]
    goal = f"go on from step {older[-1]}" if older else "start again"
    return f"restore its files, or move it away to {goal}"

  @contextlib.contextmanager
  def _one_sentence(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      good = [step for step in self.steps() if step != self._saving]
      last = f"step {good[-1]} is intact" if good else "there is no earlier one"
      raise OSError(
        f"the checkpoint of step {self._saving} could not be written to"
        f" {self.directory} ({_cause(error)}); {last}: make room, or"
        " see to it that you can write there, and run the same command again."
      ) from None


def _files(folder: AnyPath) -> Iterator[AnyPath]:
  """Every file below a folder."""
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


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


def _is_not_orbax(record: logging.LogRecord) -> bool:
  """Orbax logs a failure four times with tracebacks; here it is raised once."""
  return "orbax" not in record.pathname


@functools.cache
def _quieten_late_failures() -> None:
  """Of a save that fails the first failed write is raised here.

  TensorStore tells of the others when nobody listens any more, and for each a
  traceback would be shown.
  """
  theirs = re.compile("never retrieved.*(orbax|tensorstore|OCDBT)", re.DOTALL)
  logging.getLogger("asyncio").addFilter(
    lambda record: not theirs.search(record.getMessage())
  )
  before = sys.unraisablehook

  def shown(unraisable) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      before(unraisable)

  sys.unraisablehook = shown


def _cause(error: Exception) -> str:
  """Both ends of a first line: TensorStore puts the cause last, after paths."""
  line = (str(error).splitlines() or [""])[0]
  shown = line if len(line) <= 200 else f"{line[:60]} ... {line[-140:]}"
  return f"{type(error).__name__}: {shown}"
