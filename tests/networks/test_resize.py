"""Images brought to a network's size, by each of the three rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer
from PIL import Image
from sentences import refuses

from marjax.evaluate.networks import resize


def draw(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def written_out(image, size):
  """TensorFlow 1's rule, a pixel at a time; only places are float32."""
  height, width, channels = image.shape
  result = np.zeros((size, size, channels))
  for i in range(size):
    for j in range(size):
      y = np.float32(i) * np.float32(height / size)
      x = np.float32(j) * np.float32(width / size)
      top, left = int(y), int(x)
      below, right = min(top + 1, height - 1), min(left + 1, width - 1)
      corners = image[[top, top, below, below], [left, right, left, right]]
      a, b, c, d = corners.astype(float)
      upper, lower = a + (b - a) * (x - left), c + (d - c) * (x - left)
      result[i, j] = upper + (lower - upper) * (y - top)
  return result


def test_four_numbers():
  row = np.array([[0], [10]], np.uint8).reshape(1, 1, 2, 1)
  resized = resize.tf1(row, 4)
  assert resized[0, 0, :, 0].tolist() == [0, 5, 10, 10]
  half_pixel = jax.image.resize(row.astype(float), (1, 1, 4, 1), "bilinear")
  assert half_pixel.ravel().tolist() == [0, 2.5, 7.5, 10]


@pytest.mark.parametrize("shape", [(32, 32, 3), (70, 64, 1), (41, 57, 3)])
def test_the_rule_of_tensorflow(shape):
  image = draw(*shape)
  ours = resize.tf1(image[None], 61)[0]
  assert np.abs(ours - written_out(image, 61)).max() <= 1e-4
  same = resize.tf1(image[None, :32, :32], 32)[0]
  assert np.array_equal(same, image[:32, :32])


@pytest.mark.parametrize("size", [(32, 32), (256, 256), (500, 375)])
def test_the_resizing_of_torch_fidelity(size):
  """Their reference of TensorFlow 1, which it is to the bit."""
  torch = pytest.importorskip("torch")
  module = peer("torch_fidelity.interpolate_compat_tensorflow")
  checkers = np.indices(size).sum(0) % 2 * 255
  image = np.stack([checkers, draw(*size), 255 - checkers], -1)[None]
  theirs = module.interpolate_bilinear_2d_like_tensorflow1x(
    torch.from_numpy(image.transpose(0, 3, 1, 2).astype(np.float32)),
    size=(299, 299),
    align_corners=False,
  )
  theirs = theirs.numpy().transpose(0, 2, 3, 1)
  ours = jax.jit(resize.tf1, static_argnums=1)(image.astype(np.uint8), 299)
  assert np.abs(ours - theirs).max() <= 1e-5 * 255
  other = jax.image.resize(image.astype(np.float32), ours.shape, "bilinear")
  assert np.abs(other - theirs).max() > 1


@pytest.mark.parametrize(
  ("shape", "size"),
  [
    ((64, 64, 3), (224, 224)),
    ((256, 256, 3), (224, 224)),
    ((41, 57, 3), (41, 20)),
    ((41, 57, 3), (90, 57)),
  ],
)
def test_bicubic_is_that_of_pillow(shape, size):
  """Square, or one axis: of others its order hangs on its version."""
  image = draw(*shape)
  image[:8, :8] = 0
  image[8:16, :8] = 255
  kind = Image.Resampling.BICUBIC
  theirs = Image.fromarray(image).resize(size[::-1], kind)
  function = jax.jit(resize.bicubic, static_argnums=(1, 2))
  ours = function(image[None], size[0], size[1])[0]
  assert ours.dtype == jnp.uint8
  assert np.array_equal(ours, np.asarray(theirs))


def test_smooth_is_that_of_pillow():
  """But for rounding: Pillow rounds rows and columns to grey levels."""
  image = draw(300, 280, 3)
  theirs = Image.fromarray(image).resize((227, 227), Image.Resampling.BILINEAR)
  ours = resize.smooth(image[None], 227)[0]
  assert np.abs(ours - np.asarray(theirs, float)).max() <= 1.01


def test_grey_images_are_of_three_equal_channels():
  grey = draw(2, 5, 4, 1)
  assert np.array_equal(resize.rgb(grey), np.repeat(grey, 3, -1))
  colours = draw(2, 5, 4, 3)
  assert np.array_equal(resize.rgb(colours), colours)
  refuses(lambda: resize.rgb(draw(2, 5, 4, 4)), "4 channels; expected 3")
  message = "images are float32; expected uint8 of 0 to 255"
  refuses(lambda: resize.rgb(colours / np.float32(255)), message)


def test_the_middle_of_an_image():
  image = draw(1, 7, 4, 3)
  assert np.array_equal(resize.centre_square(image), image[:, 2:6])
  wide = draw(1, 4, 9, 3)
  assert np.array_equal(resize.centre_square(wide), wide[:, :, 2:6])
