"""Images uint8 of any size → the size that a network was made for.

1. `tf1` is TensorFlow 1's bilinear rule, by which every published FID was
   computed: no half-pixel centres, no antialiasing. Row r of the result lies at
   r · (in / out); what is between two rows is mixed, and the last row repeats.

       0 ──── 10        in:  2 columns         0    5    10   10
                        out: 4 columns         (half-pixel centres, as elsewhere
                                               today: 0  2.5  7.5  10)

2. `smooth` is today's bilinear rule, half-pixel centres and antialiasing when
   shrinking, for networks that no published score hangs on.
3. `bicubic` is Pillow's on uint8, bit for bit: columns first, then rows, with
   weights of 22 bits, each result rounded to uint8 as Pillow stores it. (Since
   Pillow 13 rows come first where they shrink more than columns do.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped, UInt8

from marjax.evaluate.networks.layers import HIGHEST
from marjax.schema import check

AnyArray = Array | np.ndarray
Pictures = UInt8[AnyArray, "B H W C"]
Pixels = Float32[Array, "B rows columns C"]

_BITS = 22  # of a weight in Pillow's integers


def rgb(images: Shaped[AnyArray, "B H W C"]) -> UInt8[AnyArray, "B H W 3"]:
  """Grey images three times; ValueError for other channels or numbers."""
  check(
    images.dtype == jnp.uint8,
    f"images are {images.dtype}; expected uint8 of 0 to 255, as they are saved:"
    " round them first.",
  )
  channels = images.shape[-1]
  check(
    channels in (1, 3),
    f"images have {channels} channels; expected 3, RGB, or 1, grey: convert"
    " them before.",
  )
  return images if channels == 3 else jnp.repeat(images, 3, axis=-1)


def tf1(images: Pictures, size: int) -> Pixels:
  """[B, size, size, C] of 0 to 255 by the module's first rule."""
  x = jnp.asarray(images, jnp.float32)
  for axis in (2, 1):
    low, high, share = _tf1_grid(x.shape[axis], size)
    before, after = (jnp.take(x, at, axis=axis) for at in (low, high))
    across = (1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1)
    x = before + (after - before) * share.reshape(across)
  return x


def smooth(images: Pictures, size: int) -> Pixels:
  """[B, size, size, C] of 0 to 255 by the module's second rule."""
  batch, _, _, channels = images.shape
  shape = (batch, size, size, channels)
  x = jnp.asarray(images, jnp.float32)
  return jax.image.resize(x, shape, "bilinear", precision=HIGHEST)


def bicubic(
  images: Pictures, rows: int, columns: int
) -> UInt8[Array, "B rows columns C"]:
  """[B, rows, columns, C] by the module's third rule."""
  x = jnp.asarray(images)
  for axis, size in ((2, columns), (1, rows)):
    if x.shape[axis] == size:
      continue
    places, weights = _bicubic_grid(x.shape[axis], size)
    across = (1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1)
    total = jnp.int32(2 ** (_BITS - 1))
    for at, weight in zip(places.T, weights.T, strict=True):
      cells = jnp.take(x, at, axis=axis).astype(jnp.int32)
      total = total + cells * weight.reshape(across)
    x = jnp.clip(total >> _BITS, 0, 255).astype(jnp.uint8)
  return x


def centre_square(
  images: Pictures,
) -> UInt8[AnyArray, "B side side C"]:
  """The middle of each image, as wide as its shorter side."""
  height, width = images.shape[1:3]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return images[:, top : top + side, left : left + side]


@functools.cache
def _tf1_grid(size: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The cell before and after each new one, and the share of the second."""
  scale = np.float32(size) / np.float32(new)
  at = np.arange(new, dtype=np.float32) * scale
  low = np.floor(at).astype(np.int32)
  high = np.minimum(low + 1, size - 1)
  return low, high, at - low.astype(np.float32)


@functools.cache
def _bicubic_grid(size: int, new: int) -> tuple[np.ndarray, np.ndarray]:
  """Cells [new, taps] and their integer weights, 0 for those off the axis."""
  scale = size / new
  stretch = max(scale, 1.0)
  support = 2.0 * stretch
  centre = (np.arange(new) + 0.5) * scale
  first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
  last = np.minimum((centre + support + 0.5).astype(np.int64), size)
  cells = first[:, None] + np.arange(int(np.ceil(support)) * 2 + 1)
  is_used = cells < last[:, None]
  weights = _cubic((cells - centre[:, None] + 0.5) / stretch) * is_used
  weights /= weights.sum(axis=1, keepdims=True)
  whole = weights * 2**_BITS
  whole = np.trunc(whole + np.copysign(0.5, whole)).astype(np.int32)
  return np.minimum(cells, size - 1).astype(np.int32), whole


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys's kernel with a = -1/2."""
  x, a = np.abs(x), -0.5
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))
