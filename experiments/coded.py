"""Photographs made of the codes of a codebook.

Cells with cross-entropy draw images that are made of codes, and such images
are no nearer to photographs than their codes are. So what cells with Diffusion
Loss drew, and real test images, are made of the same codes and scored as well:
then two losses are compared, and not two tokenizers.
"""

from pathlib import Path

import numpy as np

from experiments import judging, rows
from marjax.evaluate import archives, sets
from marjax.evaluate.seen import Chosen, Taken
from marjax.experiment import Experiment
from marjax.pipeline import load

NAME, TEST = "as codes", f"{judging.TEST}, as codes"
"""Of rows whose images were made of codes: in place of an order; as images."""


def fit(experiment: Experiment, codes: Path) -> Path:
  """The release of an experiment's codes, fitted if missing.

  Another process that fits them is waited for.
  """
  from marjax.train import codebook

  with rows.locked(codes.with_suffix(".lock")):
    if not codes.exists():
      # Of all 50 000 images it would take longer than a training.
      few = codebook.Choices(num_images=5000, num_iterations=25)
      codebook.fit(experiment.codec, experiment.data, codes, few)
  return codes


def shown(codes: Path, chosen: Chosen, file: Path) -> Chosen:
  """Those images as the codes show them, written to a file.

  Args:
    codes: the release of a codebook.
  """
  pairs = list(chosen.images.rows(chosen.indices))
  images = load(codes).reconstruct(np.stack([image for image, _ in pairs]))
  labels = np.array([label for _, label in pairs])
  file.parent.mkdir(parents=True, exist_ok=True)
  archives.write(file, images.shape, [images], labels, overwrite=True)
  made = Taken().choose(sets.open_set(file), None)
  made.images.description = f"{chosen.images.description}, {codes.name}"
  return made
