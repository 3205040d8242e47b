"""Samples while training: one picture per look, always of the same draws.

1. Twenty images, ten across, of classes spread over all there are, with their
   names below if the data has names.
2. The averaged parameters and the run's own sampling settings draw them, with
   one seed, so that pictures of two steps differ by the training in between.
3. With several processes all generate, each on its devices; the first writes.
4. A picture that fails, whatever the reason, is one line in the log: training
   goes on. Only if some processes generate and others cannot, they end.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from marjax import outputs
from marjax.backbone.classes import name_of
from marjax.experiment import Experiment
from marjax.layers.lora import merged
from marjax.parallel import hosts
from marjax.pipeline import Pipeline
from marjax.release import loading
from marjax.release import workdir as workdirs
from marjax.requests.compiled import Programs
from marjax.train.writers import Writer

log = logging.getLogger(__name__)

COLUMNS, ROWS = 10, 2


class Sampler:
  """Draws WORKDIR/samples/step_00001000.png, and hands it to the writer."""

  def __init__(
    self,
    experiment: Experiment,
    mesh: Mesh,
    workdir: outputs.AnyPath,
    writer: Writer,
    autoencoder: Callable[[], outputs.AnyPath | None] = lambda: None,
  ):
    """`autoencoder`: gives the release that decodes, if the codec has one."""
    self._experiment, self._mesh = experiment, mesh
    self._autoencoder = autoencoder
    self._folder, self._writer = workdir / "samples", writer
    self._codec_params, self._programs = None, Programs()

  def draw(self, step: int, ema_params: PyTree) -> None:
    """Generates and writes; blocks until both are done, or have failed."""
    attempt(
      f"picture of step {step}",
      lambda: self._generate(step, ema_params),
      lambda drawn: self._write(step, *drawn),
    )

  def _generate(
    self, step: int, ema_params: PyTree
  ) -> tuple[np.ndarray, list[str] | None]:
    if self._codec_params is None:
      self._codec_params = decoder(self._autoencoder, self._mesh)
    # A number that it multiplies by goes to the devices.
    with jax.transfer_guard("allow"):
      params = merged(ema_params, self._experiment.training.lora)
    pipe = Pipeline.of_experiment(
      self._experiment, params, self._mesh, step, self._codec_params
    )
    pipe = dataclasses.replace(pipe, programs=self._programs)
    # Moving labels and images is the purpose here, not an accident.
    with jax.transfer_guard("allow"):
      labels = sample_labels(pipe.card.num_classes)
      return pipe.generate(labels), self._captions(labels)

  def _captions(self, labels: list[int]) -> list[str] | None:
    """Names of the classes; none where they are numbers alone."""
    names = workdirs.class_names(self._folder.parent)
    if max(labels) < 0 or names == tuple(map(str, range(len(names)))):
      return None
    return [name_of(label, names) for label in labels]

  def _write(
    self, step: int, images: np.ndarray, captions: list[str] | None
  ) -> None:
    from marjax.requests import pictures

    scale = max(1, (96 if captions else 48) // images.shape[1])
    page = pictures.grid(images, COLUMNS, scale=scale, labels=captions)
    path = self._folder / f"step_{step:08}.png"
    pictures.save_png(path, page, overwrite=True)
    self._writer.write_images(step, {"samples": page[None]})


def attempt(
  what: str, make: Callable[[], Any], write: Callable[[Any], None]
) -> None:
  """Makes something in all processes and writes it in the first.

  A failure is a line in the log, unless only some processes failed.
  """
  failure = None
  try:
    result = make()
  except Exception as error:
    failure = error
  # Whether it failed in some processes and went well in others.
  if len({*hosts.gathered(failure is not None).tolist()}) > 1:
    raise failure or RuntimeError(f"another process failed at the {what}.")
  try:
    if failure:
      raise failure
    if jax.process_index() == 0:
      write(result)
  except Exception as error:
    reason = outputs.reason(error)
    log.warning("no %s (%s); training goes on", what, reason)


def decoder(
  autoencoder: Callable[[], outputs.AnyPath | None], mesh: Mesh
) -> PyTree:
  """Weights of the codec: of a release, or {} where it has none."""
  path = autoencoder()
  return loading.load(path, mesh).codec_params if path else {}


def sample_labels(num_classes: int) -> list[int]:
  """One class per column, spread evenly; -1 where there are none."""
  if not num_classes:
    return [-1] * (COLUMNS * ROWS)
  across = np.arange(COLUMNS) * max(num_classes, COLUMNS) // COLUMNS
  return [int(label) % num_classes for label in across] * ROWS
