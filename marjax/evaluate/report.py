"""The report of a run: JSON, a table, two pictures.

1. `describe` puts together what was asked and what came out: for each of the
   settings what differs from the others, and its scores; beside them what real
   images score in the place of generated ones, which no model can be expected
   to beat by more than chance.
2. `table` is for a terminal.
3. samples.png has the same images, of one seed, of all settings below each
   other. curves.png has each score over what was varied, and the Fréchet
   distance over the class score where both were computed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from marjax import outputs
from marjax.requests import pictures

PIXELS = "round((x + 1) * 127.5), clipped to 0 .. 255"

REAL = "real images"

BESIDE = ("_deviation", "_unsplit", "_low", "_high")
"""Ends of the names of numbers that stand beside a score."""

PANEL = (3.4, 2.8)
"""Inches of one curve."""


class Whole(NamedTuple):
  """What a run gives.

  Attributes:
    report: see `describe`.
    speed: images, seconds and images_per_second.
    shown: images of each of the settings.
  """

  report: dict[str, Any]
  speed: dict[str, int | float]
  shown: UInt8[np.ndarray, "settings images rows columns channels"]


def describe(
  about: Mapping[str, Any],
  results: Sequence[Mapping[str, Any]],
  real: Mapping[str, Any],
) -> dict[str, Any]:
  """The content of report.json, but for where it was measured.

  Args:
    about: what decided the numbers, with the list "settings".
    results: of each of the settings, "scores" and "real" by name.
    real: what the real images are.
  """
  about = dict(about)
  settings = about.pop("settings")
  rows = [
    {"name": name, "settings": each, "scores": result["scores"]}
    for name, each, result in zip(
      names_of(settings), settings, results, strict=True
    )
  ]
  return {
    **about,
    "weights": "averaged (EMA) where they were trained here",
    "labels": "image i has class i modulo num_classes",
    "pixels": PIXELS,
    "real": dict(real),
    "results": rows,
    "real_in_their_place": results[0]["real"],
  }


def names_of(settings: Sequence[Mapping[str, Any]]) -> list[str]:
  """What tells settings apart, as "guidance_scale=2.9"; "" of a single one."""
  flat = [_flat(each) for each in settings]
  varied = varied_fields(settings)
  return [
    ", ".join(f"{key}={each.get(key)}" for key in varied) for each in flat
  ]


def varied_fields(settings: Sequence[Mapping[str, Any]]) -> list[str]:
  """Fields, a head's after a dot, that are not the same in all settings."""
  flat = [_flat(each) for each in settings]
  names = dict.fromkeys(key for each in flat for key in each)
  return [
    key
    for key in names
    if any(each.get(key) != flat[0].get(key) for each in flat)
  ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in settings.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def table(report: Mapping[str, Any], speed: Mapping[str, int | float]) -> str:
  """A row for each of the settings, a column for each number."""
  rows = {
    row["name"] or "generated": row["scores"] for row in report["results"]
  }
  if report["real_in_their_place"]:
    rows[REAL] = report["real_in_their_place"]
  columns = main_names(report["results"][0]["scores"])
  cells = [
    [_cell(scores, column) for column in columns] for scores in rows.values()
  ]
  widths = [
    max(map(len, column)) for column in zip(columns, *cells, strict=True)
  ]
  first = max(map(len, rows))
  lines = []
  for name, row in zip(["", *rows], [columns, *cells], strict=True):
    line = [
      f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True)
    ]
    lines.append(f"{name:{first}}{''.join(line)}")
  lines.append(_sizes(report, speed))
  return "\n".join(lines)


def main_names(scores: Mapping[str, float]) -> list[str]:
  """Names of scores, without those of deviations, intervals and the like."""
  return [name for name in scores if not name.endswith(BESIDE)]


def _cell(scores: Mapping[str, float], name: str) -> str:
  """A number, and its deviation or interval."""
  if name not in scores:
    return ""
  text = f"{scores[name]:.4g}"
  if f"{name}_deviation" in scores:
    text += f" ± {scores[f'{name}_deviation']:.2g}"
  if f"{name}_low" in scores:
    low, high = (scores[f"{name}_{end}"] for end in ("low", "high"))
    text += f" ({low:.4g} to {high:.4g})"
  return text


def _sizes(report: Mapping[str, Any], speed: Mapping[str, int | float]) -> str:
  """What the numbers are of, and how fast they came, in a line."""
  parts = [f"{report['num_images']} images, seen by {report['network']}"]
  if report["real"]:
    parts.append(
      f"against {report['real']['count'] or 'an unknown number of'} real ones"
    )
  if speed["images_per_second"]:
    parts.append(f"{speed['images_per_second']:.3g} images/s")
  return "; ".join(parts)


def write(out: Path, whole: Whole, overwrite: bool) -> None:
  """Writes the files of a report; report.json comes last, when all is there.

  Raises:
    OSError: one exists and is not to be overwritten, or cannot be written.
  """
  page = samples(whole.report, whole.shown)
  pictures.save_png(out / "samples.png", page, overwrite)
  if len(whole.report["results"]) > 1:
    content = curves(whole.report)
    if content:
      outputs.write(out / "curves.png", content, overwrite)
  for name, mapping in (("speed", whole.speed), ("report", whole.report)):
    text = json.dumps(mapping, indent=2) + "\n"
    outputs.write(out / f"{name}.json", text.encode(), overwrite)


def samples(
  report: Mapping[str, Any], shown: UInt8[np.ndarray, "S N H W C"]
) -> UInt8[np.ndarray, "height width 3"]:
  """The first images of each of the settings, twenty where there is one."""
  each = 20 if len(shown) == 1 else 10
  images = shown[:, :each]
  columns = min(10, images.shape[1])
  several = len(shown) > 1
  return pictures.grid(
    images.reshape(-1, *images.shape[2:]),
    columns,
    scale=max(1, 48 // images.shape[2]),
    row_labels=[row["name"] for row in report["results"]] if several else None,
  )


def curves(report: Mapping[str, Any]) -> bytes:
  """A PNG of scores over what was varied; b"" without matplotlib."""
  try:
    from matplotlib.figure import Figure
  except ModuleNotFoundError:
    return b""
  rows = report["results"]
  names = main_names(rows[0]["scores"])
  plane = _plane(rows[0]["scores"])
  count = len(names) + bool(plane)
  width, height = PANEL
  figure = Figure((width * count, height), layout="constrained")
  axes = figure.subplots(1, count, squeeze=False)[0]
  x, label = _abscissa(report)
  for ax, name in zip(axes, names, strict=False):
    _curve(ax, x, rows, name, report["real_in_their_place"].get(name))
    ax.set_xlabel(label, fontsize=8)
  if plane:
    _trade_off(axes[-1], rows, *plane)
  return pictures.png_of(figure)


def _plane(scores: Mapping[str, float]) -> tuple[str, str] | None:
  """Names of a class score and of a Fréchet distance, if both are there."""
  classes = [n.removesuffix("_unsplit") for n in scores if "_unsplit" in n]
  distances = [n for n in scores if n == "fid" or n.startswith("fd_")]
  return (classes[0], distances[0]) if classes and distances else None


def _abscissa(report: Mapping[str, Any]) -> tuple[list, str]:
  """Places of the settings on an axis: numbers, if one number was varied."""
  settings = [row["settings"] for row in report["results"]]
  varied = varied_fields(settings)
  values = [_flat(each).get(varied[0]) for each in settings] if varied else []
  if len(varied) == 1 and all(isinstance(v, int | float) for v in values):
    return values, varied[0]
  return [row["name"] for row in report["results"]], ""


def _curve(ax, x: list, rows: Sequence, name: str, real: float | None) -> None:
  """One score over the settings, with its interval and what real ones score."""
  y = np.array([row["scores"][name] for row in rows])
  ends = [
    [row["scores"].get(f"{name}_{end}") for row in rows]
    for end in ("low", "high")
  ]
  ax.plot(x, y, "o-", color="C0")
  if None not in ends[0] + ends[1]:
    ax.fill_between(x, *ends, alpha=0.2, color="C0", linewidth=0)
  if real is not None:
    ax.axhline(real, color="0.4", linestyle="--", linewidth=1, label=REAL)
    ax.legend(fontsize=7, frameon=False)
  ax.set_title(name.replace("_", " "), fontsize=9)
  ax.tick_params(labelsize=7)
  if x and isinstance(x[0], str):
    ax.tick_params(axis="x", rotation=30)


def _trade_off(ax, rows: Sequence, classes: str, distance: str) -> None:
  """The distance over the class score, each point with its settings."""
  x, y = ([row["scores"][name] for row in rows] for name in (classes, distance))
  ax.plot(x, y, "o-", color="C1")
  for row, *point in zip(rows, x, y, strict=True):
    text = (
      row["name"].rpartition("=")[2] if "," not in row["name"] else row["name"]
    )
    ax.annotate(text, point, (4, 4), textcoords="offset points", fontsize=7)
  ax.set_xlabel(classes.replace("_", " "), fontsize=8)
  ax.margins(0.12)
  title = f"{distance} over {classes}, by settings"
  ax.set_title(title.replace("_", " "), fontsize=9)
  ax.tick_params(labelsize=7)
