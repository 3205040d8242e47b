"""Photographs made of the codes of a codebook.

Cells with cross-entropy draw images that are made of codes, and such images
are no nearer to photographs than their codes are. So what every cell drew is
made of the same codes, and judged against training images made of them, too:
then two losses are compared, and not two tokenizers. Test images made of them
are what can be reached.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments import judging, rows
from experiments.claims import AS_CODES
from marjax.evaluate.seen import Chosen
from marjax.evaluate.sets import ImageSet
from marjax.experiment import Experiment
from marjax.pipeline import load

TEST = f"{judging.TEST}, {AS_CODES}"
"""What rows of them call test images."""

AT_ONCE = 1000
"""Images that are made of codes at once."""


class Shown(judging.Changed):
  """Images of another set as a codebook shows them.

  Args:
    codes: the release of the codebook, whose name the description ends with.
  """

  def __init__(self, images: ImageSet, codes: Path):
    super().__init__(images, codes.name)
    self._codes = codes

  def rows(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Images and labels at ascending indices; the codes are read now."""
    pipe = load(self._codes)
    for start in range(0, len(indices), AT_ONCE):
      pairs = [*self.source.rows(indices[start : start + AT_ONCE])]
      shown = pipe.reconstruct(np.stack([image for image, _ in pairs]))
      yield from zip(shown, (label for _, label in pairs), strict=True)


def shown(chosen: Chosen, codes: Path) -> Chosen:
  """The same images of a set, made of codes."""
  return Chosen(Shown(chosen.images, codes), chosen.indices)


def photographs_of(row: rows.Row) -> str:
  """What the real images of a row are, whatever they are made of."""
  return row.get("real", "").partition(", codes-")[0]


def fit(experiment: Experiment, codes: Path) -> Path:
  """The release of an experiment's codes, fitted if missing.

  Another process that fits them is waited for.
  """
  from marjax.train import codebook

  with rows.locked(codes.with_suffix(".lock")):
    if not codes.exists():
      # Of all 50 000 images it would take longer than a training.
      few = codebook.Choices(num_images=5000, num_iterations=25)
      print(f"fitting {codes}", flush=True)
      codebook.fit(experiment.codec, experiment.data, codes, few)
  return codes
