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
3. A claim writes config.json. Once there is a checkpoint, claims compare with
   it: what decides the numbers must be equal; what only decides how long, where
   and how often may change, and then config.json follows.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from marjax import outputs
from marjax.outputs import AnyPath
from marjax.release import workdir as workdirs
from marjax.schema import from_dict, to_dict

log = logging.getLogger(__name__)

FREE_KEYS = (
  "name",
  "data.data_dir",
  "data.accept",
  "data.num_threads",
  "training.log_every",
  "training.checkpoint_every",
  "training.keep_checkpoints",
  "training.sample_every",
  "training.log_ids",
  "sampling",
  "mesh",
)
"""Keys, or groups of keys, that may change between a run and its resumption."""

LENGTH_KEYS = ("training.num_steps", "training.total_epochs")
"""Free only where the learning rate does not depend on the run's length."""

_SHOWN_DIFFERENCES = 6


@contextlib.contextmanager
def claim_workdir(workdir: str | os.PathLike, experiment: Any) -> Iterator:
  """Holds the work directory for `experiment` while the context is open.

  Args:
    workdir: created when missing.
    experiment: a frozen dataclass, see `marjax.experiment`.

  Raises:
    ValueError: the directory was made with another configuration, or its
      config.json cannot be read.
    OSError: the directory cannot be written, or another process holds it.
  """
  workdir = outputs.path_of(workdir)
  if jax.process_index() == 0:
    with _locked(workdir):
      _write_or_compare(workdir, experiment)
      yield workdir
  else:
    yield workdir


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


def flatten(mapping: Mapping, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} → {"a.b": 1}; lists count as values."""
  flat = {}
  for key, value in mapping.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _write_or_compare(workdir: AnyPath, experiment: Any) -> None:
  path = workdir / "config.json"
  wanted = json.dumps(to_dict(experiment), indent=2) + "\n"
  if workdirs.latest_step(workdir / "checkpoints") is None:
    outputs.write(path, wanted.encode(), overwrite=True)
    return
  if not path.exists():
    raise FileNotFoundError(
      f"{workdir} has checkpoints but no config.json, so what they belong to"
      " is unknown; restore that file or choose another --workdir."
    )
  differences = _differences(_read_config(path, type(experiment)), wanted)
  changed = {key for key in differences if not _is_free(key, experiment)}
  if changed:
    raise ValueError(_refusal(workdir, sorted(changed), differences))
  if differences:
    log.info(
      "config.json follows: %s", _shown(sorted(differences), differences)
    )
    outputs.write(path, wanted.encode(), overwrite=True)


def _read_config(path: AnyPath, cls: type) -> str:
  try:
    stored = from_dict(cls, json.loads(path.read_text()), where=path.name)
  except ValueError as error:
    raise ValueError(
      f"{path} cannot be read as a configuration ({error}); restore it or"
      " choose another --workdir."
    ) from None
  return json.dumps(to_dict(stored))


def _differences(stored: str, wanted: str) -> dict[str, tuple]:
  """Key → (value in the work directory, value asked for), as JSON has them."""
  there, here = flatten(json.loads(stored)), flatten(json.loads(wanted))
  return {
    key: (there.get(key), here.get(key))
    for key in there.keys() | here.keys()
    if there.get(key) != here.get(key)
  }


def _is_free(key: str, experiment: Any) -> bool:
  if key in LENGTH_KEYS:
    return experiment.training.schedule == "constant"
  return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def _shown(keys: list[str], differences: dict[str, tuple]) -> str:
  shown = [
    f"{key} is {differences[key][0]!r} there and {differences[key][1]!r} here"
    for key in keys[:_SHOWN_DIFFERENCES]
  ]
  if len(keys) > _SHOWN_DIFFERENCES:
    shown.append(f"and {len(keys) - _SHOWN_DIFFERENCES} more")
  return ", ".join(shown)


def _refusal(workdir: AnyPath, keys: list[str], differences: dict) -> str:
  return (
    f"{workdir} was made with another configuration: "
    f"{_shown(keys, differences)}; use that configuration or another --workdir."
  )
