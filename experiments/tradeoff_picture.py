"""The picture of `experiments.tradeoff`: cost of an image against two scores.

    python -m experiments.tradeoff_picture --out docs/images/tradeoff.png

1. Left the Fréchet ratio, lower is better; right the label accuracy. Both over
   the arithmetic of an image, which no other program's load changes, on a
   logarithmic axis; milliseconds stand beside the settings that were timed.
2. Small marks are single runs of seed 0, large ones means over the fresh seeds
   with their standard deviation. Form: AR steps; colour: sampler; hollow: the
   published start. Runs of the same steps from other starts, or with the other
   sampler, cost the same, so they stand above each other.
3. Dashed lines: what real images score. Runs far below the accuracies shown
   are marked at the lower edge.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments import (
  programs,
  rows,
  tradeoff,
  tradeoff_settings,
  tradeoff_tables,
)
from marjax import outputs
from marjax.requests import pictures

OUT = Path("docs/images/tradeoff.png")

COLOURS = {"ancestral": "#1f3a68", "ddim": "#c8742c"}
MARKS = {16: "o", 8: "s", 4: "^"}
CHANGING = "D"
INK, GREY = "#262626", "#777777"

LOWEST_ACCURACY = 0.885
HIGHEST_RATIO = 45


NAMED = {
  "16 × 100 from 999, ancestral": (
    "16 × 100, as published",
    {"frechet_ratio": (-25, -42), "label_accuracy": (-85, -4)},
  ),
  "16 × 100 from 950, ancestral": (
    "16 × 100 from 950",
    {"frechet_ratio": (0, 34), "label_accuracy": (0, -40)},
  ),
  "16 × 10 from 950, ancestral": (
    "quick: 16 × 10 from 950",
    {"frechet_ratio": (20, 62), "label_accuracy": (-15, -95)},
  ),
}
"""Setting → its words in the picture, and how far from its mark, in points."""


def draw(table: Sequence[rows.Row]) -> bytes:
  """The picture of rows of `experiments.tradeoff`, as PNG.

  Raises:
    ValueError: no scores.
  """
  from matplotlib.figure import Figure

  times = tradeoff_tables.newest_times(table)
  scored = tradeoff_tables.newest_scores(table)
  if not scored:
    raise ValueError(
      "there are no rows with scores; expected those that experiments.tradeoff"
      " adds: run it first."
    )
  real = rows.find(list(table), kind="real")
  figure = Figure(figsize=(10.4, 4.6), dpi=130, layout="constrained")
  left, right = figure.subplots(1, 2)
  for axes, score in ((left, "frechet_ratio"), (right, "label_accuracy")):
    _draw_runs(axes, scored, score)
    _draw_means(axes, scored, times, score)
    _style(axes, real, score)
  _legend(left)
  left.set_title("Fréchet ratio (lower is better)", loc="left", fontsize=11)
  right.set_title("label accuracy (higher is better)", loc="left", fontsize=11)
  return pictures.png_of(figure)


def _look(row: rows.Row) -> dict[str, Any]:
  """Form and colours of a row's mark."""
  settings = row["settings"]
  colour = COLOURS[settings["sampler"]]
  changes = settings.get("final_diffusion_steps") is not None
  is_published = settings["start_timestep"] == 999
  return {
    "marker": CHANGING if changes else MARKS[settings["num_ar_steps"]],
    "markerfacecolor": "white" if is_published else colour,
    "markeredgecolor": colour,
    "linestyle": "none",
  }


def _cost(row: rows.Row) -> float:
  """MFLOP an image."""
  return row["flops_per_image"] / 1e6


def _within(value: float, score: str) -> float:
  """The value, or the edge of the picture beyond which it is."""
  if score == "label_accuracy":
    return max(value, LOWEST_ACCURACY)
  return min(value, HIGHEST_RATIO)


def _draw_runs(axes, scored, score) -> None:
  for row in scored:
    if row["seed"] != 0:
      continue
    value = _within(row[score], score)
    look = _look(row)
    axes.plot(_cost(row), value, markersize=5, alpha=0.45, **look)
    if value != row[score]:
      axes.annotate(
        f"{row[score]:.2f} ↓",
        (_cost(row), value),
        (0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=look["markeredgecolor"],
      )


def _draw_means(axes, scored, times, score) -> None:
  fresh = (row for row in scored if row["seed"] != 0)
  for group in tradeoff_tables.groups(fresh):
    values = getattr(group, score)
    middle = mean(values)
    spread = stdev(values) if len(values) > 1 else 0.0
    look = _look(group.first)
    axes.errorbar(
      _cost(group.first),
      middle,
      spread,
      markersize=9,
      ecolor=look["markeredgecolor"],
      capsize=3,
      zorder=3,
      **look,
    )
    if group.name in NAMED:
      text, places = NAMED[group.name]
      time = times.get(tradeoff_settings.pace_of(group.first))
      if time:
        text += f"\n{1e3 * time['seconds_per_image']:.0f} ms an image"
      axes.annotate(
        text,
        (_cost(group.first), middle),
        places[score],
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        color=INK,
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.7},
      )


def _style(axes, real, score: str) -> None:
  axes.set_xscale("log")
  axes.set_xlabel("MFLOP an image")
  axes.grid(alpha=0.25, lw=0.6)
  axes.spines[["top", "right"]].set_visible(False)
  axes.set_xticks([100, 200, 500, 1000, 2000], minor=False)
  axes.set_xticks([], minor=True)
  axes.xaxis.set_major_formatter("{x:g}")
  if score == "frechet_ratio":
    axes.set_yscale("log")
    axes.set_yticks([1.5, 2, 3, 5, 10, 20, 40], minor=False)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(1.25, HIGHEST_RATIO)
  else:
    axes.set_ylim(LOWEST_ACCURACY - 0.005, 1.002)
  if real is not None:
    axes.axhline(real[score], color=GREY, lw=1, ls="--", zorder=0)
    axes.annotate(
      f"real digits {real[score]:.3g}",
      (0, real[score]),
      (4, 3 if score == "frechet_ratio" else -10),
      xycoords=("axes fraction", "data"),
      textcoords="offset points",
      fontsize=8,
      color=GREY,
    )


def _legend(axes) -> None:
  from matplotlib.lines import Line2D

  def mark(marker, face, edge, text):
    return Line2D(
      [],
      [],
      marker=marker,
      linestyle="none",
      markerfacecolor=face,
      markeredgecolor=edge,
      markersize=6,
      label=text,
    )

  entries = [
    mark("s", colour, colour, {"ddim": "DDIM"}.get(sampler, sampler))
    for sampler, colour in COLOURS.items()
  ]
  entries.append(mark("o", "white", INK, "published start, 999"))
  entries += [
    mark(marker, GREY, GREY, f"{ar} AR steps") for ar, marker in MARKS.items()
  ]
  entries.append(mark(CHANGING, GREY, GREY, "16, number changes"))
  axes.legend(
    handles=entries, loc="upper left", fontsize=8, frameon=False, ncols=2
  )


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → the picture; 2 when there is nothing to draw or no place for it."""
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument(
    "--rows", type=Path, default=tradeoff.RESULTS, help="default: %(default)s"
  )
  parser.add_argument(
    "--out", type=Path, default=OUT, help="default: %(default)s"
  )
  parser.add_argument("--overwrite", action="store_true", help="replace it")
  args = parser.parse_args(argv)
  png = draw(rows.read(args.rows))
  outputs.write(args.out, png, args.overwrite)


if __name__ == "__main__":
  sys.exit(main())
