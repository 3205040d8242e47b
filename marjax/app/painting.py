"""Pictures to and from a page: enlarged, painted on, uploaded, downloaded.

Pictures are enlarged by whole factors, so that what is painted on one of 8
pixels can be seen, and is known by the pixels of the model.
"""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from marjax.data import crops, decoding
from marjax.requests import showing
from marjax.schema import check

SHOWN = 512
"""Pixels per side that pictures are enlarged to, at most."""

FAR = 16
"""Levels of 255 by which two pictures differ on average, if they do."""


def scale_of(side: int, num_images: int = 1) -> int:
  """How much images of that side are enlarged, to fit in SHOWN together."""
  return max(1, SHOWN // (side * math.ceil(math.sqrt(num_images))))


def page_of(images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "h w 3"]:
  """Images in a square, enlarged."""
  columns = math.ceil(math.sqrt(len(images)))
  scale = scale_of(images.shape[1], len(images))
  return np.asarray(showing.grid(images, columns=columns, scale=scale))


def canvas_of(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w 3"]:
  """An image as it is painted on, enlarged."""
  scale = scale_of(len(image))
  large = image.repeat(scale, axis=0).repeat(scale, axis=1)
  return np.broadcast_to(large, (*large.shape[:2], 3))


def mask_of(
  editor: dict[str, Any] | None, image: UInt8[np.ndarray, "H H C"]
) -> Bool[np.ndarray, "H H"]:
  """Which pixels of an image were touched by what was painted on its canvas.

  Args:
    editor: `background` and `layers`, RGBA, from the browser. image: the one
      that was given there.

  Raises:
    ValueError: nothing was painted, or another picture is there.
  """
  canvas, side, scale = canvas_of(image), len(image), scale_of(len(image))
  seen = (editor or {}).get("background")
  check(
    seen is not None
    and seen.shape[:2] == canvas.shape[:2]
    # Browsers may round colours, or fit them to the screen.
    and float(np.abs(seen[..., :3] - canvas.astype(int)).mean()) < FAR,
    "what was painted on is not the picture to edit; expected that: take or"
    " upload it again.",
  )
  mask = np.zeros((side, side), bool)
  for layer in editor["layers"]:
    alpha = layer[..., -1].reshape(side, scale, side, scale)
    mask |= (alpha > 127).any((1, 3))
  check(
    bool(mask.any()),
    "nothing is painted; expected some: paint where to draw anew.",
  )
  return mask


def read_upload(
  path: str, side: int, channels: int
) -> UInt8[np.ndarray, "side side C"]:
  """The middle square of an image file, as training reads it.

  Raises:
    ValueError: it cannot be decoded, or is refused; says why.
  """
  mode = "L" if channels == 1 else "RGB"
  # The folder in which an upload lies says nothing to people.
  with decoding.naming(Path(path).name):
    return crops.centre_crop(decoding.decode(path, mode), side)


def write_files(folder: str, **images: np.ndarray) -> list[str]:
  """PNG files, each of its name, in a new folder; their paths."""
  folder = tempfile.mkdtemp(dir=folder)
  paths = [os.path.join(folder, f"{name}.png") for name in images]
  for image, path in zip(images.values(), paths, strict=True):
    showing.to_pil(image)[0].save(path)
  return paths


def numbered(name: str, images: np.ndarray) -> dict[str, Any]:
  """NAME_0, NAME_1, ...: one for each image."""
  return {f"{name}_{i}": image for i, image in enumerate(images)}
