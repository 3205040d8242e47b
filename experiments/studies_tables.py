"""Tables and pictures of `experiments.studies`, from its rows.

A line, and a point, is the mean over seeds of generation and trainings of a
cell, ± their standard deviation. Colours belong to a name, in every picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from experiments import markdown, rows
from experiments.scoreboard_pictures import names_of, spread
from marjax import outputs
from marjax.evaluate import sets
from marjax.requests import pictures

SHOWN = (
  "num_ar_steps",
  "guidance_scale",
  "temperature",
  "num_diffusion_steps",
  "start_timestep",
  "spacing",
)
"""Settings that a table shows where they differ."""

COLUMNS, SCALE, GAP = 5, 2, 8
"""Samples of a class in a cell's grid, pixels for each, and between grids."""

Table = Sequence[rows.Row]


def sentence(scores: Mapping[str, float]) -> str:
  """Scores in one line."""
  shown = names_of([{"scores": scores}])
  return ", ".join(f"{name} {scores[name]:.4g}" for name in shown)


def cell_of(row: rows.Row) -> str:
  """A cell's name without its seed; of a control, what it is."""
  return row["cell"].rpartition("-")[0] if "cell" in row else row["images"]


def value_of(row: rows.Row, key: str) -> Any:
  """What a row says of an axis, or of several, "KEY, KEY"."""
  if ", " in key:
    return " ".join(_text(value_of(row, part)) for part in key.split(", "))
  if key == "cell":
    return cell_of(row)
  return row[key] if key in row else row["settings"].get(key)


def grouped(table: Table) -> list[list[rows.Row]]:
  """Rows that differ in seeds alone, side by side."""
  groups: dict[str, list[rows.Row]] = {}
  for row in table:
    key = repr([cell_of(row), row.get("settings"), row.get("order")])
    groups.setdefault(key, []).append(row)
  return list(groups.values())


def of_cells(table: Table, controls: Table) -> str:
  """A line for each cell and setting, then one for each control."""
  names = names_of(table)
  shown = [
    key
    for key in SHOWN
    if len({repr(row["settings"].get(key)) for row in table}) > 1
  ]
  if len({row["order"] for row in table}) > 1:
    shown.append("order")
  heads = ["images", *shown, "rows", *names, "million parameters", "s an image"]
  lines = [heads]
  for group in grouped(table):
    settings = [_text(value_of(group[0], key)) for key in shown]
    values = ([row["scores"][name] for row in group] for name in names)
    # The first row of a program has compiled it.
    seconds = min(row["seconds"] / row["num_images"] for row in group)
    lines.append(
      [
        cell_of(group[0]),
        *settings,
        str(len(group)),
        *map(spread, values),
        f"{group[0]['num_parameters'] / 1e6:.3g}",
        f"{seconds:.2g}",
      ]
    )
  for row in controls:
    values = [f"{row['scores'][name]:.4g}" for name in names]
    lines.append([row["images"], *[""] * len(shown), "", *values, "", ""])
  return markdown.of_text(lines)


def _text(value: Any) -> str:
  if value is None:
    return ""
  return f"{value:g}" if isinstance(value, float) else str(value)


def chart(study: Any, table: Table, controls: Table) -> bytes:
  """A PNG: each score over the study's axis, real images as a dashed line."""
  from matplotlib.figure import Figure

  names = names_of(table)
  figure = Figure((2.6 * len(names), 3.4), layout="constrained")
  axes = figure.subplots(1, len(names), squeeze=False)[0]
  series = dict.fromkeys(_text(value_of(row, study.series)) for row in table)
  for ax, name in zip(axes, names, strict=True):
    for number, label in enumerate(series):
      points: dict[Any, list[float]] = {}
      for row in table:
        if _text(value_of(row, study.series)) == label:
          place = value_of(row, study.axis)
          points.setdefault(place, []).append(row["scores"][name])
      heights = [mean(values) for values in points.values()]
      errors = [stdev(v) if len(v) > 1 else 0.0 for v in points.values()]
      style = {"fmt": "o-", "capsize": 3, "ms": 3, "color": f"C{number}"}
      ax.errorbar(list(points), heights, errors, label=label, **style)
    for row in controls[:1]:
      style = {"color": "0.4", "linestyle": "--", "linewidth": 1}
      ax.axhline(row["scores"][name], label=row["images"], **style)
    ax.set_title(name.replace("_", " "), fontsize=9)
    ax.set_xlabel(study.axis.replace("_", " "), fontsize=8)
    is_text = study.axis in ("cell", "order")
    ax.tick_params("x", labelsize=6, rotation=60 if is_text else 0)
    ax.tick_params("y", labelsize=7)
  named = axes[0].get_legend_handles_labels()
  figure.legend(
    *named, loc="outside upper center", ncols=4, fontsize=7, frameon=False
  )
  return pictures.png_of(figure)


def samples(names: Sequence[str], folder: Path) -> np.ndarray | None:
  """Cells side by side, a class in each row; None where no images are."""
  grids = []
  for name in names:
    path = folder / f"{name}.npz"
    if not path.exists():
      continue
    images = sets.open_set(path)
    pairs = list(images.rows(np.arange(len(images))))
    labels = np.array([label for _, label in pairs])
    first = [
      np.flatnonzero(labels == label)[:COLUMNS] for label in np.unique(labels)
    ]
    shown = np.stack([pairs[i][0] for i in np.concatenate(first)])
    grids.append(pictures.grid(shown, COLUMNS, scale=SCALE, title=name))
  if not grids:
    return None
  height = max(len(one) for one in grids)
  gap = np.full((height, GAP, grids[0].shape[2]), 255, np.uint8)
  padded = [
    np.pad(one, ((0, height - len(one)), (0, 0), (0, 0)), constant_values=255)
    for one in grids
  ]
  parts = [part for one in padded for part in (one, gap)]
  return np.concatenate(parts[:-1], axis=1)


def write(
  out: Path, name: str, study: Any, table: Table, controls: Table
) -> None:
  """Writes OUT/NAME.md, .png and _samples.png of the study's rows, if any."""
  if not table:
    return
  text = f"{study.claim}\n\n{of_cells(table, controls)}"
  outputs.write(out / f"{name}.md", text.encode(), overwrite=True)
  picture = chart(study, table, controls)
  outputs.write(out / f"{name}.png", picture, overwrite=True)
  cells = dict.fromkeys(cell.name for cell in study.cells)
  beside = samples(list(cells), out / "images")
  if beside is not None:
    pictures.save_png(out / f"{name}_samples.png", beside, overwrite=True)
  print(text)
