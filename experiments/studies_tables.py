"""Tables and pictures of `experiments.studies`, from its rows.

A line, and a point, is the mean over seeds of generation and trainings of a
cell, ± their standard deviation. Colours belong to a name, in every picture.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from experiments import coded, judging, markdown, rows
from experiments.claims import STUDIES
from experiments.scoreboard_pictures import names_of, of_count
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
  "sampler",
)
"""Settings that a table shows where rows of one cell differ in them, and the
first, which all heads have, where cells differ."""

COLUMNS, SCALE, ACROSS, GAP = 5, 2, 4, 8
"""Samples of a class in a cell's grid, pixels for each, grids side by side, and
pixels between them."""

WIDE = 3
"""Scores side by side in a picture of curves."""

FOLDERS = re.compile(r"^([a-z_]+\.)+(?=[a-z])")
"""What of a changed field is not its own name."""

LONGEST = 40
"""Letters in a line of what stands beside a picture of curves."""

LEGEND = 70
"""Letters in one line of a legend."""

WIDEST = 8
"""How often the least distance fits into the greatest without logarithms."""

LINES = {judging.TEST: "--", coded.TEST: ":"}
"""Real images that a picture has a line of."""

TIME = "ms_an_image"
"""Milliseconds, of rows that were timed."""

NAMED = ("cell", "order")
"""Axes of names, not of numbers."""

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
    return ", ".join(_text(value_of(row, part)) for part in key.split(", "))
  if key == "cell":
    return cell_of(row)
  return row[key] if key in row else row["settings"].get(key)


def controls(
  study: Any, own: Table, table: Table, num_images: int
) -> list[rows.Row]:
  """Rows of real images beside a study's own, see `of_count`.

  They are of the same photographs, or of those made of codes, as its own are.
  """
  photographs = {row.get("photographs") for row in own}
  real = [
    row
    for row in table
    if row.get("kind") == "control"
    and coded.photographs_of(row) in photographs
    and (row["images"] == coded.TEST) == study.is_as_codes
  ]
  return of_count(real, num_images)


def grouped(table: Table) -> list[list[rows.Row]]:
  """Rows that differ in seeds alone, side by side."""
  groups: dict[str, list[rows.Row]] = {}
  for row in table:
    key = repr([cell_of(row), row.get("settings"), row.get("order")])
    groups.setdefault(key, []).append(row)
  return list(groups.values())


def timed(own: Table, table: Table) -> list[rows.Row]:
  """The rows with the milliseconds an image of that cell and setting takes.

  Times are those of the last device and batch that were timed.
  """
  last = next((row for row in table[::-1] if "timed" in row), {})
  times = {
    _timed_key(row["timed"], row): 1000 * row["seconds_per_image"]
    for row in table
    if "timed" in row
    and all(row[same] == last[same] for same in ("device", "batch_size"))
  }
  keys = [_timed_key(row["cell"], row) for row in own]
  return [
    row | {TIME: times[key]} if key in times else row
    for row, key in zip(own, keys, strict=True)
  ]


def _timed_key(cell: str, row: rows.Row) -> tuple[str, ...]:
  return cell, row["trained_as"], repr(row["settings"])


def of_cells(table: Table, real: Table) -> str:
  """A line for each cell and setting, then one for each control."""
  names = names_of(table)
  shown = []
  for key in SHOWN:
    values: dict[str, set[str]] = {}
    for row in table:
      cell = "" if key == SHOWN[0] else cell_of(row)
      values.setdefault(cell, set()).add(repr(row["settings"].get(key)))
    if max(map(len, values.values())) > 1:
      shown.append(key)
  if len({row["order"] for row in table}) > 1:
    shown.append("order")
  has_times = any(TIME in row for row in table)
  heads = ["images", *shown, "rows", *names, "million parameters"]
  heads += ["ms an image"] if has_times else []
  lines = [heads]
  for group in grouped(table):
    settings = [_text(value_of(group[0], key)) for key in shown]
    values = [_scores(group, name) for name in names]
    lines.append(
      [
        cell_of(group[0]),
        *settings,
        str(len(group)),
        *values,
        f"{group[0]['num_parameters'] / 1e6:.3g}",
        *([_text(group[0].get(TIME))] if has_times else []),
      ]
    )
  for row in real:
    values = [_scores([row], name) for name in names]
    ends = [""] * (len(heads) - 2 - len(shown) - len(values))
    lines.append([row["images"], *[""] * len(shown), "", *values, *ends])
  return markdown.of_text(lines)


def _scores(group: Table, name: str) -> str:
  """Mean ± deviation of a score, "" where rows do not have it."""
  values = [row["scores"][name] for row in group if name in row["scores"]]
  return markdown.spread(values) if values else ""


def _text(value: Any) -> str:
  if value is None:
    return ""
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def chart(study: Any, table: Table, real: Table) -> bytes:
  """A PNG: each score over the study's axis, real images as a dashed line.

  Cells and orders have names, which stand at the left, once for each line of
  pictures; what has several points there has them one below the other. Scores
  that a study draws over others have the ends of the axis written beside them.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import NullFormatter

  if study.is_timed and all(TIME in row for row in table):
    study = study._replace(axis=TIME)
  names, is_named = names_of(table), study.axis in NAMED
  titles = shortened(_text(value_of(row, study.axis)) for row in table)
  shown = [textwrap.fill(title, LONGEST) for title in titles.values()]
  series = dict.fromkeys(_text(value_of(row, study.series)) for row in table)
  down = -(-len(names) // WIDE)
  points = len(titles) * (1 if study.series == study.axis else len(series))
  height = 0.8 + (_height(shown, points) if is_named else 1.4)
  figure = Figure((7.4, down * height + 0.4), layout="constrained", dpi=120)
  axes = figure.subplots(down, WIDE, squeeze=False, sharey=is_named).ravel()
  for ax in axes[len(names) :]:
    ax.set_visible(False)
  for ax, name in zip(axes, names, strict=False):
    for number, label in enumerate(series):
      own = [
        row
        for row in table
        if name in row["scores"] and _text(value_of(row, study.series)) == label
      ]
      style = {"capsize": 2, "ms": 3, "color": _colour(label, number)}
      style["label"] = None if study.series == study.axis else label
      if is_named:
        lower = 0.7 * ((number + 0.5) / len(series) - 0.5)
        lower *= study.series != study.axis
        _points_of_names(ax, own, study, name, [*titles], lower, style)
        ax.set_yticks(range(len(titles)), shown)
        ax.set_ylim(len(titles) - 0.5, -0.5)
      else:
        _line(ax, own, study, name, style)
    scores = [row["scores"][name] for row in table if name in row["scores"]]
    is_wide = 0 < WIDEST * min(scores) < max(scores)
    if is_wide and name.startswith(("fd", "fid", "kid")):
      (ax.set_xscale if is_named else ax.set_yscale)("log")
      (ax.xaxis if is_named else ax.yaxis).set_minor_formatter(NullFormatter())
    _mark(ax.axvline if is_named else ax.axhline, real, name)
    if name in study.over:
      _mark(ax.axvline, real, study.over[name])
    over = f" over {study.over[name]}" if name in study.over else ""
    ax.set_title(name.replace("_", " ") + over, fontsize=9)
    ax.tick_params(labelsize=7)
  _legend(figure, axes[0], study)
  return pictures.png_of(figure)


def _legend(figure: Any, ax: Any, study: Any) -> None:
  """Above all pictures, in rows, real images last."""
  handles, labels = ax.get_legend_handles_labels()
  entries = [*dict(zip(labels, handles, strict=True)).items()]
  entries.sort(key=lambda one: one[0] in LINES)
  is_wide = sum(len(label) for label, _ in entries) > LEGEND
  across = 3 if is_wide else max(1, len(entries))
  # matplotlib fills columns.
  rowwise = [one for start in range(across) for one in entries[start::across]]
  legend = {"loc": "outside upper center", "ncols": across, "fontsize": 7}
  if study.series != "cell":
    legend |= {"title": study.series.replace("_", " "), "title_fontsize": 7}
  labels, handles = ([one[part] for one in rowwise] for part in (0, 1))
  figure.legend(handles, labels, frameon=False, **legend)


def _points_of_names(
  ax: Any,
  table: Table,
  study: Any,
  name: str,
  titles: Sequence[str],
  lower: float,
  style: Mapping[str, Any],
) -> None:
  """A score's points, each beside the name it belongs to, or lower."""
  places, middles, errors = _points(table, study.axis, name)
  places = [titles.index(_text(place)) + lower for place in places]
  ax.errorbar(middles, places, xerr=errors, fmt="o", **style)


def _line(
  ax: Any, table: Table, study: Any, name: str, style: Mapping[str, Any]
) -> None:
  """A score's points over the axis, or over another score, as a line."""
  from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

  axis, widths = study.over.get(name, study.axis), None
  places, middles, errors = _points(table, study.axis, name)
  if axis != study.axis:
    ends = places
    _, places, widths = _points(table, study.axis, axis)
    beside = {"textcoords": "offset points", "size": 7}
    for end in () if ax.texts else (0, -1):  # lines may lie near each other
      where, text = (places[end], middles[end]), _text(ends[end])
      is_last = places[end] == max(places)
      offset, side = ((-8, -5), "right") if is_last else ((0, -12), "left")
      ax.annotate(f"{study.axis} {text}", where, offset, ha=side, **beside)
  ax.errorbar(places, middles, errors, widths, fmt="o-", **style)
  ax.set_xlabel(axis.replace("_", " "), fontsize=8)
  if axis == study.axis and max(places) > 20 * min(places):
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
  elif ax.get_xscale() == "linear":  # no other line has made it another
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _height(titles: Sequence[str], points: int) -> float:
  """Inches for names one below the other, and for that many points."""
  most = max(title.count("\n") for title in titles) + 1
  return 0.1 * max(points + len(titles), (1.2 * most + 0.5) * len(titles))


def _mark(line: Callable, real: Table, name: str) -> None:
  """Lines where real images have a score, if they have it."""
  for row in real:
    if row["images"] in LINES and name in row["scores"]:
      style = {"color": "0.4", "linestyle": LINES[row["images"]]}
      line(row["scores"][name], label=row["images"], linewidth=1, **style)


def _points(table: Table, axis: str, name: str) -> tuple[list, list, list]:
  """Places on the axis, and a score's mean and deviation at each."""
  points: dict[Any, list[float]] = {}
  for row in table:
    points.setdefault(value_of(row, axis), []).append(row["scores"][name])
  errors = [stdev(v) if len(v) > 1 else 0.0 for v in points.values()]
  return list(points), [mean(values) for values in points.values()], errors


def shortened(names: Iterable[str]) -> dict[str, str]:
  """Cells' names → what they differ in, a line of words for each.

  That is the variant, if no two have the same.
  """
  parts = {
    name: [FOLDERS.sub("", part) for part in name.split("-")]
    for name in dict.fromkeys(names)
  }
  if len({own[0] for own in parts.values()}) == len(parts):
    return {name: own[0] for name, own in parts.items()}
  shared = set.intersection(*map(set, parts.values()))
  return {
    name: ", ".join(p for p in own if p not in shared) or own[0]
    for name, own in parts.items()
  }


def _colour(label: str, number: int) -> tuple[float, ...]:
  """That of a cell in every picture, or of a line's place."""
  from matplotlib import colormaps

  cells = (cell.name for study in STUDIES.values() for cell in study.cells)
  known = [*dict.fromkeys(name.rpartition("-")[0] for name in cells)]
  number = known.index(label) if label in known else number
  return colormaps["tab20"](2 * (number % 10) + number // 10 % 2)


def images_of(out: Path, row: rows.Row) -> Path:
  """Where the images of a row are kept, if they are shown."""
  told = ("trained_as", "settings", "seed", "num_images", "photographs")
  made_of = rows.digest([row.get(name) for name in told])
  return out / "images" / f"{row['cell']}-{made_of}.npz"


def samples(files: Mapping[str, Path]) -> np.ndarray | None:
  """Cells side by side, a class in each row; None where no images are.

  Args:
    files: images of cells, by their names.
  """
  if not files:
    return None
  grids, titles = [], shortened(files)
  for name, path in files.items():
    images = sets.open_set(path)
    pairs = list(images.rows(np.arange(len(images))))
    labels = np.array([label for _, label in pairs])
    first = [
      np.flatnonzero(labels == label)[:COLUMNS] for label in np.unique(labels)
    ]
    across = min(map(len, first))
    shown = np.stack([pairs[i][0] for one in first for i in one[:across]])
    title = titles[name]
    grids.append(pictures.grid(shown, across, scale=SCALE, title=title))
  height, width = (max(one.shape[i] for one in grids) + GAP for i in (0, 1))
  across = min(len(grids), ACROSS)
  down = -(-len(grids) // across)
  beside = np.full((down * height, across * width, 3), 255, np.uint8)
  for number, one in enumerate(grids):
    top, left = number // across * height, number % across * width
    beside[top : top + len(one), left : left + one.shape[1]] = one
  return beside


def write(out: Path, name: str, study: Any, table: Table, real: Table) -> None:
  """Writes OUT/NAME.md, .png and _samples.png of the study's rows, if any."""
  if not table:
    return
  text = f"Claim: {study.claim}\n\n{of_cells(table, real)}"
  outputs.write(out / f"{name}.md", text.encode(), overwrite=True)
  picture = chart(study, table, real)
  outputs.write(out / f"{name}.png", picture, overwrite=True)
  shown: dict[str, Path] = {}
  for row in table:
    if row["order"] == "own" and images_of(out, row).exists():
      shown.setdefault(cell_of(row), images_of(out, row))
  beside = samples(shown)
  if beside is not None:
    pictures.save_png(out / f"{name}_samples.png", beside, overwrite=True)
  print(text)
