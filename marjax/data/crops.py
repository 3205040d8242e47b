"""The published crop: a square from the middle of an image of any size.

1. While the shorter side is at least twice the wanted size, halve both sides
   with a box filter: it averages, so nothing aliases.
2. One bicubic resize makes the shorter side exactly the wanted size.
3. Cut the middle square out.

Channels are independent, so they are resized one by one, and any number will
do. RGB goes through as a whole, which gives the same bits in two thirds of the
time.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from marjax.data.decoding import check_sides


def centre_crop(
  image: UInt8[np.ndarray, "height width C"], size: int
) -> UInt8[np.ndarray, "size size C"]:
  """The square, uint8 [size, size, C]; an image of that size is untouched.

  Raises:
    ValueError: sides that `decoding` refuses, too.
  """
  if image.shape[:2] == (size, size):
    return image
  check_sides(image.shape[1], image.shape[0])
  if image.shape[-1] == 3:
    resized = _resized(Image.fromarray(image), size)
  else:
    planes = [
      _resized(Image.fromarray(np.ascontiguousarray(plane)), size)
      for plane in np.moveaxis(image, -1, 0)
    ]
    resized = np.stack(planes, axis=-1)
  top, left = ((side - size) // 2 for side in resized.shape[:2])
  return resized[top : top + size, left : left + size]


def _resized(picture: Image.Image, size: int) -> np.ndarray:
  """Its shorter side `size` pixels long."""
  while min(picture.size) >= 2 * size:
    half = tuple(side // 2 for side in picture.size)
    picture = picture.resize(half, Image.Resampling.BOX)
  scale = size / min(picture.size)
  wanted = tuple(round(side * scale) for side in picture.size)
  return np.asarray(picture.resize(wanted, Image.Resampling.BICUBIC))
