"""Images made by a rule, so that a model of any size has something to learn.

The class decides where a bright blob sits on a circle, its tint, and the slope
of the grey background; the image's own numbers move, stretch and dim all three,
and add a little noise. Neighbouring patches agree, so order and context matter.

    class 0      class 1 of 4
    . . . . .    . . # . .       the blob's angle is 2π · class / classes
    . . . # #    . . # . .
    . . . . .    . . . . .
"""

import zlib
from typing import ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from marjax.experiment import DataConfig


class SyntheticSource:
  """`num_examples` images, each a function of (seed, split, index) only.

  They have the sizes and classes of `config`; the split may have any name.
  """

  class_names = ()
  skipped: ClassVar[dict[str, int]] = {}
  skipped_names: ClassVar[dict[str, str]] = {}

  def __init__(self, config: DataConfig, split: str):
    self._shape = (config.image_size, config.image_size, config.channels)
    self._num_classes = max(1, config.num_classes)
    self._num_examples = config.num_examples
    self._entropy = (config.seed, zlib.crc32(split.encode()))

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: int) -> dict:
    """{"image": uint8 [H, W, C], "label": int, "id": int}."""
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}.")
    rng = np.random.Generator(np.random.PCG64((*self._entropy, index)))
    label = index % self._num_classes
    image = _draw(self._shape, label, self._num_classes, rng)
    return {"image": image, "label": label, "id": index}

  def name(self, index: int) -> str:
    """Its number."""
    return f"image {index}"

  def header(self, index: int) -> None:
    """None: no image is a file."""

  def other_splits(self) -> dict[str, int]:
    """None: any name is a split."""
    return {}

  @property
  def identity(self) -> dict[str, str]:
    """Its description."""
    return {"kind": "synthetic", "images": self.description}

  @property
  def description(self) -> str:
    """All that the images are a function of."""
    shape = "×".join(map(str, self._shape))
    return (
      f"synthetic: {len(self)} images of {shape}, {self._num_classes} classes,"
      f" numbers {self._entropy}"
    )


def _draw(
  shape: tuple[int, int, int],
  label: int,
  num_classes: int,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, "H W C"]:
  height, width, channels = shape
  y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
  x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
  turn, distance, radius, slope = rng.normal(size=4)
  angle = 2 * np.pi * label / num_classes + 0.15 * turn
  away = 0.5 + 0.08 * distance
  reach = 0.3 * np.exp(0.2 * radius)
  squared = (x - away * np.cos(angle)) ** 2 + (y - away * np.sin(angle)) ** 2
  blob = np.exp(-squared / (2 * reach**2))[..., None]
  ramp = x * np.cos(angle) - y * np.sin(angle)
  ground = (0.3 + 0.12 * (1 + 0.2 * slope) * ramp)[..., None]
  noise = 0.02 * rng.standard_normal(shape, np.float32)
  pixels = ground + (_tint(label, channels) - ground) * blob + noise
  return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def _tint(label: int, channels: int) -> Float[np.ndarray, " C"]:
  """The blob's colour; steps of the golden ratio keep classes apart."""
  if channels == 1:
    return np.ones(1)
  phase = label * 0.6180339887 + np.arange(channels) / channels
  return 0.6 + 0.4 * np.cos(2 * np.pi * phase)
