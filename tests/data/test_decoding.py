"""Right pixels of every kind of file, the same for every verb; bounds."""

import ast
import io
import os
import pathlib
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin

from marjax.cli import edit
from marjax.data import contents, crops, decoding, sources
from marjax.experiment import DataConfig

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOURS = np.stack([RAMP, 255 - RAMP, RAMP // 2], -1)


def png(width, height, bits, colour, rows: bytes, before=b"") -> bytes:
  """A PNG file from its parts; Pillow cannot write all of them."""

  def chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc

  sizes = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
  if before:
    before = chunk(before[:4], before[4:])
  parts = chunk(b"IHDR", sizes), before, chunk(b"IDAT", zlib.compress(rows))
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def saved(pixels, suffix, mode=None, **options) -> bytes:
  file = io.BytesIO()
  picture = Image.fromarray(pixels)
  picture = picture.convert(mode) if mode else picture
  picture.save(file, suffix, **options)
  return file.getvalue()


def read(tmp_path, content: bytes, mode="RGB", name="x.png"):
  """The pixels, which every verb must read alike."""
  path = tmp_path / "train" / "a" / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  pixels = decoding.read(path, mode)
  channels = 1 if mode == "L" else 3
  assert pixels.shape[2] == channels
  config = DataConfig("folder", 8, 1, channels, data_dir=str(tmp_path))
  trained = sources.open_source(config, "train")[0]["image"]
  np.testing.assert_array_equal(trained, pixels)
  edited = edit.read_image(str(path), channels)
  np.testing.assert_array_equal(edited, pixels)
  in_memory = decoding.decode(io.BytesIO(content), mode)
  np.testing.assert_array_equal(in_memory, pixels)
  return pixels


WIDE = np.array([[0, 128, 257, 25700, 40000, 65535]], np.uint16)
NARROW = np.array([[0, 0, 1, 100, 156, 255]], np.uint8)  # v / 257, rounded


def tags(**values):
  directory = TiffImagePlugin.ImageFileDirectory_v2()
  for name, value in values.items():
    directory[getattr(decoding, name)] = value
  return directory


@pytest.mark.parametrize(
  ("suffix", "options"),
  [
    ("PNG", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
  ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_16_bit_grey(tmp_path, suffix, options, mode):
  pixels = read(tmp_path, saved(WIDE, suffix, **options), mode)
  assert (pixels == NARROW[..., None]).all()


def test_16_bit_grey_with_the_high_byte_first(tmp_path):
  content = saved(WIDE.astype(">u2"), "TIFF")
  assert content[:2] == b"MM"
  assert (read(tmp_path, content) == NARROW[..., None]).all()


def test_every_16_bit_value():
  values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
  exact = (values.astype(int) * 2 + 257) // 514
  pixels = decoding.decode(io.BytesIO(saved(values, "PNG")), "L")
  np.testing.assert_array_equal(pixels[..., 0], exact)


def test_12_bits_in_16_where_the_file_says_so(tmp_path):
  values = np.array([[0, 8, 9, 2048, 4095]], np.uint16)
  told = saved(values, "TIFF", tiffinfo=tags(MAX_SAMPLE_VALUE=4095))
  np.testing.assert_array_equal(
    read(tmp_path, told)[0, :, 0], [0, 0, 1, 128, 255]
  )
  untold = saved(values, "TIFF")
  np.testing.assert_array_equal(
    read(tmp_path, untold)[0, :, 0], [0, 0, 0, 8, 16]
  )
  wrong = saved(values + 1, "TIFF", tiffinfo=tags(MAX_SAMPLE_VALUE=4095))
  with pytest.raises(ValueError, match=r"1 to 4096, only 0 to 4095 are read"):
    read(tmp_path, wrong)


def test_a_tiff_of_12_bits(tmp_path):
  content = saved(np.zeros((1, 4), np.uint16), "TIFF")
  # 0x001, 0x800, 0xfff, 0x000 in six bytes; the tag of bits is 12.
  place = content.index(struct.pack("<HHII", 273, 4, 1, 8)[:4])
  offset = struct.unpack("<I", content[place + 8 : place + 12])[0]
  packed = bytes.fromhex("001800fff000") + b"\0\0"
  content = content[:offset] + packed + content[offset + 8 :]
  sixteen = struct.pack("<HHIHH", 258, 3, 1, 16, 0)
  assert content.count(sixteen) == 1
  content = content.replace(sixteen, struct.pack("<HHIHH", 258, 3, 1, 12, 0))
  pixels = read(tmp_path, content)
  np.testing.assert_array_equal(pixels[0, :, 0], [0, 128, 255, 0])


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_where_white_is_zero(tmp_path, kind):
  values = WIDE if kind == np.uint16 else np.array([[0, 0.2, 1]], kind)
  content = saved(values, "TIFF")
  black_is_zero = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
  assert content.count(black_is_zero) == 1
  plain = read(tmp_path, content)
  content = content.replace(black_is_zero, black_is_zero[:8] + 4 * b"\0")
  np.testing.assert_array_equal(read(tmp_path, content), 255 - plain)


def test_int32(tmp_path):
  content = saved(WIDE.astype(np.int32), "TIFF")
  assert (read(tmp_path, content) == NARROW[..., None]).all()
  for value in (-1, 65536):
    content = saved(np.full((2, 2), value, np.int32), "TIFF")
    with pytest.raises(ValueError, match=r"integers from .*, only 0 to 65535"):
      read(tmp_path, content)


def test_floats(tmp_path):
  levels = np.array([[0, 0.001, 0.002, 0.5, 0.75, 1]], np.float32)
  pixels = read(tmp_path, saved(levels, "TIFF"))
  np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 128, 191, 255])
  for value in (-0.1, 1.1, 255, np.nan, np.inf):
    levels[0, 1] = value
    with pytest.raises(ValueError, match=r"levels are floats from .*0 to 1 "):
      read(tmp_path, saved(levels, "TIFF"))


def test_16_bit_colour_loses_its_low_byte(tmp_path):
  row = struct.pack(">6H", 255, 256, 65535, 40000, 513, 0)
  pixels = read(tmp_path, png(2, 1, 16, 2, b"\0" + row))
  np.testing.assert_array_equal(pixels, [[[0, 1, 255], [156, 2, 0]]])


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(tmp_path, suffix, turn):
  corners = np.zeros((16, 32, 3), np.uint8)
  corners[:8, :16], corners[8:, :16], corners[:8, 16:] = 250, 170, 90
  undone = {
    1: corners,
    2: corners[:, ::-1],
    3: corners[::-1, ::-1],
    4: corners[::-1],
    5: corners.swapaxes(0, 1),
    6: corners.swapaxes(0, 1)[:, ::-1],
    7: corners[::-1, ::-1].swapaxes(0, 1),
    8: corners.swapaxes(0, 1)[::-1],
  }[turn]
  exif = Image.Exif()
  exif[0x0112] = turn
  content = saved(corners, suffix, exif=exif)
  pixels = read(tmp_path, content)
  assert pixels.shape == undone.shape
  assert np.abs(pixels.astype(int) - undone).max() < 8
  header = decoding.header(io.BytesIO(content))
  assert (header.height, header.width) == undone.shape[:2]
  assert header.is_turned == (turn > 1)


def on_white(colours, alpha):
  alpha = alpha[..., None] / 255
  return colours * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize(
  ("suffix", "grey"),
  [
    ("PNG", False),
    ("TIFF", False),
    ("WEBP", False),
    ("PNG", True),
    ("TIFF", True),
  ],
)
def test_alpha_lies_on_white(tmp_path, suffix, grey):
  alpha = np.array([[0, 255, 128, 3]] * 3, np.uint8)
  colours = np.stack([RAMP] * 3, -1) if grey else COLOURS
  parts = [RAMP[..., None] if grey else COLOURS, alpha[..., None]]
  more = {"lossless": True, "exact": True} if suffix == "WEBP" else {}
  content = saved(np.concatenate(parts, -1), suffix, **more)
  pixels = read(tmp_path, content)
  assert np.abs(pixels - on_white(colours, alpha)).max() <= 1
  np.testing.assert_array_equal(pixels[:, 0], 255)
  np.testing.assert_array_equal(pixels[:, 1], colours[:, 1])
  if grey:
    np.testing.assert_array_equal(read(tmp_path, content, "L"), pixels[..., :1])


def test_transparent_colours(tmp_path):
  """One transparent colour, at every depth; pixels of it become white."""

  def row(bits, colour, values, transparent):
    width = len(values) if colour == 0 else len(values) // 3
    if bits == 16:
      packed = struct.pack(f">{len(values)}H", *values)
    else:
      text = "".join(format(value, f"0{bits}b") for value in values)
      packed = int(text, 2).to_bytes(len(text) // 8, "big")
    chunk = b"tRNS" + struct.pack(f">{len(transparent)}H", *transparent)
    return png(width, 1, bits, colour, b"\0" + packed, chunk)

  def levels(*content):
    return read(tmp_path, row(*content))[0, :, 0].tolist()

  assert levels(1, 0, [0, 1] * 4, [0]) == [255] * 8
  assert levels(2, 0, [0, 1, 2, 3], [1]) == [0, 255, 170, 255]
  assert levels(4, 0, [0, 1, 2, 3], [2]) == [0, 17, 255, 51]
  assert levels(8, 0, [7, 1, 2, 3], [7]) == [255, 1, 2, 3]
  assert levels(16, 0, [257, 514, 771], [514]) == [1, 255, 3]
  assert levels(8, 2, [1, 2, 3, 4, 5, 6], [4, 5, 6]) == [1, 255]
  wide = [40000, 50000, 60000]
  assert levels(16, 2, [256, 512, 768, *wide], wide) == [1, 255]


@pytest.mark.parametrize("suffix", ["PNG", "GIF"])
def test_transparent_palettes(tmp_path, suffix):
  picture = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8), "P")
  picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  file = io.BytesIO()
  picture.save(file, suffix, transparency=1)
  pixels = read(tmp_path, file.getvalue())
  white = [255, 255, 255]
  expected = [[[10, 20, 30], white, [70, 80, 90], white]]
  np.testing.assert_array_equal(pixels, expected)
  if suffix == "PNG":
    file = io.BytesIO()
    picture.save(file, suffix, transparency=bytes([255, 0, 128]))
    pixels = read(tmp_path, file.getvalue())[0]
    np.testing.assert_array_equal(pixels[:2], [[10, 20, 30], white])
    assert np.abs(pixels[2] - [162, 167, 172]).max() <= 1


def test_other_modes(tmp_path):
  np.testing.assert_array_equal(
    read(tmp_path, saved(RAMP > 100, "PNG"))[..., 0], 255 * (RAMP > 100)
  )
  ink = saved(COLOURS, "TIFF", "CMYK")
  np.testing.assert_array_equal(read(tmp_path, ink), COLOURS)
  flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
  for mode in ("YCbCr", "CMYK"):
    pixels = read(tmp_path, saved(flat, "JPEG", mode))
    assert np.abs(pixels.astype(int) - flat).max() <= 3
  profiles = map(ImageCms.createProfile, ("sRGB", "LAB"))
  to_lab = ImageCms.buildTransform(*profiles, "RGB", "LAB")
  file = io.BytesIO()
  ImageCms.applyTransform(Image.fromarray(flat), to_lab).save(file, "TIFF")
  assert decoding.header(io.BytesIO(file.getvalue())).mode == "LAB"
  pixels = read(tmp_path, file.getvalue())
  assert np.abs(pixels.astype(int) - flat).max() <= 3
  read(tmp_path, file.getvalue(), "L")
  layers = decoding.decode(
    io.BytesIO(saved(COLOURS, "PNG", "RGBA")), mode="RGBA"
  )
  assert layers.shape == (3, 4, 4)


@pytest.mark.parametrize("suffix", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames(tmp_path, suffix):
  frames = [np.full((8, 8, 3), value, np.uint8) for value in (40, 90, 200)]
  more = [Image.fromarray(frame) for frame in frames[1:]]
  content = saved(frames[0], suffix, save_all=True, append_images=more)
  assert np.abs(read(tmp_path, content).astype(int) - 40).max() <= 2
  assert decoding.header(io.BytesIO(content)).has_frames
  alone = saved(frames[0], "PNG")
  assert not decoding.header(io.BytesIO(alone)).has_frames


@pytest.mark.parametrize(
  "content",
  [
    png(1, 20000, 8, 0, b"\0\0" * 20000),
    png(20000, 1, 8, 2, bytes(60001)),
    png(60000, 60000, 8, 2, b"bomb"),
    png(13378, 13378, 1, 0, b"bomb"),
    png(2**31 - 1, 2**31 - 1, 8, 0, b""),
    saved(RAMP, "BMP").replace(
      struct.pack("<ii", 4, 3), struct.pack("<ii", 30000, 30000)
    ),
    saved(RAMP, "GIF").replace(
      struct.pack("<HH", 4, 3), struct.pack("<HH", 60000, 60000)
    ),
  ],
)
def test_bombs_and_strips_are_refused_by_their_header(
  tmp_path, monkeypatch, content
):
  def load(picture):
    raise AssertionError("more than the header was read")

  monkeypatch.setattr(ImageFile.ImageFile, "load", load)
  path = tmp_path / "x.png"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"x\.png cannot .* are read") as error:
    decoding.read(path, "RGB")
  assert len(str(error.value).splitlines()) == 1
  with pytest.raises(decoding.Refused, match="are read"):
    decoding.header(path)


def test_the_bounds_themselves(tmp_path):
  decoding.check_sides(64, 1)
  decoding.check_sides(13377, 13377)
  for sides in ((65, 1), (1, 65), (13378, 13378), (0, 5)):
    with pytest.raises(decoding.Refused, match=f"^it has {sides[0]} × "):
      decoding.check_sides(*sides)
  with pytest.raises(ValueError, match="1 : 64"):
    crops.centre_crop(np.zeros((1, 20000, 3), np.uint8), 256)
  with open(tmp_path / "x.png", "wb") as file:
    file.truncate(decoding.MAX_BYTES + 1)
  with pytest.raises(ValueError, match=r"it has 1073741825 bytes"):
    decoding.read(tmp_path / "x.png", "RGB")


def test_only_files_are_opened(tmp_path):
  os.mkfifo(tmp_path / "pipe.png")
  (tmp_path / "folder.png").mkdir()
  (tmp_path / "device.png").symlink_to("/dev/zero")
  for name in ("pipe.png", "folder.png", "device.png"):
    with pytest.raises(ValueError, match=rf"{name} .*a pipe or a device"):
      edit.read_image(str(tmp_path / name), 3)
  (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
  with pytest.raises(ValueError, match=r"circle\.png cannot be read"):
    edit.read_image(str(tmp_path / "circle.png"), 3)
  with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
    edit.read_image(str(tmp_path / "none.png"), 3)
  (tmp_path / "x.png").write_bytes(saved(COLOURS, "PNG"))
  (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
  np.testing.assert_array_equal(
    edit.read_image(str(tmp_path / "link.png"), 3), COLOURS
  )


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"P6 1 1 255 abc",  # PPM, which Pillow would read
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    saved(COLOURS, "PNG")[:-30],
    saved(np.zeros((64, 64, 3), np.uint8), "JPEG")[:-200],
  ],
)
def test_damaged_and_foreign_files_are_named(tmp_path, content):
  path = tmp_path / "a\x1b[31m\nb.png"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"a\\x1b\[31m\\nb\.png cannot") as error:
    decoding.read(path, "RGB")
  assert str(error.value).isprintable()


@pytest.mark.filterwarnings("default")
def test_what_pillow_warns_of_is_read(tmp_path):
  exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"  # 65 535 entries follow
  content = saved(np.zeros((64, 64, 3), np.uint8), "JPEG", exif=exif)
  (tmp_path / "x.jpg").write_bytes(content)
  large = png(12000, 9000, 1, 0, bytes((1 + 1500) * 9000))
  (tmp_path / "y.png").write_bytes(large)
  filters = list(warnings.filters)
  with pytest.warns(UserWarning, match="EXIF"):
    assert decoding.read(tmp_path / "x.jpg", "RGB").shape == (64, 64, 3)
  with pytest.warns(Image.DecompressionBombWarning):
    assert decoding.header(tmp_path / "y.png").width == 12000
  # They are Pillow's to show, and the program's to silence.
  assert warnings.filters == filters


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
  "exif",
  [
    b"Exif\0\0garbage and more",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
  ],
)
def test_a_broken_exif_turns_nothing(tmp_path, exif):
  flat = np.full((16, 32, 3), 90, np.uint8)
  assert read(tmp_path, saved(flat, "JPEG", exif=exif)).shape == (16, 32, 3)


def test_no_other_module_opens_images():
  """All that read pictures go through the one decoder."""
  package = pathlib.Path(decoding.__file__).parents[1]
  opening = [
    path.name
    for path in package.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute)
    and ast.unparse(node).endswith("Image.open")
  ]
  assert set(opening) == {"decoding.py"}


def test_contents_count_frames_and_turns(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  place = tmp_path / "train" / "a"
  place.mkdir(parents=True)
  turned = saved(np.zeros((16, 32, 3), np.uint8), "JPEG", exif=exif)
  (place / "1.jpg").write_bytes(turned)
  frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
  frames[0].save(place / "2.gif", save_all=True, append_images=frames[1:])
  config = DataConfig("folder", 8, 1, data_dir=str(tmp_path))
  found = contents.of_source(sources.open_source(config, "train"))
  assert (found.num_turned, found.num_frames) == (1, 1)
  assert found.sizes == {"16×32": 1, "8×8": 1}
  assert "1 turned as their EXIF says, 1 with several frames" in str(found)
