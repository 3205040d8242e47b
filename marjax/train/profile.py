"""A trace of a few training steps, to see where their time goes.

1. `parse` reads A:B, the steps A .. B - 1, counted from 0.
2. Before step A, and after step B - 1, all devices have finished; the profiler
   of jax runs in between, on the first process alone.
3. The trace is moved whole to WORKDIR/profile/A: one that is there is kept, so
   that the command of a run that was traced and then stopped resumes it.

Every step is annotated, traced or not, so a profiler that connects from outside
tells steps apart. Operations are named after the modules that they belong to.
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax

from marjax import outputs
from marjax.outputs import AnyPath

log = logging.getLogger(__name__)

HOW_TO_LOOK = (
  "steps %d to %d are traced in %s; look at them with TensorBoard and its"
  " profile plugin (pip install xprof; tensorboard --logdir %s), or drop the"
  " trace.json.gz in there on https://ui.perfetto.dev"
)


def parse(text: str | None) -> tuple[int, int] | None:
  """A:B as two numbers; None for nothing.

  Raises:
    ValueError: another form, or not 0 <= A < B.
  """
  if text is None:
    return None
  found = re.fullmatch(r"(\d+):(\d+)", text)
  first, end = map(int, found.groups()) if found else (0, 0)
  if first >= end:
    raise ValueError(
      f"--profile_steps is {text!r}; expected A:B with A < B, as 10:13 for the"
      " steps 10, 11 and 12."
    )
  return first, end


class Profile:
  """Runs the steps of one training run, and traces some of them."""

  def __init__(
    self,
    steps: tuple[int, int] | None,
    workdir: AnyPath,
    start: int,
    num_steps: int,
    paused: Callable[[], AbstractContextManager] = nullcontext,
  ):
    """Checks the steps; nothing is traced yet.

    Args:
      steps: from `parse`.
      workdir: from `claim_workdir`.
      start: the first step of this process. num_steps: of the whole run.
      paused: opens a context whose time counts in no rate.

    Raises:
      ValueError: a step that this run does not reach, or its first, which
        compiles; in all processes.
    """
    self._first, self._end = steps or (None, None)
    self._folder, self._paused = workdir / "profile", paused
    self._temporary = self._last = None
    if steps is None:
      return
    target = self._folder / str(self._first)
    if target.exists():
      log.info("%s is there already: no step is traced", target)
      self._first = None
    elif not start < self._first < self._end <= num_steps:
      raise ValueError(
        f"--profile_steps is {self._first}:{self._end}, but this run goes from"
        f" step {start} to {num_steps} and its first step compiles; expected"
        f" steps within {start + 1}:{num_steps}: choose others, or leave the"
        " flag out."
      )

  def __enter__(self):
    """Ends a trace at the latest where this is left."""
    return self

  def __exit__(self, *error):
    if self._temporary is not None:
      self._finish()

  def run(self, step: int, function: Callable, *args: Any) -> Any:
    """function(*args), the step of that number."""
    if step == self._first and jax.process_index() == 0:
      with self._paused():
        jax.block_until_ready(args)
        self._temporary = tempfile.mkdtemp(prefix="marjax-profile-")
        jax.profiler.start_trace(self._temporary)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      result = function(*args)
    self._last = step
    if self._temporary is not None and step + 1 == self._end:
      jax.block_until_ready(result)
      with self._paused():
        self._finish()
    return result

  def _finish(self) -> None:
    source, self._temporary = Path(self._temporary), None
    target = self._folder / str(self._first)
    try:
      jax.profiler.stop_trace()
      move(source, target)
    except OSError as error:
      # Training is worth more than a trace of it.
      log.warning("no trace of steps: %s", error)
      return
    finally:
      shutil.rmtree(source, ignore_errors=True)
    log.info(HOW_TO_LOOK, self._first, self._last, target, self._folder)


def move(source: Path, target: AnyPath) -> None:
  """A folder, to where there is none; in a bucket file by file.

  Raises:
    OSError: it cannot be written there, or something is there.
  """
  files = [path for path in sorted(source.rglob("*")) if path.is_file()]
  if outputs.is_remote(target):
    for path in files:
      outputs.write(target / str(path.relative_to(source)), path.read_bytes())
    return
  whole = target.with_name(f".{target.name}")
  try:
    shutil.copytree(source, whole, dirs_exist_ok=True)
    whole.rename(target)
  except OSError as error:
    raise outputs.unwritable(target, error) from error
  finally:
    shutil.rmtree(whole, ignore_errors=True)
