"""A work directory: everything one training run leaves behind.

    WORKDIR/config.json                  the experiment, as configured
    WORKDIR/data.json                    what was read; see `data.contents`
    WORKDIR/checkpoints/STEP/state       parameters, averages, optimizer
    WORKDIR/checkpoints/STEP/data        position in the data
    WORKDIR/metrics.jsonl                one line per reported step
    WORKDIR/events.out.tfevents.*        the same for TensorBoard
    WORKDIR/samples/step_00001000.png    drawn while training

1. It may be in a bucket: gs://BUCKET/NAME.
2. `claim_workdir` takes the directory for one process: two runs in one
   directory would delete each other's unfinished saves. A bucket has no locks,
   so there it is up to the user.
3. It must be new, empty or a work directory already: nothing is ever trained
   inside a release, a cache or a folder of something else.
4. A claim writes config.json. Once there is a checkpoint, claims compare with
   it: what decides the numbers must be equal; what CHANGES lets change may, and
   then config.json follows.
5. A run that stops at a number that is not finite leaves stopped.json, which
   lets the next claim change what may mend that. The first checkpoint saved
   after it deletes it.
"""

import contextlib
import fnmatch
import json
import logging
import os
import shlex
from collections.abc import Iterator
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from marjax import outputs
from marjax.outputs import AnyPath
from marjax.release import kinds
from marjax.release import workdir as workdirs
from marjax.release.card import MANIFEST
from marjax.release.json_files import read_json, write_json
from marjax.schema import check, to_dict

log = logging.getLogger(__name__)

MAY_CHANGE = "may change"
MAY_GROW = "may grow, or shrink to the steps done"
STOPPED = "may change after a stop at a number that is not finite"

CHANGES = {
  "name": MAY_CHANGE,
  "data.data_dir": MAY_CHANGE,
  "data.accept": MAY_CHANGE,
  "data.test_split": MAY_CHANGE,
  "data.num_threads": MAY_CHANGE,
  "model.backbone.remat": MAY_CHANGE,
  "training.num_microbatches": MAY_CHANGE,
  "training.log_every": MAY_CHANGE,
  "training.log_ids": MAY_CHANGE,
  "training.sample_every": MAY_CHANGE,
  "training.evaluate_every": MAY_CHANGE,
  "evaluation.*": MAY_CHANGE,
  "training.checkpoint_every": MAY_CHANGE,
  "training.keep_checkpoints": MAY_CHANGE,
  "training.checksums": MAY_CHANGE,
  "sampling.*": MAY_CHANGE,
  "mesh.*": MAY_CHANGE,
  "training.num_steps": MAY_GROW,
  "training.total_epochs": MAY_GROW,
  "training.base_learning_rate": STOPPED,
  "training.learning_rate": STOPPED,
  "training.warmup_steps": STOPPED,
  "training.warmup_epochs": STOPPED,
  "training.clip_norm": STOPPED,
  "training.init_*": "fixed: the first step started from there",
  "training.factors": "fixed: what is frozen has no optimizer state",
  "training.lora.*": "fixed: the updates have its shapes",
  "training.*": "fixed: it decides what a step computes",
  "model.*": "fixed: the weights have its shapes",
  "codec.*": "fixed: it decides what tokens mean",
  "data.*": "fixed: it decides which images make a step",
  "seed": "fixed: all that is random comes from it",
}
"""Pattern of keys → may they differ when a run goes on? The first one counts.

Nothing that may change always changes a number but for rounding: sums over
parts of a batch or over other devices run in another order.
"""

STOP = "stopped.json"

_SHOWN_DIFFERENCES = 6


@contextlib.contextmanager
def claim_workdir(workdir: str | os.PathLike, experiment: Any) -> Iterator:
  """Holds the work directory for `experiment` while the context is open.

  Args:
    workdir: created when missing.
    experiment: a frozen dataclass, see `marjax.experiment`.

  Raises:
    ValueError: the directory is something else, was made with another
      configuration, or its config.json cannot be read.
    OSError: the directory cannot be written, or another process holds it.
  """
  workdir = outputs.path_of(workdir)
  if jax.process_index() > 0:
    yield workdir
    return
  _refuse_others(workdir)
  with _locked(workdir):
    _write_or_compare(workdir, experiment)
    try:
      yield workdir
    except FloatingPointError as error:
      note = write_json({"why": str(error)})
      with contextlib.suppress(OSError):  # the first error tells more
        outputs.write(workdir / STOP, note, overwrite=True)
      raise


def forget_stop(workdir: AnyPath) -> None:
  """After a checkpoint: the run has gone on since it stopped, if ever."""
  path = workdir / STOP
  if jax.process_index() == 0 and path.exists():
    path.unlink(missing_ok=True)
    log.info("%s is deleted: the run has gone on", path)


def _refuse_others(workdir: AnyPath) -> None:
  """Refuses a folder that is neither new nor empty nor a work directory."""
  if outputs.is_remote(workdir):
    with outputs.reading(workdir):
      is_release = (workdir / MANIFEST).exists()
    kind = kinds.RELEASE if is_release else kinds.WORKDIR
  else:
    kind = kinds.kind_of(workdir)
  if kind in (kinds.NOTHING, kinds.EMPTY, kinds.WORKDIR):
    return
  if kind == kinds.HALF_WORKDIR and workdirs.steps(workdir / "checkpoints"):
    return  # told with what to do, where configurations are compared
  if kind == kinds.FILE:
    raise NotADirectoryError(
      f"{workdir} is a file, so the work directory cannot be written; choose"
      " another --workdir."
    )
  message = (
    f"{workdir} is {kind}; expected a new or empty folder, or the work"
    " directory of this run: choose another --workdir"
  )
  if kinds.RELEASE in kind:
    start = f"--init {shlex.quote(str(workdir))}"
    message += f", with {start} to start from its weights"
  raise ValueError(f"{message}.")


@contextlib.contextmanager
def _locked(workdir: AnyPath) -> Iterator[None]:
  """Makes the directory and keeps other processes out of it."""
  if outputs.is_remote(workdir):
    log.info("no lock on %s: let no other run use it", workdir)
    yield
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = open(workdir / ".lock", "w")
  except OSError as error:
    raise type(error)(
      f"the work directory {workdir} cannot be written: {error.strerror};"
      " choose another with --workdir."
    ) from None
  with lock:
    if not outputs.lock(lock, workdir):
      raise BlockingIOError(
        f"another process is training in {workdir}; wait for it or choose"
        " another --workdir."
      )
    yield


def check_length(num_steps: int, done: int, workdir: AnyPath) -> None:
  """Refuses to end before the steps that are done.

  Raises:
    ValueError: so few steps.
  """
  check(
    num_steps >= done,
    f"training ends after {num_steps} steps, and {workdir} has done {done};"
    f" expected at least {done}: raise training.num_steps or"
    " training.total_epochs, or choose another --workdir.",
  )


def note_digest(workdir: AnyPath, experiment: Any, digest: str) -> None:
  """Writes into config.json which weights the first step starts from."""
  if jax.process_index() == 0:
    mapping = to_dict(experiment)
    mapping["training"]["init_digest"] = digest
    path = workdir / workdirs.CONFIG
    outputs.write(path, write_json(mapping, indent=2), overwrite=True)


def _write_or_compare(workdir: AnyPath, experiment: Any) -> None:
  path = workdir / workdirs.CONFIG
  wanted = to_dict(experiment)
  done = workdirs.latest_step(workdir / "checkpoints")
  if not path.exists():
    if done is not None:
      raise FileNotFoundError(
        f"{workdir} has checkpoints but no config.json, so what they belong to"
        " is unknown; restore that file or choose another --workdir."
      )
    outputs.write(path, write_json(wanted, indent=2))
    return
  # Also before the first checkpoint: it may be another program's file.
  stored = _read_config(path, type(experiment))
  if done is not None and not wanted["training"].get("init_digest", "-"):
    wanted["training"]["init_digest"] = stored["training"]["init_digest"]
  differences = _differences(stored, wanted)
  changed = {key for key in differences if not _is_free(key, workdir)}
  if changed and done is not None:
    raise ValueError(_refusal(workdir, sorted(changed), differences))
  if done is not None:
    check_length(wanted["training"].get("num_steps") or done, done, workdir)
  if differences:
    if done is not None:
      log.info(
        "config.json follows: %s", _shown(sorted(differences), differences)
      )
    outputs.write(path, write_json(wanted, indent=2), overwrite=True)


def _read_config(path: AnyPath, cls: type) -> dict[str, Any]:
  with outputs.reading(path):
    content = path.read_bytes()
  cure = " or choose another --workdir"
  return to_dict(workdirs.parsed_config(content, path, cls, cure))


def _differences(stored: dict, wanted: dict) -> dict[str, tuple]:
  """Key → (value in the work directory, value asked for), as JSON has them."""
  there, here = (
    flatten_dict(json.loads(json.dumps(mapping)), sep=".")
    for mapping in (stored, wanted)
  )
  return {
    key: (there.get(key), here.get(key))
    for key in there.keys() | here.keys()
    if there.get(key) != here.get(key)
  }


def rule(key: str) -> str:
  """What `CHANGES` says of a key, such as "training.num_steps"."""
  rules = (
    rule for name, rule in CHANGES.items() if fnmatch.fnmatchcase(key, name)
  )
  return next(rules, "fixed: nothing is known of it")


def _is_free(key: str, workdir: AnyPath) -> bool:
  own = rule(key)
  return own in (MAY_CHANGE, MAY_GROW) or (
    own == STOPPED and _has_stopped(workdir)
  )


def _has_stopped(workdir: AnyPath) -> bool:
  path = workdir / STOP
  return path.exists() and "why" in read_json(path.read_bytes(), str(path))


def _shown(keys: list[str], differences: dict[str, tuple]) -> str:
  shown = [
    f"{key} is {differences[key][0]!r} there and {differences[key][1]!r} here"
    for key in keys[:_SHOWN_DIFFERENCES]
  ]
  if len(keys) > _SHOWN_DIFFERENCES:
    shown.append(f"and {len(keys) - _SHOWN_DIFFERENCES} more")
  return ", ".join(shown)


def _refusal(workdir: AnyPath, keys: list[str], differences: dict) -> str:
  back = " ".join(
    shlex.quote(f"--config.{key}={differences[key][0]}")
    for key in keys[:_SHOWN_DIFFERENCES]
  )
  return (
    f"{workdir} was made with another configuration: "
    f"{_shown(keys, differences)} ({rule(keys[0])}); use that configuration"
    f" ({back}) or another --workdir. What may change: {may_change()}."
  )


def may_change() -> str:
  """The table of what may change, in words."""
  return "; ".join(
    f"{own}: {', '.join(key for key in CHANGES if CHANGES[key] == own)}"
    for own in (MAY_CHANGE, MAY_GROW, STOPPED)
  )
