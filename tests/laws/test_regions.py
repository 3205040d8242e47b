"""Regions to draw anew: pixels ↔ tokens, and what a person may give."""

import jax.numpy as jnp
import numpy as np
import pytest

from marjax.tokens import regions
from marjax.tokens.patches import patchify

# Height, width, cell: square, wide, tall, one token wide, one pixel per token.
GRIDS = [(8, 8, 2), (6, 12, 3), (16, 4, 4), (5, 20, 5), (3, 4, 1)]

grids = pytest.mark.parametrize(("height", "width", "cell"), GRIDS)


def masks(height, width, count=12):
  """Masks of all densities, [count, height, width]."""
  draws = np.random.default_rng(0).random((count, height, width))
  return draws < np.linspace(0, 0.5, count)[:, None, None] ** 2


def rounded(mask, cell):
  """The pixels of all tokens that the mask touches."""
  height, width = mask.shape[1:]
  tokens = regions.token_mask(mask, cell)
  return regions.pixel_mask(tokens, height // cell, width // cell, cell)


@grids
def test_tokens_are_those_of_patchify(height, width, cell):
  mask = masks(height, width)
  patches = np.asarray(
    patchify(jnp.asarray(mask, jnp.float32)[..., None], cell)
  )
  np.testing.assert_array_equal(
    regions.token_mask(mask, cell), patches.max(axis=2) > 0
  )


def test_tokens_of_the_drawing_in_the_docstring():
  mask = np.zeros((1, 4, 6), bool)
  mask[0, 0, 1] = mask[0, 1, 5] = True
  tokens = regions.token_mask(mask, 2)
  assert tokens.astype(int).tolist() == [[1, 0, 1, 0, 0, 0]]
  assert rounded(mask, 2).astype(int)[0].tolist() == [
    [1, 1, 0, 0, 1, 1],
    [1, 1, 0, 0, 1, 1],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0],
  ]


@grids
def test_rounding_outwards_contains_the_mask_and_is_idempotent(
  height, width, cell
):
  mask = masks(height, width)
  once = rounded(mask, cell)
  assert (once >= mask).all()
  np.testing.assert_array_equal(rounded(once, cell), once)


@grids
def test_rounding_outwards_is_the_smallest_that_contains_the_mask(
  height, width, cell
):
  mask = masks(height, width)
  tokens = regions.token_mask(mask, cell)
  assert tokens.any()
  for image, token in np.argwhere(tokens):
    fewer = tokens.copy()
    fewer[image, token] = False
    pixels = regions.pixel_mask(fewer, height // cell, width // cell, cell)
    assert (mask & ~pixels).any(), "a token was masked without need"


@grids
def test_tokens_survive_pixels(height, width, cell):
  rows, columns = height // cell, width // cell
  tokens = np.random.default_rng(1).random((9, rows * columns)) < 0.4
  pixels = regions.pixel_mask(tokens, rows, columns, cell)
  assert pixels.shape == (9, height, width)
  np.testing.assert_array_equal(regions.token_mask(pixels, cell), tokens)


@pytest.mark.parametrize(
  "convert",
  [
    lambda mask: mask,
    lambda mask: mask.tolist(),
    lambda mask: mask.astype(int).tolist(),
    lambda mask: mask.astype(np.uint8),
    lambda mask: mask.astype(np.uint8) * 255,
    lambda mask: mask.astype(np.float32),
    lambda mask: mask.astype(np.float64),
    lambda mask: jnp.asarray(mask),
    lambda mask: mask[..., None],
    lambda mask: mask[..., None].astype(np.uint8) * 255,
  ],
)
def test_a_mask_may_have_any_two_values(convert):
  mask = masks(6, 4, count=3)
  np.testing.assert_array_equal(
    regions.check_mask(convert(mask), 3, 6, 4), mask
  )
  one = convert(mask[2])
  for given in (one, np.asarray(one)[None]):
    every = regions.check_mask(given, 3, 6, 4)
    assert every.dtype == bool
    np.testing.assert_array_equal(every, mask[[2, 2, 2]])


@pytest.mark.parametrize(
  ("height", "width", "count"), [(4, 1, 4), (1, 1, 1), (1, 4, 4)]
)
def test_an_axis_of_one_pixel_is_no_channel(height, width, count):
  mask = masks(height, width, count)
  np.testing.assert_array_equal(
    regions.check_mask(mask, count, height, width), mask
  )
  assert regions.check_mask(mask[0], count, height, width).shape == mask.shape


def test_a_checked_mask_is_a_copy():
  mask = masks(6, 4, count=1)
  before = mask.copy()
  regions.check_mask(mask, 1, 6, 4)[:] = True
  regions.check_mask(mask[0], 2, 6, 4)[0] = True
  np.testing.assert_array_equal(mask, before)


def with_value(value, dtype):
  mask = np.zeros((2, 6, 4), dtype)
  mask[1, 2, 3] = value
  return mask


@pytest.mark.parametrize(
  ("mask", "message"),
  [
    (np.zeros((4, 6), bool), r"shape \(4, 6\); expected \(6, 4\) in rows"),
    (np.zeros((3, 6, 4), bool), r"shape \(3, 6, 4\); .* or \(2, 6, 4\) with"),
    (np.zeros((6, 4, 3), np.uint8), r"shape \(6, 4, 3\); expected"),
    (np.zeros((2, 6, 4, 3), bool), r"shape \(2, 6, 4, 3\); expected"),
    (np.zeros((6, 1), bool), r"shape \(6, 1\); expected \(6, 4\)"),
    (np.zeros((), bool), r"shape \(\); expected"),
    ([], r"shape \(0,\); expected"),
    (with_value(0.5, np.float32), r"mask\[1, 2, 3\] is 0.5; .* mask > 0.5"),
    (with_value(np.nan, np.float32), r"mask\[1, 2, 3\] is nan; expected"),
    (with_value(255, np.float32), r"is 255.0; expected booleans"),
    (with_value(-1, int), r"is -1; expected booleans"),
    (with_value(128, np.uint8), r"mask\[1, 2, 3\] is 128; .* mask > 127"),
    (with_value(1j, complex), "of type ndarray is no array of booleans"),
    (np.full((6, 4), "x"), "of type ndarray is no array of booleans"),
    ([[True, False], [True]], "of type list is no array of booleans"),
    (None, "of type NoneType is no array of booleans"),
    ("left", "of type str is no array of booleans"),
  ],
)
def test_another_mask_is_one_sentence(mask, message):
  with pytest.raises(ValueError, match=message) as error:
    regions.check_mask(mask, 2, 6, 4)
  assert str(error.value).endswith(".")


def test_bytes_are_either_0_and_1_or_0_and_255():
  mask = with_value(255, np.uint8)
  mask[0, 0, 0] = 1
  with pytest.raises(ValueError, match=r"mask\[0, 0, 0\] is 1; .*0 and 255"):
    regions.check_mask(mask, 2, 6, 4)


def test_a_mask_draws_something_and_keeps_something():
  tokens = np.eye(3, 4, dtype=bool)
  assert regions.check_covers(tokens, 16) is None
  tokens[2] = False
  with pytest.raises(ValueError, match="the mask of image 2 selects no pixel;"):
    regions.check_covers(tokens, 16)
  tokens[1] = True
  with pytest.raises(ValueError, match=r"image 1 covers every .* 16 x 16 pix"):
    regions.check_covers(tokens, 16)


def test_a_mask_with_holes_may_cover_every_token():
  mask = np.indices((1, 4, 6)).sum(0) % 2 == 0
  with pytest.raises(ValueError, match="image 0 covers every token"):
    regions.check_covers(regions.token_mask(mask, 2), 2)


def test_a_box_and_its_outside():
  mask = regions.box((5, 7), top=1, left=2, height=3, width=4)
  assert mask.shape == (5, 7)
  assert np.argwhere(mask).min(0).tolist() == [1, 2]
  assert np.argwhere(mask).max(0).tolist() == [3, 5]
  assert mask.sum() == 12
  np.testing.assert_array_equal(regions.outside(mask), ~mask)
  painted = mask.astype(np.uint8) * 255
  np.testing.assert_array_equal(regions.outside(painted), ~mask)
  assert regions.box(4, 0, 0, 4, 4).all()


@pytest.mark.parametrize("size", [8, (5, 7), (2, 3)])
def test_opposite_halves_are_the_whole(size):
  for first, second in (("left", "right"), ("top", "bottom")):
    a, b = regions.half(size, first), regions.half(size, second)
    np.testing.assert_array_equal(a, ~b)
    assert 0 <= b.sum() - a.sum() <= max(a.shape)
  assert regions.half(size, "left")[:, 0].all()
  assert regions.half(size, "bottom")[-1].all()
  assert not regions.half(size, "right")[:, 0].any()
  assert not regions.half(size, "top")[-1].any()


@grids
@pytest.mark.parametrize("share", [1e-6, 0.25, 0.5, 1 - 1e-6])
def test_scattered_tokens_are_that_share(height, width, cell, share):
  mask = regions.scattered((height, width), cell, share, seed=3)[None]
  np.testing.assert_array_equal(rounded(mask, cell), mask)
  tokens = regions.token_mask(mask, cell)
  regions.check_covers(tokens, cell)
  wanted = share * tokens.size
  assert abs(tokens.sum() - min(max(wanted, 1), tokens.size - 1)) <= 0.5


def test_scattered_tokens_are_those_of_the_seed():
  def tokens(share, seed):
    mask = regions.scattered((8, 16), 2, share, seed)
    return np.flatnonzero(regions.token_mask(mask[None], 2)[0])

  few, many = tokens(0.2, 0), tokens(0.7, 0)
  assert set(few) < set(many)
  assert set(few) != set(tokens(0.2, 1))
  # Masks of a seed are kept from version to version.
  assert tokens(0.1, 0).tolist() == [14, 15, 16]


@pytest.mark.parametrize("fill", [0, 7, (1, 2, 3), np.uint8([9, 9, 9])])
def test_an_image_on_a_canvas(fill):
  image = np.random.default_rng(0).integers(10, 256, (3, 4, 3), np.uint8)
  canvas, mask = regions.place(image, (6, 9), top=2, left=5, fill=fill)
  assert canvas.shape == (6, 9, 3)
  assert canvas.dtype == np.uint8
  assert mask.shape == (6, 9)
  np.testing.assert_array_equal(canvas[2:5, 5:], image)
  np.testing.assert_array_equal(mask, ~regions.box((6, 9), 2, 5, 3, 4))
  np.testing.assert_array_equal(
    canvas[mask], np.broadcast_to(fill, (mask.sum(), 3))
  )


def test_a_canvas_may_continue_the_edge_of_the_image():
  image = np.random.default_rng(0).integers(0, 256, (3, 4, 1), np.uint8)
  canvas, mask = regions.place(image, (6, 9), 2, 1, fill="edge")
  assert canvas.shape == (6, 9, 1)
  np.testing.assert_array_equal(canvas[~mask], image.reshape(-1, 1))
  np.testing.assert_array_equal(canvas[:2, 1:5], image[[0, 0]])
  np.testing.assert_array_equal(canvas[2:5, 5:], image[:, [3] * 4])
  assert canvas[5, 0] == image[2, 0]


IMAGE = np.zeros((3, 4, 3), np.uint8)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: regions.token_mask(masks(6, 9), 4), "6 x 9 .* tokens of 4 x 4"),
    (lambda: regions.token_mask(masks(6, 9), 0), "tokens of 0 x 0; expected"),
    (
      lambda: regions.pixel_mask(np.zeros((1, 5), bool), 2, 3, 4),
      "the mask has 5 tokens; expected 6, a grid of 2 x 3",
    ),
    (lambda: regions.box(8, 6, 0, 3, 1), "box of 3 x 1 .* row 6, column 0"),
    (lambda: regions.box(8, 0, -1, 1, 1), "column -1 does not lie inside"),
    (lambda: regions.box(8, 0, 0, 0, 1), "box of 0 x 1 .* 1 pixel or more"),
    (lambda: regions.box((8, 8, 3), 0, 0, 1, 1), r"size is \(8, 8, 3\); exp"),
    (lambda: regions.box(0, 0, 0, 1, 1), "size is 0; expected height"),
    (lambda: regions.box(8.5, 0, 0, 1, 1), "size is 8.5; expected height"),
    (lambda: regions.half(8, "up"), "side is 'up'; expected one of left, ri"),
    (lambda: regions.half((8, 1), "left"), "8 x 1 pixels has no left half"),
    (lambda: regions.outside([0.2]), r"mask\[0\] is 0.2; expected booleans"),
    (lambda: regions.scattered(8, 3, 0.5, 0), "8 x 8 .* tokens of 3 x 3"),
    (lambda: regions.scattered(8, 8, 0.5, 0), "one token of 8 x 8 .* nothing"),
    (lambda: regions.scattered(8, 2, 0.0, 0), "share is 0.0; expected more"),
    (lambda: regions.scattered(8, 2, 1.0, 0), "share is 1.0; expected more"),
    (lambda: regions.scattered(8, 2, np.nan, 0), "share is nan; expected more"),
    (lambda: regions.scattered(8, 2, 0.5, -1), "seed is -1; expected an int"),
    (lambda: regions.scattered(8, 2, 0.5, 2**32), "seed is 4294967296; exp"),
    (lambda: regions.place(IMAGE, 6, 4, 0), "image of 3 x 4 .* inside 6 x 6"),
    (lambda: regions.place(IMAGE, (3, 4), 0, 0), "image fills the canvas"),
    (lambda: regions.place(IMAGE[0], 6, 0, 0), r"image has shape \(4, 3\)"),
    (lambda: regions.place(IMAGE / 2, 6, 0, 0), "type float64; expected one"),
    (lambda: regions.place(IMAGE, 6, 0, 0, 256), "fill is 256; expected an"),
    (lambda: regions.place(IMAGE, 6, 0, 0, -1), "fill is -1; expected an"),
    (lambda: regions.place(IMAGE, 6, 0, 0, 0.5), "fill is 0.5; expected an"),
    (lambda: regions.place(IMAGE, 6, 0, 0, (1, 2)), r"fill is \(1, 2\); .* 3,"),
    (lambda: regions.place(IMAGE, 6, 0, 0, "grey"), "fill is 'grey'; expec"),
  ],
)
def test_another_region_is_one_sentence(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call()
  assert str(error.value).endswith(".")
