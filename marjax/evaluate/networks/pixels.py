"""The pixels themselves: a network without weights, so nothing to download.

1. Images are resized smoothly to 8²; those of that size, as digits, stay as
   they are. Grey ones are three times the same.
2. The features are the 192 numbers over 256, an exact division: 0 to nearly 1.

It sees how bright and of what colour images are in which place, no shapes: for
digits, and to score a run before weights of a better network are at hand.
"""

from jaxtyping import PyTree

from marjax import schema
from marjax.evaluate.networks import resize
from marjax.evaluate.networks.protocol import Features, Named

SIZE = 8


@schema.config
class Pixels(Named):
  """Images of any size → 192 features; see the module."""

  name = "pixels"
  num_features = 3 * SIZE**2
  source = ""

  def shapes(self) -> PyTree:
    """None at all."""
    return {}

  def __call__(self, params: PyTree, images: resize.Pictures) -> Features:
    small = resize.smooth(resize.rgb(images), SIZE) / 256
    return Features(small.reshape(len(images), self.num_features))
