"""Statistics of real images: what Fréchet distances compare with, as a file.

The images go once through the network (`marjax.evaluate.seen`); the file has
their moments, and says what made them: network and hash of its weights, source,
crop, count, and a hash of the pixels. It may have some of the images too.
"""

from pathlib import Path

import numpy as np

from marjax import outputs
from marjax.evaluate.scores import statistics
from marjax.evaluate.seen import Eye, Place, Taken, check_shape, look
from marjax.schema import check


def write(
  images: Place,
  eye: Eye,
  out: Path,
  taken: Taken | None = None,
  num_samples: int = 0,
  overwrite: bool = False,
  progress: bool = False,
) -> statistics.Statistics:
  """Writes the statistics of real images to an .npz, and returns them.

  Args:
    num_samples: images that are put into the file, for precision and recall.

  Raises:
    FileExistsError: `out` exists and `overwrite` is false. FileNotFoundError,
      ValueError: see the module.
  """
  taken = taken or Taken()
  outputs.check_free([out], overwrite)
  opened = taken.open(images)
  chosen = taken.choose(opened, taken.num_images)
  check_shape(opened.shape, opened.description, eye)
  needs = {"moments"} | ({"spatial"} if eye.network.num_places else set())
  check(
    len(chosen.indices) >= eye.network.num_features or eye.options.allow_few,
    f"there are {len(chosen.indices)} images for statistics of"
    f" {eye.network.num_features} features of the network {eye.network.name};"
    " expected as many images or more: take more, or set allow_few.",
  )
  samples = taken.choose(opened, num_samples) if num_samples else None
  seen = look(chosen, eye, frozenset(needs), taken, "real", progress)
  height, width, _ = opened.shape
  made = statistics.of_gathered(
    seen.gathered,
    weights=eye.digest,
    source=f"{seen.about['source']}, {len(chosen.indices)} taken, sha256"
    f" {seen.about['pixels_sha256']} of their pixels",
    crop=opened.crop,
    image_size=height if height == width else 0,
  )
  arrays = samples and np.stack([row for row, _ in opened.rows(samples[1])])
  statistics.write(out, made, arrays, overwrite)
  return made
