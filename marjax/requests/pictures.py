"""Pictures of results, legible at the size of a README.

1. `grid`: images in rows, enlarged without smoothing, with captions.
2. `comparison`: generated images beside real ones, one class per row.
3. `reveal_strip`: one image after each step; hatching where it is unknown.
4. `loss_curve`: the training loss and its terms, from a metrics file.

Every function but the last returns an array, uint8 [height, width, 3];
`save_png` writes one. Grids are drawn on white with the image's own pixels
repeated, never interpolated.
"""

import io
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from marjax import outputs

Captions = Sequence | np.ndarray

_TERMS = {
  "mse": "squared error",
  "vlb": "variational bound",
  "cross_entropy": "cross-entropy",
  "smoothing": "label smoothing",
}
"""What heads call the terms of their losses, and words for them."""

_PAPER = (255, 255, 255)
_INK = (38, 38, 38)
_HATCH = np.array([[232] * 3, [205] * 3], np.uint8)
_MARGIN = 12
_SMALLEST = 9
"""Of fonts that can be read."""


def grid(
  images: np.ndarray,
  columns: int,
  *,
  scale: int = 1,
  labels: Captions | None = None,
  row_labels: Captions | None = None,
  title: str | None = None,
) -> np.ndarray:
  """Images in reading order, `columns` to a row.

  Args:
    images: uint8 [N, H, W, C], C = 1 or 3, N at least 1.
    columns: images per row.
    scale: each pixel becomes scale × scale pixels.
    labels: N captions, one under each image.
    row_labels: one caption to the left of each row.
    title: one line above.

  Raises:
    ValueError: wrong shape or dtype, or captions that do not count up.
  """
  cells = _enlarged(images, scale)
  num_images, height, width, _ = cells.shape
  if columns < 1:
    raise ValueError(f"columns is {columns}; expected 1 or more.")
  rows = -(-num_images // columns)
  _check_count("labels", labels, num_images)
  _check_count("row_labels", row_labels, rows)
  columns = min(columns, num_images)
  gap = max(2, min(height, width) // 12)
  largest = max(11, min(18, width // 3))
  font, captions = _fitting(labels, width + gap - 2, largest)
  beside = [
    outputs.shown(str(x)) for x in ([] if row_labels is None else row_labels)
  ]
  widths = [int(font.getlength(text)) + 10 for text in beside]
  left = _MARGIN + max(widths, default=0)
  top = _MARGIN + (30 if title else 0)
  caption = int(font.size * 1.5) if labels is not None else 0
  step_x, step_y = width + gap, height + gap + caption
  size = (
    left + columns * step_x - gap + _MARGIN,
    top + rows * step_y - gap + _MARGIN,
  )
  page = Image.new("RGB", size, _PAPER)
  draw = ImageDraw.Draw(page)
  if title:
    draw.text((left, _MARGIN), title, _INK, ImageFont.load_default(20))
  for i, cell in enumerate(cells):
    x, y = left + i % columns * step_x, top + i // columns * step_y
    page.paste(Image.fromarray(cell), (x, y))
    if labels is not None:
      below = (x + width / 2, y + height + 2)
      draw.text(below, captions[i], _INK, font, anchor="ma")
  for row, text in enumerate(beside):
    place = (left - 10, top + row * step_y + height / 2)
    draw.text(place, text, _INK, font, anchor="rm")
  return np.asarray(page)


def comparison(
  generated: np.ndarray,
  real: np.ndarray,
  labels: Captions,
  *,
  scale: int | None = None,
  names: Captions | None = None,
) -> np.ndarray:
  """Generated images (left) beside real ones (right), one class per row.

  Args:
    generated: uint8 [N, H, W, C], the same number of images of each class.
    real: uint8 [N, H, W, C]; real[i] is of the class of generated[i].
    labels: class of each pair, N of them, in any order; sorted for the rows.
    scale: enlargement; by default an image is about 48 pixels high.
    names: of the classes, class i is names[i]; None for their numbers.

  Raises:
    ValueError: shapes differ, or classes have different numbers of images.
  """
  if generated.shape != real.shape:
    raise ValueError(
      f"generated images have shape {generated.shape}, real ones {real.shape};"
      " expected as many of each, of the same size."
    )
  labels = np.asarray(labels)
  _check_count("labels", labels, len(generated))
  classes, counts = np.unique(labels, return_counts=True)
  if len(set(counts.tolist())) != 1:
    raise ValueError(
      f"classes have {counts.min()} to {counts.max()} images; expected the"
      " same number of each, because a class fills a row."
    )
  order = np.argsort(labels, kind="stable")
  scale = scale or max(1, round(48 / generated.shape[1]))
  rows = classes.tolist()
  halves = [
    grid(
      images[order],
      int(counts[0]),
      scale=scale,
      row_labels=[label if names is None else names[label] for label in rows],
      title=title,
    )
    for images, title in ((generated, "generated"), (real, "real"))
  ]
  return np.concatenate(halves, axis=1)


def reveal_strip(
  images: np.ndarray,
  is_known: np.ndarray,
  num_known: Captions,
  *,
  scale: int | None = None,
  columns: int = 9,
  max_frames: int = 18,
  title: str | None = None,
) -> np.ndarray:
  """One image as its tokens become known, captioned with how many are.

  Args:
    images: uint8 [S, H, W, C], the image after each step.
    is_known: bool [S, H, W], pixels that are final; the others are hatched.
    num_known: known tokens after each step, S integers; the last is all.
    scale: enlargement; by default a frame is about 96 pixels high.
    columns: frames per row.
    max_frames: with more steps than this, evenly chosen ones are shown.
    title: one line above.

  Raises:
    ValueError: shapes that do not fit each other.
  """
  steps, height, width, _ = images.shape
  if is_known.shape != (steps, height, width) or len(num_known) != steps:
    raise ValueError(
      f"is_known has shape {is_known.shape} and num_known {len(num_known)}"
      f" entries; expected {(steps, height, width)} and {steps}, for images of"
      f" shape {images.shape}."
    )
  shown = np.arange(steps)
  if steps > max_frames:
    shown = np.linspace(0, steps - 1, max_frames).round().astype(int)
  scale = scale or max(1, round(96 / height))
  frames = _enlarged(images[shown], scale)
  pixels = np.repeat(np.repeat(is_known[shown], scale, 1), scale, 2)
  # Diagonal stripes in two greys.
  diagonal = np.add.outer(*map(np.arange, frames.shape[1:3]))
  stripes = diagonal // max(3, height * scale // 16) % 2
  frames = np.where(pixels[..., None], frames, _HATCH[stripes])
  captions = [f"{num_known[i]} of {num_known[-1]}" for i in shown]
  return grid(frames, columns, labels=captions, title=title)


def save_png(
  path: str | outputs.AnyPath, image: np.ndarray, overwrite: bool = False
) -> None:
  """Writes uint8 [H, W, C], C = 1 or 3, as PNG, whole or not at all.

  Raises:
    ValueError: another shape or type.
    FileExistsError: the path exists and `overwrite` is false.
    OSError: the path cannot be written.
  """
  buffer = io.BytesIO()
  if image.dtype != np.uint8 or image.ndim not in (2, 3):
    raise ValueError(
      f"image is {image.dtype} of shape {image.shape}; expected uint8 [height,"
      " width, channels]: one image of those that generate gives."
    )
  pixels = image[..., 0] if image.shape[2:] == (1,) else image
  Image.fromarray(pixels).save(buffer, format="PNG")
  outputs.write(path, buffer.getvalue(), overwrite)


def loss_curve(
  metrics: str | outputs.AnyPath,
  out: str | outputs.AnyPath,
  overwrite: bool = False,
) -> None:
  """Draws loss and terms against steps: points faint, their trend strong.

  The vertical axis is logarithmic where the values span a factor of ten. A term
  that is the whole loss is not drawn a second time.

  Args:
    metrics: JSON lines with "step" and "loss", perhaps with the terms of a head
      of marjax, such as "mse" and "vlb" or "cross_entropy".
    out: the PNG to write, as in `save_png`.

  Raises:
    ValueError: no line of the file holds a loss.
  """
  from matplotlib.figure import Figure

  loss = read_curve(metrics, "loss")
  if not len(loss):
    raise ValueError(
      f"{metrics} holds no line with a step and a loss; expected the"
      " metrics.jsonl of a training run."
    )
  curves = {"loss": loss}
  for name in _TERMS:
    curve = read_curve(metrics, name)
    if len(curve) and not np.array_equal(curve, loss):
      curves[name] = curve
  figure = Figure(figsize=(7.2, 4.0), dpi=130, layout="constrained")
  axes = figure.add_subplot()
  trends = {}
  for (name, curve), colour in zip(
    curves.items(), ("#1f3a68", "#2a8c82", "#c8742c"), strict=False
  ):
    steps, values = curve.T
    trends[name] = _trend(values)
    axes.plot(steps, values, ".", color=colour, alpha=0.4, markersize=3)
    label = _TERMS.get(name, name)
    axes.plot(steps, trends[name], color=colour, lw=1.8, label=label)
  values = np.concatenate(list(trends.values()))
  if values.min() > 0 and values.max() / values.min() > 10:
    axes.set_yscale("log")
  else:
    axes.set_ylim(bottom=min(0, values.min()), top=1.05 * values.max())
  axes.set_xlabel("training step")
  axes.grid(alpha=0.25, lw=0.6)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False)
  axes.set_title("Training loss: points, and their moving mean", loc="left")
  outputs.write(out, png_of(figure), overwrite)


def png_of(figure) -> bytes:
  """A figure of matplotlib's, drawn as PNG, whatever the screen."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  buffer = io.BytesIO()
  FigureCanvasAgg(figure).print_png(buffer)
  return buffer.getvalue()


def read_curve(metrics: str | outputs.AnyPath, name: str) -> np.ndarray:
  """(step, value) rows of one metric, float64 [N, 2], by step.

  A step that was trained twice, after a restart, keeps its last value; a line
  that a kill cut short is skipped.
  """
  values = {}
  for line in outputs.path_of(metrics).read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    if "step" in row and name in row:
      values[row["step"]] = row[name]
  return np.array(sorted(values.items()), np.float64).reshape(-1, 2)


def _enlarged(images: np.ndarray, scale: int) -> np.ndarray:
  """uint8 [N, H, W, 1 or 3] → uint8 [N, scale·H, scale·W, 3]."""
  shape, dtype = np.shape(images), np.asarray(images).dtype
  if len(shape) != 4 or shape[3] not in (1, 3) or dtype != np.uint8:
    raise ValueError(
      f"images are {dtype} of shape {shape}; expected uint8 [N, H, W, C] with"
      " C = 1 or 3."
    )
  if not shape[0] or scale < 1:
    raise ValueError(
      f"{shape[0]} images at scale {scale}; expected at least one of each."
    )
  colour = np.broadcast_to(images, (*shape[:3], 3))
  return np.repeat(np.repeat(colour, scale, axis=1), scale, axis=2)


def _fitting(labels: Captions | None, width: int, largest: int):
  """The largest font in which all fit, and the texts, cut in the smallest."""
  texts = [outputs.shown(str(x)) for x in ([] if labels is None else labels)]
  for size in range(largest, _SMALLEST - 1, -1):
    font = ImageFont.load_default(size)
    if all(font.getlength(text) <= width for text in texts):
      return font, texts
  cut = []
  for text in texts:
    short = text
    while short and font.getlength(short + "…") > width:
      short = short[:-1]
    fits = font.getlength(text) <= width
    cut.append(text if fits else short + "…")
  return font, cut


def _check_count(name: str, captions: Captions | None, count: int) -> None:
  if captions is not None and len(captions) != count:
    raise ValueError(f"{name} has {len(captions)} entries; expected {count}.")


def _trend(values: np.ndarray) -> np.ndarray:
  """Moving average over a tenth of the run, shorter at both ends.

  It stays centred at the start, where the curve is steep; at the end, where it
  is flat, it looks back only, so that one noisy step does not bend it.
  """
  total = np.concatenate([[0.0], np.cumsum(values)])
  here = np.arange(len(values))
  reach = np.minimum(max(1, len(values) // 20), here)
  first, last = here - reach, np.minimum(here + reach + 1, len(values))
  return (total[last] - total[first]) / (last - first)
