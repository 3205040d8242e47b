"""Photographs and drawn images, passed through a codebook and scored.

Cells with cross-entropy draw images that are made of codes, and such images
are no nearer to photographs than their codes are. So real test images, and what
cells with Diffusion Loss drew, are made of the same codes and scored as well:
then two losses are compared, and not two tokenizers.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments import scoreboard
from marjax.evaluate import archives, sets
from marjax.evaluate.seen import Chosen, Taken
from marjax.pipeline import Pipeline, load

ENDING = ", as codes"
"""Of the names of their rows."""


def add(
  board: scoreboard.Board, asked: scoreboard.Asked, cells: Iterable[str]
) -> None:
  """Adds the rows of OUT/images/CELL.npz and of real test images, if missing.

  The codes are OUT/codes; the images are written to OUT/coded.
  """
  pipe, chosen = load(asked.out / "codes"), {scoreboard.TEST: board.test}
  for cell in cells:
    path = asked.out / "images" / f"{cell}.npz"
    if path.exists():
      chosen[cell] = Taken().choose(sets.open_set(path), None)
  parts = {
    f"{name}{ENDING}": _coded(pipe, images, asked.out / "coded" / f"{name}.npz")
    for name, images in chosen.items()
  }
  scoreboard.add_controls(board, asked, parts)


def _coded(pipe: Pipeline, chosen: Chosen, path: Path) -> Chosen:
  """Those images as the pipeline's codec gives them back, in a file."""
  pairs = list(chosen.images.rows(chosen.indices))
  images = pipe.reconstruct(np.stack([image for image, _ in pairs]))
  labels = np.array([label for _, label in pairs])
  path.parent.mkdir(parents=True, exist_ok=True)
  archives.write(path, images.shape, [images], labels, overwrite=True)
  coded = Taken().choose(sets.open_set(path), None)
  # A cell that is trained anew has a file of the same name.
  coded.images.description += f", {zlib.crc32(images.tobytes()):08x}"
  return coded
