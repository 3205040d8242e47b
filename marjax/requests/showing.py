"""Images as people look at them: of PIL, in one grid, in a file.

They are functions on arrays: what `generate` gives is uint8 [N, H, W, C] and
nothing else, so that slices, sums and copies of it are what numpy makes of
them. A class of arrays would have to say what its own sums mean.
"""

import io
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from marjax import outputs
from marjax.arrays import numbers
from marjax.schema import check

if typing.TYPE_CHECKING:
  from PIL import Image

FORMATS = (".png", ".npy", ".npz")
"""Endings of files of images."""

MOST_COLUMNS = 10
LEGIBLE = 64
"""Pixels per side up to which small images are enlarged in a grid."""


def to_pil(images: Any) -> list["Image.Image"]:
  """N images of PIL, of mode RGB, or L where C is 1.

  Args:
    images: uint8 [N, H, W, C], [H, W, C] or [H, W].

  Raises:
    ValueError: another type or shape.
  """
  from PIL import Image

  return [
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    for image in _batch(images)
  ]


def grid(
  images: Any,
  labels: Sequence | np.ndarray | None = None,
  *,
  columns: int | None = None,
  scale: int | None = None,
) -> "Image.Image":
  """One picture of all images, in reading order; notebooks show it.

  Args:
    images: as `to_pil` takes them. labels: N captions.
    columns: images per row; None for up to ten.
    scale: each pixel becomes scale × scale; None enlarges those below 64.

  Raises:
    ValueError: another type or shape, or captions that do not count up.
  """
  from PIL import Image

  from marjax.requests import pictures

  batch = _batch(images)
  page = pictures.grid(
    batch,
    min(MOST_COLUMNS, len(batch)) if columns is None else columns,
    scale=scale or max(1, LEGIBLE // batch.shape[1]),
    labels=labels,
  )
  return Image.fromarray(page)


def save(
  images: Any,
  path: str | outputs.AnyPath,
  labels: Sequence | np.ndarray | None = None,
  *,
  overwrite: bool = False,
  arrays: Mapping[str, Any] | None = None,
) -> None:
  """Writes images as the file's name asks for, whole or not at all.

  Args:
    images: as `to_pil` takes them.
    path: .png for a grid, .npy for the array, .npz for `images` and more.
    labels: captions of a grid.
    overwrite: replace the file. arrays: further arrays of a .npz file.

  Raises:
    ValueError: another ending, images of another kind.
    FileExistsError: the file exists and `overwrite` is false.
  """
  from marjax.requests import pictures

  path, batch, buffer = check_path(path), _batch(images), io.BytesIO()
  ending = path.suffix.lower()
  if ending == ".png":
    pictures.save_png(path, np.asarray(grid(batch, labels)), overwrite)
    return
  if ending == ".npy":
    np.save(buffer, batch)
  else:
    np.savez(buffer, images=batch, **arrays or {})
  outputs.write(path, buffer.getvalue(), overwrite)


def check_path(path: str | outputs.AnyPath, name: str = "path"):
  """The path of a file of images, whose ending says its format."""
  path = outputs.path_of(path)
  check(
    path.suffix.lower() in FORMATS,
    f"{name} is {path}; expected a name that ends in {', '.join(FORMATS)}.",
  )
  return path


def _batch(images: Any) -> np.ndarray:
  """uint8 [N, H, W, C], N at least 1, C = 1 or 3."""
  expected = "uint8 [N, H, W, C], as generate gives them"
  array = numbers(images, "images", expected)
  shape = array.shape
  if array.ndim == 2:
    array = array[..., None]
  array = array[None] if array.ndim == 3 else array
  check(
    array.dtype == np.uint8
    and array.ndim == 4
    and array.shape[-1] in (1, 3)
    and array.size > 0,
    f"images are {array.dtype} of shape {shape}; expected {expected}, with 1"
    " or 3 channels.",
  )
  return array
