"""Images of a row of `experiments.studies`, in the order that it asks for."""

import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.studies_plan import Asked
from marjax.evaluate import run
from marjax.generate.settings import Settings
from marjax.pipeline import Pipeline


def order_of(name: str, own: Int[np.ndarray, "N L"]) -> Int[np.ndarray, "N L"]:
  """Generation orders of that name; cells within a colour come as in `own`."""
  if name == "random":
    return own
  if name == "raster":
    return np.broadcast_to(np.arange(own.shape[1], dtype=own.dtype), own.shape)
  row, column = np.divmod(own, round(own.shape[1] ** 0.5))
  later = np.argsort((row + column) % 2, axis=1, kind="stable")
  return np.take_along_axis(own, later, axis=1)


class Drawn(NamedTuple):
  """Images of a cell [N, H, W, C], their labels [N], and how long it took."""

  images: np.ndarray
  labels: np.ndarray
  seconds: float


def draw(
  pipe: Pipeline, asked: Asked, settings: Settings, order: str, seed: int
) -> Drawn:
  """The images of a row."""
  labels = run.balanced_labels(asked.num_images, pipe.card.num_classes)
  how: dict[str, Any] = {"seed": seed}
  if order != "own":
    draws = pipe.draws(seed, len(labels))
    order = order_of(order, np.asarray(draws.order))
    how = {"draws": dataclasses.replace(draws, order=order)}
  start = time.monotonic()
  images = pipe.generate(
    labels, settings=settings, batch_size=asked.batch_size, progress=True, **how
  )
  return Drawn(images, labels, time.monotonic() - start)
