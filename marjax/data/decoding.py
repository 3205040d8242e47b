"""Image files to 8-bit pixels: the one decoder of training, caches and edits.

1. Only regular files are opened, also through links; a pipe would block.
2. The header is read: one of FORMATS, whatever the name says. More than
   MAX_PIXELS pixels, MAX_BYTES bytes or sides beyond 1 : MAX_RATIO are refused
   before a pixel is decoded, so a small file costs little memory and time.
3. Of several frames the first is decoded, and turned as its EXIF says.
4. Grey levels of more than 8 bits become 8 by the kind of their numbers,

       16 bits           v · 255 / 65535
       fewer, in 16      v · 255 / (2^bits - 1), where a TIFF says so, by its
                         BitsPerSample or MaxSampleValue; else as 16 bits
       int32             as 16 bits, if all are in 0 .. 65535, else refused
       float             v · 255, if all are in 0 .. 1, else refused

   rounded, and turned over where a TIFF says that white is 0. RGB of 16 bits
   a channel loses its low byte.
5. What is transparent, by alpha, palette or one colour, lies on white.
6. Palettes, 1-bit, CMYK, YCbCr and LAB become grey or RGB as Pillow does it;
   colour profiles are not applied.

DIFFERS: decoding. The published program has Pillow's conversion to RGB alone,
which knows no EXIF, drops alpha and clips 16 bits.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from marjax import outputs

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

MAX_PIXELS = 178_956_970
"""512 MiB of RGB; where Pillow, too, takes a file for an attack."""

MAX_RATIO = 64
"""Longer over shorter side; a crop resizes the shorter one to its size."""

MAX_BYTES = 2**30
"""Of a file; some formats are read whole before their header is known."""

GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of grey levels with more than 8 bits."""

PHOTOMETRIC, MAX_SAMPLE_VALUE, BITS = 262, 281, 258
"""Tags of TIFF."""


class Refused(ValueError):
  """A whole file that is not decoded; the text is a clause."""


class Header(NamedTuple):
  """What a file says of its picture: size after turning, mode, and more."""

  width: int
  height: int
  mode: str
  has_frames: bool
  is_turned: bool


def read(path: str | os.PathLike, mode: str) -> UInt8[np.ndarray, "H W C"]:
  """`decode` of an image file, with errors that name it.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be decoded, or is refused; says why.
  """
  with naming(path):
    return decode(path, mode)


def header(file: str | os.PathLike | io.BytesIO) -> Header:
  """The header of an image file or its bytes; errors as in `decode`."""
  with _opened(file) as picture:
    turn = _orientation(picture)
    # A TIFF's size is that after turning.
    is_on_side = turn in (5, 6, 7, 8) and picture.format != "TIFF"
    sides = picture.size[::-1] if is_on_side else picture.size
    has_frames = getattr(picture, "is_animated", False)
    return Header(*sides, picture.mode, has_frames, 2 <= turn <= 8)


def decode(
  file: str | os.PathLike | io.BytesIO, mode: str
) -> UInt8[np.ndarray, "H W C"]:
  """The pixels of an image file or its bytes, in Pillow's mode L, RGB or RGBA.

  Raises:
    Refused: see the module. Exception: whatever Pillow raises.
  """
  with _opened(file) as picture:
    _mend_transparency(picture)
    picture.load()
    # A TIFF was turned by loading, and says so.
    turn = _orientation(picture)
    if picture.mode in GREY:
      picture = _in_8_bits(picture)
    elif mode != "RGBA" and picture.has_transparency_data:
      ground = Image.new("RGBA", picture.size, "white")
      ground.alpha_composite(picture.convert("RGBA"))
      picture = ground.convert("RGB")
    if picture.mode == "LAB":
      picture = picture.convert("RGB")
    if picture.mode != mode:
      picture = picture.convert(mode)
    pixels = np.asarray(picture)
  if turn in (5, 6, 7, 8):
    pixels = pixels.swapaxes(0, 1)
  rows = slice(None, None, -1 if turn in (3, 4, 7, 8) else 1)
  columns = slice(None, None, -1 if turn in (2, 3, 6, 7) else 1)
  return pixels[rows, columns].reshape(*pixels.shape[:2], -1)


def check_sides(width: int, height: int, what: str = "it") -> None:
  """Refuses a picture that is too large or too thin to be cropped."""
  short, long = sorted((width, height))
  if not 0 < short * long <= MAX_PIXELS or long > MAX_RATIO * short:
    raise Refused(
      f"{what} has {width} × {height} pixels, at most {MAX_PIXELS} and sides of"
      f" 1 : {MAX_RATIO} are read"
    )


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Makes one sentence of what is wrong with a file."""
  try:
    yield
  except (FileNotFoundError, MemoryError):
    raise
  except Exception as error:
    raise ValueError(
      f"{outputs.shown(path)} cannot be read as an image ({reason(error)});"
      f" expected a whole {', '.join(FORMATS)} file: replace or remove it."
    ) from error


def reason(error: Exception) -> str:
  """Why a file cannot be decoded, as a clause."""
  if isinstance(error, Refused):
    return str(error)
  if isinstance(error, UnidentifiedImageError):
    return "UnidentifiedImageError: its content is of no such format"
  said = getattr(error, "strerror", None) or str(error)
  return outputs.shown(f"{type(error).__name__}: {said}"[:200].split("\n")[0])


@contextlib.contextmanager
def _opened(file: str | os.PathLike | io.BytesIO) -> Iterator[Image.Image]:
  if not isinstance(file, io.BytesIO):
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
      raise Refused("it is no file but a folder, a pipe or a device")
    if status.st_size > MAX_BYTES:
      raise Refused(f"it has {status.st_size} bytes, at most {MAX_BYTES} are")
  try:
    with Image.open(file, formats=FORMATS) as picture:
      check_sides(*picture.size)
      yield picture
  except Image.DecompressionBombError as error:
    raise Refused(f"at most {MAX_PIXELS} pixels are read: {error}") from error


def _orientation(picture: Image.Image) -> int:
  """EXIF's, 1 where there is none or it is broken."""
  try:
    # PNG's own method decodes the picture first.
    exif = Image.Image.getexif(picture)
    return int(exif.get(ExifTags.Base.Orientation, 1))
  except Exception:  # whatever a broken EXIF makes of Pillow
    return 1


def _mend_transparency(picture: Image.Image) -> None:
  """Puts a PNG's transparent colour into the 8 bits that Pillow decodes to."""
  colour = picture.info.get("transparency")
  if picture.format != "PNG" or colour is None or not picture.tile:
    return
  layout = picture.tile[0][3]
  if layout in ("L;2", "L;4"):
    picture.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[layout]
  elif layout == "RGB;16B":
    picture.info["transparency"] = tuple(value >> 8 for value in colour)


def _in_8_bits(picture: Image.Image) -> Image.Image:
  """Grey levels in one byte, by step 4 of the module."""
  values = np.asarray(picture)
  tags = getattr(picture, "tag_v2", {})
  largest = 1 if picture.mode == "F" else _largest(tags)
  low, high = values.min(), values.max()
  # Written so that NaN is refused.
  if not (low >= 0 and high <= largest):
    kind = "floats" if picture.mode == "F" else "integers"
    raise Refused(
      f"its grey levels are {kind} from {low:g} to {high:g}, only 0 to"
      f" {largest} are read"
    )
  levels = np.rint(values * np.float32(255 / largest)).astype(np.uint8)
  if tags.get(PHOTOMETRIC) == 0:
    levels = 255 - levels
  if isinstance(picture.info.get("transparency"), int):
    levels[values == picture.info["transparency"]] = 255
  return Image.fromarray(levels)


def _largest(tags) -> int:
  """The integer that is white."""
  bits = tags.get(BITS, (16,))[0]
  if bits < 16:
    return 2**bits - 1
  said = tags.get(MAX_SAMPLE_VALUE, 0)
  said = said[0] if isinstance(said, tuple) else said
  return said if said in [2**n - 1 for n in range(9, 16)] else 2**16 - 1
