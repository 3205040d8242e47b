"""The table and the pictures of `experiments.scoreboard`, from its rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments import markdown, rows
from marjax.evaluate import seen
from marjax.evaluate.scores import neighbours
from marjax.evaluate.seen import Chosen, Taken
from marjax.evaluate.sets import ImageSet
from marjax.requests import pictures

SWEPT, STEPS = ("guidance_scale", "temperature"), "num_ar_steps"
HIDDEN = ("_deviation", "_low", "_high", "_unsplit")
SIDE, SCALE, GAP = 10, 2, 12
"""Samples of a class across and down, pixels for each, and between grids."""

Table = Sequence[rows.Row]


def names_of(table: Table) -> list[str]:
  """Scores of all rows, in order, without what only qualifies them."""
  names = dict.fromkeys(name for row in table for name in row["scores"])
  return [name for name in names if not name.endswith(HIDDEN)]


def of_count(controls: Table, num_images: int) -> list[rows.Row]:
  """A row of each control: of that many images, or as many as there are."""
  chosen: dict[str, rows.Row] = {}
  for row in controls:
    before = chosen.get(row["images"], {"num_images": 0})
    if before["num_images"] <= row["num_images"] <= num_images:
      chosen[row["images"]] = row
  return list(chosen.values())


def by_settings(table: Table) -> list[list[rows.Row]]:
  """Rows that differ in their seed alone, side by side."""
  same = ("images", "settings", "num_images", "num_real", "judges")
  groups: dict[str, list[rows.Row]] = {}
  for row in table:
    key = repr([row.get(name) for name in (*same, "parameters")])
    groups.setdefault(key, []).append(row)
  return list(groups.values())


def of_settings(table: Table) -> str:
  """A line for each control and each setting, mean ± deviation over seeds.

  Those of a checkpoint stand in the order of what was swept; AR steps are shown
  where it was drawn with several numbers of them.
  """
  names, shown = names_of(table), [*SWEPT]
  steps = {(row["images"], row.get("settings", {}).get(STEPS)) for row in table}
  if len(steps) > len({images for images, _ in steps}):
    shown.append(STEPS)
  heads = [name.removesuffix("_scale").replace("_", " ") for name in shown]
  lines = [["images", *heads, "seeds", *names]]
  every = list(dict.fromkeys(row["images"] for row in table))

  def place(group: list[rows.Row]) -> tuple:
    settings = group[0].get("settings", {})
    return every.index(group[0]["images"]), *map(settings.get, shown)

  for group in sorted(by_settings(table), key=place):
    settings = group[0].get("settings", {})
    about = [f"{settings[n]:g}" if n in settings else "" for n in shown]
    values = ([row["scores"][n] for row in group] for n in names)
    lines.append(
      [
        group[0]["images"],
        *about,
        str(len(group)),
        *map(markdown.spread, values),
      ]
    )
  return markdown.of_text(lines)


def line_of(
  table: Table, images: str, own: Mapping[str, Any], swept: str, score: str
) -> list[tuple[float, float, float]]:
  """Value of what is swept, mean and deviation of a score, ascending.

  `own`: settings of the checkpoint, with which all but `swept` must agree.
  """
  points = []
  for group in by_settings([row for row in table if row["images"] == images]):
    settings = group[0]["settings"]
    if {**settings, swept: None} == {**own, swept: None}:
      values = [row["scores"][score] for row in group]
      error = stdev(values) if len(values) > 1 else 0.0
      points.append((settings[swept], mean(values), error))
  return sorted(points)


def curves(
  table: Table, own: Mapping[str, Mapping[str, Any]], control: str
) -> bytes:
  """A PNG: scores over guidance above, over temperature below.

  Args:
    own: settings of each checkpoint, by name. control: whose row is dashed.
  """
  from matplotlib.figure import Figure

  names = names_of(table)
  figure = Figure((2 * len(names), 4.4), layout="constrained")
  axes = figure.subplots(2, len(names), squeeze=False)
  real = rows.find(list(table), images=control)
  for row, swept in zip(axes, SWEPT, strict=True):
    for ax, name in zip(row, names, strict=True):
      lines = {
        images: line_of(table, images, settings, swept, name)
        for images, settings in own.items()
      }
      if real:
        style = {"color": "0.4", "linestyle": "--", "linewidth": 1}
        ax.axhline(real["scores"][name], label=control, **style)
      draw(ax, {images: line for images, line in lines.items() if line})
      ax.set_title(name.replace("_", " "), fontsize=9, loc="left")
      ax.set_xlabel(swept.replace("_", " "), fontsize=8)
      ax.tick_params(labelsize=7)
  named = axes[0, 0].get_legend_handles_labels()
  figure.legend(
    *named, loc="outside upper center", ncols=4, fontsize=8, frameon=False
  )
  return pictures.png_of(figure)


def draw(ax: Any, lines: Mapping[str, Sequence[tuple]]) -> None:
  """Lines with error bars; a lone point outside of them is a number above."""
  limits = None
  for images in sorted(lines, key=lambda images: len(lines[images]) == 1):
    x, y, error = zip(*lines[images], strict=True)
    color = f"C{list(lines).index(images)}"
    style = {"color": color, "label": images, "capsize": 3, "ms": 3}
    if len(x) > 1:
      ax.errorbar(x, y, error, fmt="o-", **style)
      limits = ax.get_ylim()
      continue
    ax.errorbar(x, y, error, fmt="s", **style)
    if limits and not limits[0] <= y[0] <= limits[1]:
      words = f"{y[0]:.3g} {'↑' if y[0] > limits[1] else '↓'}"
      style = {"color": color, "fontsize": 7, "transform": ax.transAxes}
      ax.text(1, 1.02 + 0.08 * len(ax.texts), words, ha="right", **style)
      ax.set_ylim(limits)


def write_samples(
  out: Path, name: str, images: ImageSet, judge: Any, train: Chosen
) -> None:
  """Writes OUT/NAME_CLASS.png: samples, and the nearest training images.

  Args:
    images: generated ones with labels. judge: whose features tell what is near.
    train: the training images that it saw.
  """
  index = np.arange(len(images))
  pairs = list(images.rows(index))
  labels = np.array([label for _, label in pairs])
  for label in np.unique(labels).tolist():
    few = index[labels == label][: SIDE**2]
    wanted = frozenset({"moments", "features"})
    chosen = Chosen(images, few)
    looked = seen.look(chosen, judge.eye, wanted, Taken()).gathered
    _, nearest = neighbours.nearest(looked.features, judge.real.features)
    samples = np.stack([pairs[i][0] for i in few])
    picture = beside(samples, rows_at(train.images, train.indices[nearest]))
    path = out / f"{name}_{label}.png"
    pictures.save_png(path, picture, overwrite=True)


def rows_at(
  images: ImageSet, indices: np.ndarray
) -> UInt8[np.ndarray, "N H W C"]:
  """Images at indices in any order, which may repeat."""
  ascending, place = np.unique(indices, return_inverse=True)
  return np.stack([image for image, _ in images.rows(ascending)])[place]


def beside(
  samples: UInt8[np.ndarray, "N H W C"], others: UInt8[np.ndarray, "N H W C"]
) -> UInt8[np.ndarray, "height width 3"]:
  """Two grids: image i of the right one belongs to image i of the left."""
  grids = [
    pictures.grid(part, min(SIDE, len(part)), scale=SCALE, title=title)
    for part, title in (
      (samples, "generated"),
      (others, "nearest training images"),
    )
  ]
  gap = np.full((len(grids[0]), GAP, grids[0].shape[2]), 255, np.uint8)
  return np.concatenate([grids[0], gap, grids[1]], axis=1)
