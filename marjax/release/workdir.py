"""Work directories of training runs: configuration and averaged weights.

1. A work directory holds config.json, the whole experiment, so it loads
   without any config file.
2. Of its checkpoints those count that were saved to the end: on this machine
   the others have another name, in a bucket they lack a marker.
3. The newest is checked against the list of files saved with it.
4. Only the averaged parameters are read, straight to where they will live.
"""

import json
import os

import flax.linen as nn
import jax
from jaxtyping import PyTree

from marjax import outputs
from marjax.experiment import Experiment
from marjax.latents.kl import KLConfig
from marjax.model import ModelConfig, init_params
from marjax.outputs import AnyPath
from marjax.parallel.rules import shardings
from marjax.release.card import Card
from marjax.schema import from_dict, read_json

CONFIG = "config.json"

DATA = "data.json"
"""What the run read; see `marjax.data.contents`."""

FILE_SIZES = "files.json"
"""The list, inside each checkpoint, of its files and their sizes."""

AUTOENCODER = "autoencoder"
"""A release in the work directory of a model trained on cached latents."""

MARKER = "commit_success.txt"
"""Orbax's last file of a checkpoint in a bucket, where nothing is renamed."""


def card_of(
  experiment: Experiment, step: int = 0, class_names: tuple[str, ...] = ()
) -> Card:
  """What a released checkpoint of this experiment says of itself."""
  return Card(
    class_names=_one_each(class_names, experiment.model.backbone.num_classes),
    name=experiment.name,
    codec=experiment.codec,
    model=experiment.model,
    sampling=experiment.sampling,
    autoencoder=AUTOENCODER if isinstance(experiment.codec, KLConfig) else "",
    data=experiment.data,
    step=step,
  )


def load(
  directory: str | os.PathLike, mesh: jax.sharding.Mesh
) -> tuple[Card, PyTree]:
  """The card and the averaged parameters of the newest checkpoint.

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
  fault = damage(root)
  if fault:
    raise ValueError(
      f"the checkpoint {root} is damaged: {fault}; restore its files, or move"
      " it away to use an older one."
    )
  params = _read_params(root, abstract_params(experiment.model, mesh))
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
    return tuple(str(part["name"]) for part in mapping["classes"])
  except (KeyError, TypeError):
    raise ValueError(
      f"{path} has no list of classes; restore it, or delete it to name classes"
      " by their numbers."
    ) from None


def is_file(path: AnyPath) -> bool:
  """Whether there is a file to read; reading a pipe would wait for ever."""
  return path.exists() if outputs.is_remote(path) else path.is_file()


def _one_each(names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
  """A name, perhaps "", for each class; none if they are just the numbers."""
  if not num_classes or names == tuple(map(str, range(len(names)))):
    return ()
  return (*names, *[""] * (num_classes - len(names)))


def read_experiment(directory: str | os.PathLike) -> Experiment:
  """The experiment of a work directory; errors as in `load`."""
  path = outputs.path_of(directory) / CONFIG
  try:
    with outputs.reading(path):
      text = path.read_text()
  except FileNotFoundError:
    raise FileNotFoundError(
      f"{directory} is not a checkpoint: it has no config.json; expected the"
      " work directory of a training run."
    ) from None
  try:
    return from_dict(Experiment, json.loads(text))
  except ValueError as error:
    raise ValueError(
      f"{path} cannot be read as a configuration ({error}); restore it."
    ) from None


def latest_step(checkpoints: AnyPath) -> int | None:
  """The newest complete step below a folder of checkpoints, if any."""
  return max(steps(checkpoints), default=None)


def steps(checkpoints: AnyPath) -> list[int]:
  """The complete steps, oldest first; OSError if a bucket cannot be read."""
  try:
    with outputs.reading(checkpoints):
      folders = [path for path in checkpoints.iterdir() if _is_complete(path)]
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted(int(folder.name) for folder in folders)


def _is_complete(folder: AnyPath) -> bool:
  if not folder.name.isdecimal():
    return False
  return not outputs.is_remote(folder) or (folder / MARKER).exists()


def damage(root: AnyPath) -> str | None:
  """What is wrong with one checkpoint's files, None if nothing is."""
  try:
    with outputs.reading(root):
      sizes = json.loads((root / FILE_SIZES).read_text())
      faults = (_fault(root / name, size) for name, size in sizes.items())
      return next(filter(None, faults), None)
  except (OSError, ValueError, AttributeError):
    return f"{FILE_SIZES} is missing or unreadable"


def _fault(path: AnyPath, size: int) -> str | None:
  try:
    found = outputs.size(path)
  except (FileNotFoundError, NotADirectoryError):
    return f"{path.name} is missing"
  if found != size:
    return f"{path.name} has {found} bytes, expected {size}"
  return None


def abstract_params(config: ModelConfig, mesh: jax.sharding.Mesh) -> PyTree:
  """Shapes, dtypes and shardings of a model's parameters."""
  boxed = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    nn.unbox(boxed),
    shardings(boxed, mesh),
  )


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
    cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise ValueError(
      f"the checkpoint {root} cannot be read ({cause}); restore its files, or"
      " move it away to use an older one."
    ) from None
  return restored["ema_params"]
