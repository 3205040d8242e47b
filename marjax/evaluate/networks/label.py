"""A classifier of a data set's own classes, which is trained on that data set.

1. Pixels are scaled to [-1, 1]. A 3 × 3 convolution to `width` maps; then three
   times one that doubles them, ReLU, and the largest of each 2 × 2 cells; after
   the first and the third of these two convolutions beside an identity:

       w ─▶ 2w, ½ ─▶ + block ─▶ 4w, ¼ ─▶ 8w, ⅛ ─▶ + block ─▶ largest of the map

2. The features are the 8·width largest values; a linear layer on them says the
   class. They compare images of this data set with each other, and their
   Fréchet distance is called fd_label.
3. `marjax fit-classifier` trains it (`marjax.train.classifier`), with batch
   norm, which is folded into the convolutions in the file.

Label accuracy needs such a network: networks of other data have other classes.
The shape is that of the residual networks of nine layers with which CIFAR-10 is
learned in minutes, of arXiv 1512.03385's blocks.
"""

import functools
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, PyTree, UInt8

from marjax import schema
from marjax.evaluate.networks import layers
from marjax.evaluate.networks.protocol import Features, Named
from marjax.schema import Positive, Range

STAGES = ((2, True), (4, False), (8, True))
"""Maps, in widths, and whether a block of two convolutions follows."""

Maps = Float32[Array, "B H W C"]
Wider = Float32[Array, "B H W D"]


@schema.config
class Label(Named):
  """Images of one size → 8·width features, num_classes logits; see the module.

  Attributes:
    image_size, channels: of images. num_classes: of labels.
    width: maps after the first layer.
  """

  image_size: Annotated[int, Range(8, 512)] = 32
  channels: Annotated[int, Range(1, 64)] = 3
  num_classes: Annotated[int, Range(2, 2**20)] = 10
  width: Positive = 64

  name = "label"
  source = "the config of the model, whose data it is trained on in minutes"
  command = "marjax fit-classifier --config CONFIG --out"

  @property
  def num_features(self) -> int:
    """Numbers that the last layer takes."""
    return STAGES[-1][0] * self.width

  @property
  def num_logits(self) -> int:
    """Classes."""
    return self.num_classes

  def shapes(self) -> PyTree:
    """{"start", "down0", "block0a", ..., "classes"}: kernel and bias."""
    shapes = {
      name: layers.conv_shapes(3, 3, *sizes)
      for name, sizes in self.convolutions().items()
    }
    shapes["classes"] = {
      "kernel": layers.float32(self.num_features, self.num_classes),
      "bias": layers.float32(self.num_classes),
    }
    return shapes

  def convolutions(self) -> dict[str, tuple[int, int]]:
    """Channels in and out of each, by name."""
    sizes = {"start": (self.channels, self.width)}
    before = self.width
    for number, (multiple, has_block) in enumerate(STAGES):
      after = multiple * self.width
      sizes[f"down{number}"] = (before, after)
      if has_block:
        sizes |= {f"block{number}{part}": (after, after) for part in "ab"}
      before = after
    return sizes

  def __call__(self, params: PyTree, images: UInt8[Array, "..."]) -> Features:
    expected = (self.image_size, self.image_size, self.channels)
    schema.check(
      images.shape[1:] == expected,
      f"images are {images.shape[1:]}, and this classifier was trained on"
      f" {expected}; expected images of that size.",
    )

    def convolved(name: str, x: Maps) -> Wider:
      return jax.nn.relu(layers.conv(params[name], x, padding="SAME"))

    pooled = pooled_maps(convolved, images.astype(jnp.float32) / 127.5 - 1)
    last = params["classes"]
    logits = layers.dense(last["kernel"], pooled) + last["bias"]
    return Features(pooled, logits=logits)


def pooled_maps(
  convolved: Callable[[str, Maps], Wider], pixels: Maps
) -> Float32[Array, "B features"]:
  """Features of pixels in [-1, 1]; `convolved(name, x)` ends with ReLU."""
  x = convolved("start", pixels)
  for number, (_, has_block) in enumerate(STAGES):
    x = _halved(convolved(f"down{number}", x))
    if has_block:
      block = convolved(f"block{number}a", x)
      x = x + convolved(f"block{number}b", block)
  window = (1, *x.shape[1:3], 1)
  largest = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
  return largest[:, 0, 0]


def _halved(x: Maps) -> Float32[Array, "B rows columns C"]:
  """The largest of each 2 × 2 cells; an odd last row or column is left out."""
  height, width = (size - size % 2 for size in x.shape[1:3])
  corners = [
    x[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)
  ]
  # Not a reduction: its gradient divides by how many cells equal the largest,
  # 0 where a compiler computes them twice and rounds otherwise.
  return functools.reduce(jnp.maximum, corners)
