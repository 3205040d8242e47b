"""Pictures show each pixel and caption where it belongs."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from marjax import outputs
from marjax.requests import pictures


def one_pixel_images(*greys):
  return np.array(greys, np.uint8).reshape(-1, 1, 1, 1)


def test_grid_repeats_pixels_in_reading_order():
  images = np.arange(1, 25, dtype=np.uint8).reshape(6, 2, 2, 1) * 10
  page = pictures.grid(images, 3, scale=5)
  assert page.dtype == np.uint8
  assert page.shape[2] == 3
  margin, step = 12, 2 * 5 + 2
  for i, image in enumerate(images):
    y, x = margin + i // 3 * step, margin + i % 3 * step
    cell = page[y : y + 10, x : x + 10]
    expected = np.repeat(np.repeat(image, 5, 0), 5, 1)
    np.testing.assert_array_equal(cell, np.broadcast_to(expected, cell.shape))
  inside = page[margin:-margin, margin:-margin]
  assert inside.shape == (2 * step - 2, 3 * step - 2, 3)
  assert (page[:margin] == 255).all()


def test_grid_leaves_white_room_after_a_short_last_row():
  page = pictures.grid(one_pixel_images(0, 0, 0), 2, scale=20)
  assert (page[-32:-12, -32:-12] == 255).all()
  assert (page[-32:-12, 12:32] == 0).all()


def test_grid_draws_its_captions():
  images = np.full((4, 8, 8, 3), 255, np.uint8)
  plain = pictures.grid(images, 2, scale=4)
  assert (plain == 255).all()
  for captions in (
    {"labels": [0, 1, 2, 3]},
    {"row_labels": ["cat", "dog"]},
    {"title": "samples"},
  ):
    page = pictures.grid(images, 2, scale=4, **captions)
    assert page.min() < 100
    assert page.size > plain.size


def test_grid_refuses_what_it_cannot_draw():
  images = np.zeros((4, 8, 8, 1), np.uint8)
  with pytest.raises(
    ValueError, match=re.escape("expected uint8 [N, H, W, C]")
  ):
    pictures.grid(images.astype(np.float32), 2)
  with pytest.raises(ValueError, match="0 images"):
    pictures.grid(images[:0], 2)
  with pytest.raises(ValueError, match="columns is 0"):
    pictures.grid(images, 0)
  with pytest.raises(ValueError, match="labels has 3 entries; expected 4"):
    pictures.grid(images, 2, labels=[1, 2, 3])
  with pytest.raises(ValueError, match="row_labels has 1 entries; expected 2"):
    pictures.grid(images, 2, row_labels=["a"])


def test_comparison_puts_each_class_in_its_row():
  # Generated images are dark, real ones light; the grey tells the class.
  labels = np.array([1, 0, 2, 2, 0, 1])
  generated = np.repeat(one_pixel_images(*(labels * 20 + 10)), 8, 1)
  generated = np.repeat(generated, 8, 2)
  page = pictures.comparison(generated, generated + 100, labels, scale=6)
  left, right = np.split(page, 2, axis=1)
  for half, offset in ((left, 10), (right, 110)):
    for label in range(3):
      is_class = (half == label * 20 + offset).all(2)
      rows = np.flatnonzero(is_class.sum(1) >= 96)
      assert len(rows) == 48
      assert rows[0] == 42 + label * 52


def test_comparison_refuses_uneven_classes():
  images = np.zeros((3, 8, 8, 1), np.uint8)
  with pytest.raises(ValueError, match="a class fills a row"):
    pictures.comparison(images, images, [0, 0, 1])
  with pytest.raises(ValueError, match="expected as many of each"):
    pictures.comparison(images, images[:2], [0, 0, 1])


def test_reveal_strip_hatches_exactly_the_unknown_tokens():
  images = np.full((5, 4, 4, 1), 77, np.uint8)
  is_known = np.zeros((5, 4, 4), bool)
  for step, (row, column) in enumerate([(0, 2), (2, 2), (2, 0), (0, 0)]):
    is_known[step + 1 :, row : row + 2, column : column + 2] = True
  strip = pictures.reveal_strip(images, is_known, range(5), scale=24, columns=5)
  for step in range(5):
    x = 12 + step * (96 + 8)
    frame = strip[12:108, x : x + 96]
    known = np.repeat(np.repeat(is_known[step], 24, 0), 24, 1)
    assert (frame[known] == 77).all()
    assert (frame[~known] > 200).all()
    # Stripes, not a plain grey, so that no image looks like them.
    assert known.all() or len(np.unique(frame[~known])) == 2


def test_reveal_strip_thins_out_many_steps():
  images = np.zeros((65, 4, 4, 1), np.uint8)
  is_known = np.zeros((65, 4, 4), bool)
  strip = pictures.reveal_strip(images, is_known, range(65), max_frames=18)
  rows = (strip.shape[0] - 24 + 8) // (96 + 8)
  assert rows == 2


def test_reveal_strip_refuses_shapes_that_do_not_fit():
  images = np.zeros((2, 4, 4, 1), np.uint8)
  with pytest.raises(ValueError, match=re.escape("expected (2, 4, 4) and 2")):
    pictures.reveal_strip(images, np.zeros((2, 2, 2), bool), [1, 4])


def test_save_png_is_lossless_and_never_overwrites(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  path = tmp_path / "new" / "grid.png"
  pictures.save_png(path, image)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
  with pytest.raises(FileExistsError, match="--overwrite"):
    pictures.save_png(path, image // 2)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
  pictures.save_png(path, image // 2, overwrite=True)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), image // 2)
  assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_paths_that_cannot_be_written_are_named(tmp_path):
  (tmp_path / "file").write_text("mine")
  below = tmp_path / "file" / "grid.png"
  with pytest.raises(OSError, match=re.escape("cannot be written")) as caught:
    outputs.check_free([below])
  assert str(below) in str(caught.value)
  with pytest.raises(IsADirectoryError, match="is a folder"):
    outputs.check_free([tmp_path], overwrite=True)
  with pytest.raises(FileExistsError, match="already exists"):
    outputs.check_free([tmp_path / "free", tmp_path / "file"])
  outputs.check_free([tmp_path / "free", tmp_path / "file"], overwrite=True)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]
  assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "report.json"
  outputs.write(path, b"old")

  def full_disk(self, target):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("pathlib.Path.replace", full_disk)
  with pytest.raises(OSError, match="no space left on device"):
    outputs.write(path, b"new", overwrite=True)
  assert path.read_bytes() == b"old"
  assert len(list(tmp_path.iterdir())) == 1


def write_metrics(path, rows, tail=""):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def test_read_curve_survives_restarts_and_cut_lines(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = [{"step": s, "loss": s / 10} for s in (1, 2, 3)]
  rows += [{"step": 2, "loss": 9.0}, {"step": 4, "images_per_second": 5}]
  write_metrics(path, rows, tail='{"step": 5, "lo')
  curve = pictures.read_curve(path, "loss")
  np.testing.assert_array_equal(curve, [[1, 0.1], [2, 9], [3, 0.3]])


def test_loss_curve_draws_and_refuses_empty_files(tmp_path):
  pytest.importorskip("matplotlib")
  path, out = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
  write_metrics(path, [{"step": 1, "seconds": 2}])
  with pytest.raises(ValueError, match="holds no line with a step and a loss"):
    pictures.loss_curve(path, out)
  write_metrics(
    path, [{"step": s, "loss": 2 / s, "mse": 1 / s} for s in range(1, 90)]
  )
  pictures.loss_curve(path, out)
  pixels = np.asarray(Image.open(out).convert("RGB"))
  assert pixels.shape == (520, 936, 3)
  colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
  assert {(0x1F, 0x3A, 0x68), (0x2A, 0x8C, 0x82)} <= colours
  assert (0xC8, 0x74, 0x2C) not in colours


@pytest.mark.parametrize(
  ("terms", "drawn"),
  [
    ({"cross_entropy": 1.0}, ["loss", "cross-entropy"]),
    ({"cross_entropy": 2.0}, ["loss"]),
    (
      {"cross_entropy": 1.5, "smoothing": 0.5},
      ["loss", "cross-entropy", "label smoothing"],
    ),
  ],
)
def test_loss_curve_draws_the_terms_that_are_not_the_whole(
  tmp_path, monkeypatch, terms, drawn
):
  axes = pytest.importorskip("matplotlib.axes")
  path, shown, plot = tmp_path / "metrics.jsonl", [], axes.Axes.plot

  def noted(*args, label=None, **kwargs):
    shown.append(label)
    return plot(*args, label=label, **kwargs)

  monkeypatch.setattr(axes.Axes, "plot", noted)
  rows = [
    {"step": step, "loss": 2.0 / step}
    | {name: share / step for name, share in terms.items()}
    for step in range(1, 9)
  ]
  write_metrics(path, rows)
  pictures.loss_curve(path, tmp_path / "loss.png")
  assert [label for label in shown if label] == drawn


def test_save_png_takes_grey_images_as_they_are_generated(tmp_path):
  image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
  pictures.save_png(tmp_path / "grey.png", image)
  with Image.open(tmp_path / "grey.png") as saved:
    np.testing.assert_array_equal(np.asarray(saved), image[..., 0])
  for wrong in (image / 2, image[None], image[0, 0]):
    with pytest.raises(ValueError, match=r"expected uint8 \[height, width"):
      pictures.save_png(tmp_path / "wrong.png", wrong)
