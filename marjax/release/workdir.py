"""Work directories of training runs: configuration and averaged weights.

1. A work directory holds config.json, the whole experiment, so it loads
   without any config file.
2. Its newest checkpoint is checked against the list of files saved with it.
3. Only the averaged parameters are read, straight to where they will live.
"""

import json
import os
from pathlib import Path

import flax.linen as nn
import jax
from jaxtyping import PyTree

from marjax.experiment import Experiment
from marjax.model import ModelConfig, init_params
from marjax.parallel.mesh import shardings
from marjax.release.card import Card
from marjax.schema import from_dict

CONFIG = "config.json"

FILE_SIZES = "files.json"
"""The list, inside each checkpoint, of its files and their sizes."""


def card_of(experiment: Experiment, step: int = 0) -> Card:
  """What a released checkpoint of this experiment says of itself."""
  return Card(
    name=experiment.name,
    codec=experiment.codec,
    model=experiment.model,
    sampling=experiment.sampling,
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
  """
  directory = Path(directory).absolute()
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
  return card_of(experiment, step), params


def read_experiment(directory: str | os.PathLike) -> Experiment:
  """The experiment of a work directory; errors as in `load`."""
  path = Path(directory) / CONFIG
  if not path.is_file():
    raise FileNotFoundError(
      f"{directory} is not a checkpoint: it has no config.json; expected the"
      " work directory of a training run."
    )
  try:
    return from_dict(Experiment, json.loads(path.read_text()))
  except ValueError as error:
    raise ValueError(
      f"{path} cannot be read as a configuration ({error}); restore it."
    ) from None


def latest_step(checkpoints: Path) -> int | None:
  """The newest complete step below a folder of checkpoints, if any."""
  if not checkpoints.is_dir():
    return None
  names = (path.name for path in checkpoints.iterdir())
  return max((int(name) for name in names if name.isdecimal()), default=None)


def damage(root: Path) -> str | None:
  """What is wrong with one checkpoint's files, None if nothing is."""
  try:
    sizes = json.loads((root / FILE_SIZES).read_text())
    faults = (_fault(root / name, size) for name, size in sizes.items())
    return next(filter(None, faults), None)
  except (OSError, ValueError, AttributeError):
    return f"{FILE_SIZES} is missing or unreadable"


def _fault(path: Path, size: int) -> str | None:
  if not path.is_file():
    return f"{path.name} is missing"
  if path.stat().st_size != size:
    return f"{path.name} has {path.stat().st_size} bytes, expected {size}"
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


def _read_params(root: Path, abstract: PyTree) -> PyTree:
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
