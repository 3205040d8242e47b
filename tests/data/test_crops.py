"""The crop is the published one, step by step."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from marjax.data import crops, decoding

RNG = np.random.default_rng(0)


def picture(height, width, channels=3):
  return RNG.integers(0, 256, (height, width, channels), np.uint8)


def test_against_the_steps_done_by_hand():
  image = picture(100, 70)
  by_hand = (
    Image.fromarray(image)
    .resize((35, 50), Image.Resampling.BOX)
    .resize((17, 25), Image.Resampling.BOX)  # 35 ≥ 2·16, 17 is not
    .resize((16, 24), Image.Resampling.BICUBIC)  # 25·16/17 = 23.5
    .crop((0, 4, 16, 20))
  )
  np.testing.assert_array_equal(crops.centre_crop(image, 16), by_hand)


def published(picture: Image.Image, size: int) -> np.ndarray:
  """The crop of an image as a whole, as it is described."""
  while min(picture.size) >= 2 * size:
    half = (picture.width // 2, picture.height // 2)
    picture = picture.resize(half, Image.Resampling.BOX)
  scale = size / min(picture.size)
  wanted = (round(picture.width * scale), round(picture.height * scale))
  pixels = np.array(picture.resize(wanted, Image.Resampling.BICUBIC))
  top, left = ((side - size) // 2 for side in pixels.shape[:2])
  return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_photographs(name):
  photograph = datasets.load_sample_image(name)
  assert photograph.shape == (427, 640, 3)
  upright = np.ascontiguousarray(photograph.swapaxes(0, 1))
  views = (photograph, upright, photograph[:333, 100:], photograph[:, :90])
  for image in views:
    for size in (16, 64, 100, 256, 500):
      cropped = crops.centre_crop(image, size)
      whole = Image.fromarray(image)
      np.testing.assert_array_equal(cropped, published(whole, size))
  plane = crops.centre_crop(photograph[..., :1], 256)
  np.testing.assert_array_equal(
    plane, crops.centre_crop(photograph, 256)[..., :1]
  )


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_photographs_in_other_modes_become_rgb(mode):
  photograph = Image.fromarray(datasets.load_sample_image("china.jpg"))
  file = io.BytesIO()
  photograph.convert(mode).save(file, "JPEG")
  image = decoding.decode(file, "RGB")
  with Image.open(file) as picture:
    assert picture.mode == mode
    np.testing.assert_array_equal(
      crops.centre_crop(image, 256), published(picture.convert("RGB"), 256)
    )


def test_twice_the_size_is_averaged():
  image = picture(16, 16, 1)
  means = image.reshape(8, 2, 8, 2).mean((1, 3))
  assert np.abs(crops.centre_crop(image, 8)[..., 0] - means).max() <= 1


def test_a_wide_image_loses_its_sides():
  image = picture(8, 15, 1)
  np.testing.assert_array_equal(crops.centre_crop(image, 8), image[:, 3:11])


def test_a_small_image_is_enlarged():
  image = picture(5, 6)
  by_hand = Image.fromarray(image).resize((10, 8), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(
    crops.centre_crop(image, 8), np.asarray(by_hand)[:, 1:9]
  )


def test_an_image_of_that_size_is_untouched():
  image = picture(16, 16)
  assert crops.centre_crop(image, 16) is image


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_channels_are_independent(channels):
  image = picture(40, 37, channels)
  whole = crops.centre_crop(image, 8)
  assert whole.shape == (8, 8, channels)
  for c in range(channels):
    np.testing.assert_array_equal(
      whole[..., c : c + 1], crops.centre_crop(image[..., c : c + 1], 8)
    )


@pytest.mark.parametrize("shape", [(9, 300), (31, 33), (257, 64), (1, 7)])
def test_any_shape_gives_a_square(shape):
  flat = np.full((*shape, 3), 99, np.uint8)
  cropped = crops.centre_crop(flat, 8)
  assert cropped.shape == (8, 8, 3)
  assert (cropped == 99).all()
