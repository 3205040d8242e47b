"""Regions of an image to draw anew: masks of pixels ↔ masks of tokens.

1. A person marks pixels. `check_mask` takes what image programs and arrays
   give and returns booleans, True where the image is to be drawn anew.
2. A token is a square of cell × cell pixels, in raster order. `token_mask`
   rounds outwards: a token is masked if any of its pixels is.

     cell = 2    . # . . . .                       # # . . # #
     pixels      . . . . . #  ─▶  tokens 1 0 1 ─▶  # # . . # #  drawn anew
                 . . . . . .             0 0 0     . . . . . .
                 . . . . . .                       . . . . . .

3. `check_covers` refuses a mask that leaves nothing to draw, or nothing to
   keep, once it is rounded.
4. `box`, `half`, `outside`, `scattered` and `place` make the usual masks:
   repair, replace a part, extend, vary.

Every function raises ValueError, one sentence, for what it cannot use.
"""

import operator
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from marjax.arrays import checked, integer, numbers, real
from marjax.keys import check_seed
from marjax.schema import check

ImageMasks = Bool[np.ndarray, "B height width"]
ImageMask = Bool[np.ndarray, "height width"]
TokenMasks = Bool[np.ndarray, "B L"]

Size = Any
"""Of an image in pixels: (height, width), or one integer for both."""


def token_mask(mask: ImageMasks, cell: int) -> TokenMasks:
  """Which tokens have a masked pixel.

  Args:
    mask: booleans by pixel [B, height, width], both multiples of cell.
    cell: height = width in pixels of a token.

  Returns:
    Booleans by token [B, L], L = (height / cell) · (width / cell).
  """
  batch, height, width = mask.shape
  rows, columns = _grid(height, width, cell)
  cells = mask.reshape(batch, rows, cell, columns, cell)
  return cells.any((2, 4)).reshape(batch, rows * columns)


def pixel_mask(
  is_masked: TokenMasks, rows: int, columns: int, cell: int
) -> ImageMasks:
  """The pixels of the masked tokens: what is drawn anew, for display.

  Args:
    is_masked: booleans by token [B, L], L = rows · columns.
    rows, columns: of the grid of tokens.
    cell: height = width in pixels of a token.

  Returns:
    Booleans by pixel [B, rows · cell, columns · cell].
  """
  batch, length = is_masked.shape
  check(
    length == rows * columns,
    f"the mask has {length} tokens; expected {rows * columns}, a grid of"
    f" {rows} x {columns}.",
  )
  grid = is_masked.reshape(batch, rows, columns)
  return grid.repeat(cell, axis=1).repeat(cell, axis=2)


def check_mask(
  mask: Any, num_images: int, height: int, width: int
) -> ImageMasks:
  """The mask of every image, as booleans of its own memory.

  Args:
    mask: [height, width] for all images, or [num_images, height, width]; a
      last axis of 1 channel is dropped. Booleans, integers (all in {0, 1} or
      all in {0, 255}) or floats (in {0, 1}); True, 1 or 255 is drawn anew.
    num_images, height, width: what is expected.

  Returns:
    Booleans [num_images, height, width].

  Raises:
    ValueError: another shape or type, grey values, NaN.
  """
  given = _as_array(mask)
  one, every = (height, width), (num_images, height, width)
  expected = (one, every, (1, *one))
  has_channel = given.shape not in expected and given.shape[-1:] == (1,)
  mask = given[..., 0] if has_channel else given
  check(
    mask.shape in expected,
    f"mask has shape {given.shape}; expected {one} in rows and columns, or"
    f" {every} with one mask for each image.",
  )
  return np.array(np.broadcast_to(_as_bool(mask), every))


def check_covers(is_masked: TokenMasks, cell: int) -> None:
  """Refuses an image of which no token or every token is masked.

  Raises:
    ValueError: names the first such image of [B, L]; `cell` is for the message.
  """
  for image, tokens in enumerate(is_masked):
    check(
      bool(tokens.any()),
      f"the mask of image {image} selects no pixel; expected True where the"
      " image is to be drawn anew.",
    )
    check(
      not tokens.all(),
      f"the mask of image {image} covers every token after rounding outwards to"
      f" {cell} x {cell} pixels; use generate to draw whole images, or a"
      " smaller mask.",
    )


@checked(top=integer, left=integer, height=integer, width=integer)
def box(size: Size, top: int, left: int, height: int, width: int) -> ImageMask:
  """A rectangle to draw anew, booleans [height, width] of the image.

  Args:
    size: of the image.
    top, left: first row and column of the rectangle.
    height, width: of the rectangle, 1 or more; it lies inside the image.
  """
  rows, columns = _size(size)
  _check_inside("box", (rows, columns), (top, left), (height, width))
  mask = np.zeros((rows, columns), bool)
  mask[top : top + height, left : left + width] = True
  return mask


def outside(mask: Any) -> Bool[np.ndarray, "..."]:
  """Everything but the mask, booleans of its shape; values as `check_mask`."""
  return ~_as_bool(_as_array(mask))


def half(size: Size, side: str) -> ImageMask:
  """One half of an image to draw anew, booleans [height, width].

  `side` is "left", "right", "top" or "bottom"; of an odd size, the middle row
  or column belongs to the right or the bottom.
  """
  sides = ("left", "right", "top", "bottom")
  if side not in sides:
    raise ValueError(f"side is {side!r}; expected one of {', '.join(sides)}.")
  height, width = _size(size)
  is_across = side in ("left", "right")
  first = (height, width // 2) if is_across else (height // 2, width)
  check(
    min(first) > 0,
    f"an image of {height} x {width} pixels has no {side} half; expected 2"
    " pixels or more to halve.",
  )
  mask = box((height, width), 0, 0, *first)
  return mask if side in ("left", "top") else outside(mask)


@checked(cell=integer, share=real, seed=check_seed)
def scattered(size: Size, cell: int, share: float, seed: int) -> ImageMask:
  """Random tokens to draw anew, booleans [height, width]: a variation.

  Args:
    size: of the image, a multiple of cell.
    cell: height = width in pixels of a token.
    share: of the tokens, between 0 and 1; rounded, but at least one token and
      never all. With one seed, a larger share contains a smaller one.
    seed: 0 .. 2**32 - 1.
  """
  rows, columns = _grid(*_size(size), cell)
  length = rows * columns
  check(
    length > 1,
    f"an image of one token of {cell} x {cell} pixels has nothing to keep;"
    " expected two tokens or more.",
  )
  check(0 < share < 1, f"share is {share}; expected more than 0, less than 1.")
  count = min(max(round(share * length), 1), length - 1)
  # Ranks of uniform draws: numpy keeps those of a seed, not its shuffles.
  rank = np.random.RandomState(seed).random_sample(length).argsort().argsort()
  return pixel_mask((rank < count)[None], rows, columns, cell)[0]


@checked(top=integer, left=integer)
def place(
  image: Any, size: Size, top: int, left: int, fill: Any = 128
) -> tuple[UInt8[np.ndarray, "height width C"], ImageMask]:
  """Puts an image on a larger canvas, to draw what surrounds it.

  Tokens that the image's border cuts are drawn anew as a whole; place it at
  multiples of a token's pixels to keep all of it.

  Args:
    image: uint8 [h, w, C].
    size: of the canvas.
    top, left: row and column of the canvas where the image starts.
    fill: of the rest: 0 .. 255, one such value per channel, or "edge" to
      continue the image's border.

  Returns:
    The canvas, uint8 [height, width, C], and its mask, True outside of the
    image.
  """
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3:
    raise ValueError(
      f"image has shape {image.shape} and type {image.dtype}; expected one"
      " image, uint8 [height, width, channels]."
    )
  shape, (height, width) = _size(size), image.shape[:2]
  _check_inside("image", shape, (top, left), (height, width))
  check(
    (height, width) != shape,
    f"image fills the canvas of {height} x {width} pixels; expected a larger"
    " canvas, so that there is something to draw.",
  )
  mask = outside(box(shape, top, left, height, width))
  if isinstance(fill, str) and fill == "edge":
    below, right = shape[0] - top - height, shape[1] - left - width
    return np.pad(image, ((top, below), (left, right), (0, 0)), fill), mask
  canvas = np.empty((*shape, image.shape[2]), np.uint8)
  canvas[:] = _fill(fill, image.shape[2])
  canvas[~mask] = image.reshape(-1, image.shape[2])
  return canvas, mask


def _grid(height: int, width: int, cell: int) -> tuple[int, int]:
  """Rows and columns of tokens."""
  check(
    cell >= 1 and height % cell == 0 and width % cell == 0,
    f"an image of {height} x {width} pixels cannot be cut into tokens of {cell}"
    f" x {cell}; expected a height and a width divisible by it.",
  )
  return height // cell, width // cell


def _size(size: Size) -> tuple[int, int]:
  pair = size if isinstance(size, tuple | list) else (size, size)
  try:
    height, width = map(operator.index, pair)
    is_size = height > 0 and width > 0
  except (TypeError, ValueError):
    is_size = False
  check(
    is_size,
    f"size is {size!r}; expected height and width in pixels, or one integer.",
  )
  return height, width


def _check_inside(what: str, size, at, extent) -> None:
  is_inside = all(
    start >= 0 and length > 0 and start + length <= whole
    for start, length, whole in zip(at, extent, size, strict=True)
  )
  check(
    is_inside,
    f"{what} of {extent[0]} x {extent[1]} pixels at row {at[0]}, column {at[1]}"
    f" does not lie inside {size[0]} x {size[1]} pixels; expected 1 pixel or"
    " more, all of them inside.",
  )


def _fill(fill: Any, channels: int) -> np.ndarray:
  """The colour of the canvas, uint8 [C] or []."""
  colour = np.asarray(fill)
  is_colour = colour.dtype.kind in "iu" and colour.shape in ((), (channels,))
  is_colour = is_colour and colour.min() >= 0 and colour.max() <= 255
  check(
    bool(is_colour),
    f"fill is {fill!r}; expected an integer in 0 .. 255, a list of {channels},"
    " one for each channel of the image, or 'edge'.",
  )
  return colour.astype(np.uint8)


def _as_array(mask: Any) -> np.ndarray:
  expected = (
    "one value per pixel, True where the image is to be drawn anew, as"
    " marjax.regions.half and others give them"
  )
  return numbers(mask, "mask", expected)


def _as_bool(mask: np.ndarray) -> np.ndarray:
  """Booleans of an array that has only two values."""
  if mask.dtype.kind == "b":
    return mask
  is_byte = mask.dtype.kind in "iu" and bool((mask == 255).any())
  is_wrong = (mask != 0) & (mask != (255 if is_byte else 1))
  if is_wrong.any():
    at = np.argwhere(is_wrong)[0].tolist()
    raise ValueError(
      f"mask{at} is {mask[tuple(at)]}; expected booleans, only 0 and 1, or only"
      " integers 0 and 255: compare grey values with a threshold, as in"
      f" mask > {0.5 if mask.dtype.kind == 'f' else 127}."
    )
  return mask != 0
