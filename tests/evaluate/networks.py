"""A network that needs no weights: a fixed random projection of the pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from marjax.evaluate.networks.protocol import Features
from marjax.evaluate.scores.moments import Moments


@dataclasses.dataclass(frozen=True)
class Projection:
  """Pixels → ReLU of a random projection; a second one, and logits, of it."""

  name: str = "projection"
  distance: str = "fd_projection"
  class_score: str = "class_score_projection"
  image_size: int = 8
  channels: int = 3
  num_features: int = 16
  num_places: int = 12
  num_logits: int = 10
  source: str = "random numbers"
  command: str = ""

  def shapes(self):
    """Shapes of the three matrices."""
    pixels = self.image_size**2 * self.channels
    sizes = {
      "pooled": (pixels, self.num_features),
      "spatial": (self.num_features, self.num_places),
      "logits": (self.num_features, self.num_logits),
    }
    return {
      name: jax.ShapeDtypeStruct(size, jnp.float32)
      for name, size in sizes.items()
    }

  def params(self, seed=0):
    """The matrices, always the same ones of a seed."""
    rng = np.random.default_rng(seed)
    return {
      name: rng.normal(size=leaf.shape, scale=leaf.shape[0] ** -0.5).astype(
        np.float32
      )
      for name, leaf in self.shapes().items()
    }

  def __call__(self, params, images):
    """Features near 1, as those of networks: far from 0 for their spread."""
    pixels = images.reshape(len(images), -1).astype(jnp.float32) / 64

    def product(rows, name):
      return jax.lax.dot(rows, params[name], precision="highest")

    pooled = jax.nn.relu(product(pixels, "pooled") + 1)
    parts = [
      product(pooled, name) * scale if size else None
      for name, size, scale in (
        ("spatial", self.num_places, 1),
        ("logits", self.num_logits, 3),
      )
    ]
    return Features(pooled, parts[0], parts[1])


def noise_images(seed, count, size=8, channels=3, low=0, high=256):
  """Uniform noise uint8 [count, size, size, channels]."""
  rng = np.random.default_rng(seed)
  shape = (count, size, size, channels)
  return rng.integers(low, high, shape).astype(np.uint8)


def moments_of(rows):
  """Moments of rows on the host, in float64, at once."""
  rows = np.asarray(rows, np.float64)
  mean = rows.mean(0)
  centred = rows - mean
  return Moments(len(rows), mean, centred.T @ centred)
