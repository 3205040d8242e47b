"""Images as people hold them: uint8, or floats in [-1, 1].

uint8 v in 0 .. 255      v / 127.5 - 1      ─▶ float32 in [-1, 1]
float32, clipped         round((v + 1) · 127.5) ─▶ uint8
"""

import os
import warnings
from typing import Any

import numpy as np

from marjax.arrays import numbers
from marjax.protocols import Codec
from marjax.schema import check

SLACK = 1e-3
"""How far a float may leave [-1, 1]: an autoencoder's output does, slightly."""


def to_uint8(images) -> np.ndarray:
  """Images in [-1, 1], clipped, to uint8 on the host.

  Raises:
    ValueError: they have NaN, which would be shown as black, or infinity.
  """
  scaled = (np.asarray(images, np.float32) + 1.0) * 127.5
  check(
    bool(np.isfinite(scaled).all()),
    "the decoded images have NaN or infinity; expected finite pixels: an"
    ' autoencoder can overflow in bfloat16 (codec_dtype="float32" helps), or'
    " its weights are damaged.",
  )
  return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def to_float(images: np.ndarray) -> np.ndarray:
  """Images that were checked to float32 in [-1, 1]."""
  if images.dtype == np.uint8:
    return np.float32(images) / np.float32(127.5) - np.float32(1.0)
  return images


def as_uint8(images: np.ndarray) -> np.ndarray:
  """Images that were checked to uint8."""
  return images if images.dtype == np.uint8 else to_uint8(images)


def check_images(
  images: Any, channels: int, size: int | None, multiple: int = 1
) -> np.ndarray:
  """One image or several to [N, H, W, C]: uint8, or float32 in [-1, 1].

  Floats of which none is below 0 are taken as they are, with a warning: they
  may be bright pictures, or pictures scaled to [0, 1].

  Args:
    images: uint8, or floats in [-1, 1]; [H, W, C] or [N, H, W, C], or [H, W]
      where C is 1, as numpy or jax have it; or PIL images of mode RGB, or L
      where C is 1.
    channels: C. size: H = W, None for any size.
    multiple: of which H and W must be.

  Raises:
    ValueError: another type, shape, size, number of channels or range, NaN.
  """
  expected = (
    f"uint8, or floats in [-1, 1], [H, W, {channels}] or [N, H, W, {channels}]"
    f" with {'any size' if size is None else f'H = W = {size}'}"
  )
  array = numbers(_from_pil(images, channels), "images", expected)
  if array.ndim == 2 and channels == 1:
    array = array[..., None]
  shown = f"images are {array.dtype} of shape {array.shape}"
  expected = f"expected {expected}"
  if array.ndim not in (3, 4) or not array.size:
    raise ValueError(f"{shown}; {expected}.")
  *_, height, width, last = array.shape
  if last != channels:
    is_first = array.shape[-3] == channels
    advice = "np.moveaxis(images, -3, -1) puts the channels last"
    raise ValueError(
      f"{shown}, with {last} channels; {expected}:"
      f" {advice if is_first else 'convert them first'}."
    )
  if size is not None and (height, width) != (size, size):
    raise ValueError(
      f"{shown}; {expected}: crop or resize them first, as"
      f" marjax.data.crops.centre_crop(image, {size}) does."
    )
  if height % multiple or width % multiple:
    raise ValueError(
      f"{shown}; expected sides that are multiples of {multiple}: crop or"
      " resize them first."
    )
  array = array.reshape(-1, *array.shape[-3:])
  if array.dtype == np.uint8:
    return array
  if not np.issubdtype(array.dtype, np.floating):
    raise ValueError(f"{shown}; {expected}: convert them first.")
  _check_range(float(array.min()), float(array.max()))
  return array.astype(np.float32, copy=False)


def _check_range(lowest: float, highest: float) -> None:
  if not (lowest >= -1.0 - SLACK and highest <= 1.0 + SLACK):
    raise ValueError(
      f"images hold floats from {lowest:g} to {highest:g}; expected -1 to 1, or"
      " uint8 from 0 to 255: rescale or convert them first."
    )
  if lowest >= 0:
    warnings.warn(
      f"images hold floats from {lowest:g} to {highest:g}, and are taken as"
      " -1 for black to 1 for white; if 0 is black in them, give 2 * images - 1"
      " instead, or uint8.",
      stacklevel=2,
    )


def _from_pil(images: Any, channels: int) -> Any:
  """PIL images of the right mode to arrays; all else as it is.

  Raises:
    ValueError: a PIL image of another mode, or the name of a file.
  """
  if isinstance(images, list | tuple):
    return [_from_pil(image, channels) for image in images]
  check(
    not isinstance(images, str | os.PathLike),
    f"images are {images!r}, the name of a file; expected pixels: give what PIL"
    " opens, converted to RGB, or to L where the model is grey.",
  )
  if not (hasattr(images, "getbands") and hasattr(images, "mode")):
    return images
  mode = "L" if channels == 1 else "RGB"
  check(
    images.mode == mode,
    f"images are of PIL's mode {images.mode}; expected {mode}, as"
    f' image.convert("{mode}") gives.',
  )
  pixels = np.asarray(images)
  return pixels.reshape(*pixels.shape[:2], -1)


def check_latents(
  latents: Any, codec: Codec, is_any_size: bool = False
) -> np.ndarray:
  """Latents [N, *latent_shape] of a codec: float32, or int32 codes.

  Args:
    latents: what `encode` gave.
    is_any_size: rows and columns may be others.

  Raises:
    ValueError: no floats, NaN, another shape; codes that are no integers from 0
      to V - 1.
  """
  shape, num_codes = codec.latent_shape, codec.num_codes
  if is_any_size:
    shape = ("rows", "columns", *shape[2:])
  axes = ", ".join(map(str, ("N", *shape)))
  if num_codes:
    return _check_ids(latents, shape, axes, num_codes)
  expected = f"floats [{axes}], as encode gives them"
  array = numbers(latents, "latents", expected)
  check(
    _is_of(array, shape) and array.dtype.kind not in "biu",
    f"latents have shape {array.shape} and type {array.dtype}; expected"
    f" {expected}.",
  )
  return array.astype(np.float32, copy=False)


def _is_of(array: np.ndarray, shape: tuple[int | str, ...]) -> bool:
  """Whether it is [N, *shape]; an axis that has a name is of any size."""
  if array.ndim != len(shape) + 1 or not array.size:
    return False
  pairs = zip(array.shape[1:], shape, strict=True)
  return all(isinstance(n, str) or size == n for size, n in pairs)


def _check_ids(
  ids: Any, shape: tuple[int | str, ...], axes: str, num_codes: int
) -> np.ndarray:
  """Codes as int32 [N, rows, columns]."""
  expected = (
    f"integers [{axes}] from 0 to {num_codes - 1}, as encode gives them"
  )
  array = numbers(ids, "codes", expected)
  check(
    _is_of(array, shape) and array.dtype.kind in "iu",
    f"codes have shape {array.shape} and type {array.dtype}; expected"
    f" {expected}.",
  )
  lowest, highest = int(array.min()), int(array.max())
  check(
    lowest >= 0 and highest < num_codes,
    f"codes go from {lowest} to {highest}; expected {expected}: they may be"
    " those of another codec.",
  )
  return array.astype(np.int32, copy=False)
