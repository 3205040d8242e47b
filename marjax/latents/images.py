"""Images as people hold them: uint8, or floats in [-1, 1].

uint8 v in 0 .. 255      v / 127.5 - 1      ─▶ float32 in [-1, 1]
float32, clipped         round((v + 1) · 127.5) ─▶ uint8
"""

from typing import Any

import numpy as np

SLACK = 1e-3
"""How far a float may leave [-1, 1]: an autoencoder's output does, slightly."""


def to_uint8(images) -> np.ndarray:
  """Images in [-1, 1], clipped, to uint8 on the host."""
  scaled = (np.asarray(images, np.float32) + 1.0) * 127.5
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

  Args:
    images: uint8, or floats in [-1, 1]; [H, W, C] or [N, H, W, C], as numpy,
      jax or PIL have it.
    channels: C. size: H = W, None for any size.
    multiple: of which H and W must be.

  Raises:
    ValueError: another type, shape, size, number of channels or range.
  """
  array = np.asarray(images)
  shown = f"images are {array.dtype} of shape {array.shape}"
  side = "any size" if size is None else f"H = W = {size}"
  expected = (
    f"expected uint8, or floats in [-1, 1], [H, W, {channels}] or"
    f" [N, H, W, {channels}] with {side}"
  )
  if array.ndim not in (3, 4) or not array.size:
    raise ValueError(f"{shown}; {expected}.")
  *_, height, width, found = array.shape
  if found != channels:
    raise ValueError(
      f"{shown}, with {found} channels; {expected}: convert them first."
    )
  if size is not None and (height, width) != (size, size):
    raise ValueError(f"{shown}; {expected}: crop or resize them first.")
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
  lowest, highest = float(array.min()), float(array.max())
  if not (lowest >= -1.0 - SLACK and highest <= 1.0 + SLACK):
    raise ValueError(
      f"images hold floats from {lowest:g} to {highest:g}; expected -1 to 1, or"
      " uint8 from 0 to 255: rescale or convert them first."
    )
  return array.astype(np.float32, copy=False)


def check_latents(latents: Any, shape: tuple[int, int, int]) -> np.ndarray:
  """Latents as float32 [N, rows, columns, C], of any rows and columns.

  Args:
    latents: what `encode` gave. shape: rows, columns and C of a model's image.

  Raises:
    ValueError: another number of axes or channels, or no latents.
  """
  array = np.asarray(latents, np.float32)
  if array.ndim != 4 or array.shape[-1] != shape[-1] or not array.size:
    raise ValueError(
      f"latents have shape {array.shape}; expected [N, {shape[0]}, {shape[1]},"
      f" {shape[2]}], as encode gives them."
    )
  return array
