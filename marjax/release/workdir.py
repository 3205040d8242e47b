"""Work directories of training runs: configuration and averaged weights.

1. A work directory holds config.json, the whole experiment, so it loads
   without any config file.
2. Of its checkpoints those count that were saved to the end: on this machine
   the others have another name, in a bucket they lack a marker.
3. The newest is checked against the list of files saved with it: names, sizes
   and hashes. In a bucket, where reading costs, only small files are hashed.
4. Only the averaged parameters are read, straight to where they will live, and
   looked through for NaN and infinity. Low-rank updates become a part of them.
"""

import dataclasses
import math
import os
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from marjax import arrays, outputs, schema
from marjax.experiment import Experiment
from marjax.layers import lora
from marjax.model import ModelConfig, param_shapes
from marjax.outputs import AnyPath
from marjax.parallel.rules import placed, shardings
from marjax.release import files
from marjax.release.card import Card
from marjax.release.json_files import read_json, write_json
from marjax.schema import Count, from_dict, printable

CONFIG = "config.json"

DATA = "data.json"
"""What the run read; see `marjax.data.contents`."""

FILES = "files.json"
"""The list, inside each checkpoint, of its files, their sizes and hashes."""

HASHED_REMOTE = 2**20
"""Bytes of the largest file that is hashed in a bucket."""

AUTOENCODER = "autoencoder"
"""A release in the work directory of a model trained on cached latents."""

MARKER = "commit_success.txt"
"""Orbax's last file of a checkpoint in a bucket, where nothing is renamed."""


@schema.config
class _Record:
  size: Count
  sha256: str | None = None


def card_of(
  experiment: Experiment, step: int = 0, class_names: tuple[str, ...] = ()
) -> Card:
  """What a released checkpoint of this experiment says of itself."""
  card = Card(
    name=experiment.name,
    codec=experiment.codec,
    model=experiment.model,
    sampling=experiment.sampling,
    autoencoder=AUTOENCODER if experiment.codec.has_params() else "",
    data=experiment.data,
    step=step,
  )
  if not card.num_classes or class_names == tuple(
    map(str, range(len(class_names)))
  ):
    return card  # just the numbers
  unnamed = [""] * (card.num_classes - len(class_names))
  return dataclasses.replace(card, class_names=(*class_names, *unnamed))


def load(
  directory: str | os.PathLike, mesh: jax.sharding.Mesh, verify: bool = True
) -> tuple[Card, PyTree]:
  """The card and the averaged parameters of the newest checkpoint.

  `verify`: False skips the hashes, not the sizes.

  Raises:
    FileNotFoundError: no such directory, or it has no checkpoint.
    ValueError: its configuration or its checkpoint is damaged.
    OSError: its bucket cannot be read.
  """
  directory = outputs.absolute(directory)
  experiment = read_experiment(directory)
  step = latest_step(directory / "checkpoints")
  if step is None:
    raise FileNotFoundError(
      f"{directory} has no checkpoint yet; train until one is saved, or name"
      " the work directory of a run that has saved one."
    )
  root = directory / "checkpoints" / str(step)
  if fault := damage(root, with_hashes=verify):
    raise ValueError(
      f"the checkpoint {root} is damaged: {fault}; {way_out(root)}."
    )
  updates = experiment.training.lora
  params = _read_params(root, abstract_params(experiment.model, mesh, updates))
  check_finite(params, root)
  if updates.rank:
    params = jax.jit(lora.merged, static_argnums=1)(params, updates)
  return card_of(experiment, step, class_names(directory)), params


def class_names(directory: AnyPath) -> tuple[str, ...]:
  """Names of the classes that a run was trained on; none if it kept none.

  Raises:
    ValueError: their file is damaged.
  """
  path = directory / DATA
  with outputs.reading(path):
    if not is_file(path):
      return ()
    content = path.read_bytes()
  mapping = read_json(content, str(path))
  try:
    return tuple(printable(str(part["name"])) for part in mapping["classes"])
  except (KeyError, TypeError):
    raise ValueError(
      f"{path} has no list of classes; restore it, or delete it to name classes"
      " by their numbers."
    ) from None


def is_file(path: AnyPath) -> bool:
  """Whether there is a file to read; reading a pipe would wait for ever."""
  return path.exists() if outputs.is_remote(path) else path.is_file()


def read_experiment(directory: str | os.PathLike) -> Experiment:
  """The experiment of a work directory; errors as in `load`."""
  path = outputs.path_of(directory) / CONFIG
  try:
    with outputs.reading(path):
      content = path.read_bytes()
  except FileNotFoundError:
    raise FileNotFoundError(
      f"{directory} is not a checkpoint: it has no config.json; expected the"
      " work directory of a training run."
    ) from None
  return parsed_config(content, path, Experiment)


def parsed_config(content: bytes, path: AnyPath, cls: type, cure: str = ""):
  """The dataclass in config.json; ValueError, with the cure, if there is none.

  `path`, `cure`: for the sentence.
  """
  try:
    return from_dict(cls, read_json(content, path.name), where=path.name)
  except ValueError as error:
    reason = str(error).rstrip(".")
    raise ValueError(
      f"{path} cannot be read as a configuration ({reason}); restore it{cure}."
    ) from None


def latest_step(checkpoints: AnyPath) -> int | None:
  """The newest complete step below a folder of checkpoints, if any."""
  return max(steps(checkpoints), default=None)


def steps(checkpoints: AnyPath) -> list[int]:
  """The complete steps, oldest first; OSError if a bucket cannot be read."""
  try:
    with outputs.reading(checkpoints):
      folders = [
        path
        for path in checkpoints.iterdir()
        if path.name.isdecimal()
        and (not outputs.is_remote(path) or (path / MARKER).exists())
      ]
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted(int(folder.name) for folder in folders)


def write_files(root: AnyPath, with_hashes: bool = True) -> None:
  """Lists the files of a checkpoint that is written but not yet renamed."""
  paths = [path for item in ("state", "data") for path in _below(root / item)]

  def record(path: AnyPath) -> dict[str, Any]:
    size = outputs.size(path)
    if size > _most_hashed(root, with_hashes):
      return {"size": size}
    return {"size": size, "sha256": files.sha256(path)}

  with ThreadPoolExecutor(files.NUM_HASHING) as pool:
    records = list(pool.map(record, paths))
  names = [path.relative_to(root).as_posix() for path in paths]
  listed = write_json(dict(zip(names, records, strict=True)))
  (root / FILES).write_bytes(listed)


def damage(
  root: AnyPath, with_hashes: bool = True, share: tuple[int, int] = (0, 1)
) -> str | None:
  """What is wrong with one checkpoint's files, None if nothing is.

  Args:
    root: the checkpoint. with_hashes: False compares the sizes only.
    share: (1, 4) looks at the second quarter of the files.
  """
  try:
    with outputs.reading(root):
      listed = read_json((root / FILES).read_bytes(), FILES)
      records = {name: _listed(record) for name, record in listed.items()}
  except (OSError, ValueError) as error:
    return f"{FILES} is missing or unreadable ({outputs.reason(error)})"
  first, count = share
  mine = dict(sorted(records.items())[first::count])
  return files.fault(root, mine, FILES, _most_hashed(root, with_hashes))


def _listed(record: Any) -> tuple[int, str | None]:
  """Size and hash of a file; older lists have a size alone."""
  mapping = record if isinstance(record, dict) else {"size": record}
  listed = from_dict(_Record, mapping, FILES)
  return listed.size, listed.sha256


def _most_hashed(root: AnyPath, with_hashes: bool) -> int | float:
  """Bytes of the largest file of a checkpoint that is hashed."""
  if not with_hashes:
    return -1
  return HASHED_REMOTE if outputs.is_remote(root) else math.inf


def _below(folder: AnyPath) -> Iterator[AnyPath]:
  """Every file below a folder."""
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _below(path)
    else:
      yield path


def way_out(root: AnyPath) -> str:
  """What to do about a checkpoint that cannot be used, as a command."""
  older = [step for step in steps(root.parent) if step < int(root.name)]
  goal = f"go on from step {older[-1]}" if older else "start again"
  move = "gcloud storage mv" if outputs.is_remote(root) else "mv"
  away = root.parent.parent / f"damaged-{root.name}"
  command = f"{move} {shlex.quote(str(root))} {shlex.quote(str(away))}"
  return f"restore its files, or move it away ({command}) to {goal}"


def check_finite(tree: PyTree, root: AnyPath) -> None:
  """Refuses NaN and infinity in what was read from a checkpoint."""
  if name := arrays.not_finite(tree):
    raise ValueError(
      f"the checkpoint {root} has NaN or infinity in {name}; {way_out(root)}."
    )


def abstract_params(
  config: ModelConfig,
  mesh: jax.sharding.Mesh,
  updates: lora.LoraConfig | None = None,
) -> PyTree:
  """Shapes, dtypes and shardings of a model's parameters.

  `updates`: with the factors of these.
  """
  boxed = param_shapes(config)
  if updates:
    boxed = jax.eval_shape(
      lambda tree: lora.added(tree, updates, jax.random.key(0)), boxed
    )
  return placed(nn.unbox(boxed), shardings(boxed, mesh))


def _read_params(root: AnyPath, abstract: PyTree) -> PyTree:
  import orbax.checkpoint as ocp

  target = {"ema_params": abstract}
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      restored = reader.restore(
        root / "state",
        args=ocp.args.PyTreeRestore(
          item=target,
          restore_args=ocp.checkpoint_utils.construct_restore_args(target),
          partial_restore=True,
        ),
      )
  except Exception as error:
    cause = outputs.reason(error)
    raise ValueError(
      f"the checkpoint {root} cannot be read ({cause}); {way_out(root)}."
    ) from None
  return restored["ema_params"]
