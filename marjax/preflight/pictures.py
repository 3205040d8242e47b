"""Pictures of a preflight's report: memory of one chip, and its work by part.

    arithmetic │██████▒▒ 1.1 s      memory traffic │████ 0.6 s

Where the chip is known, both panels of the second are as wide as the same
seconds, so that the longer bar of a part is what limits it.
"""

from pathlib import Path

from marjax import outputs
from marjax.parallel.chips import GIB
from marjax.preflight.report import Report
from marjax.preflight.table import BYTES, FLOPS, unit_of
from marjax.requests.pictures import png_of

COLOURS = ("#1f3a68", "#2a8c82", "#7bb662", "#c9c2a5", "#8d8d8d")
COLOURS += ("#c8742c", "#5b4a72")


def draw_memory(report: Report, out: Path, overwrite: bool = False) -> None:
  """Writes a PNG: one bar of the parts, and where the chip's memory ends."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7.6, 2.3), dpi=130, layout="constrained")
  axes, start = figure.add_subplot(), 0.0
  for colour, (part, size) in zip(COLOURS, report.memory.items(), strict=False):
    size /= GIB
    label = f"{part} {size:.2f}"
    axes.barh([0], [size], left=[start], color=colour, label=label)
    start += size
  if report.limit is not None:
    limit = report.limit / GIB
    axes.axvline(limit, color="#b3202a", lw=2, label=f"a chip has {limit:.2f}")
  verdicts = {True: "fits", False: "does not fit", None: "may fit"}
  axes.set_title(f"{_title(report)} {verdicts[report.fits]}", loc="left")
  axes.set_xlabel("GiB of one chip")
  axes.set_yticks([])
  axes.spines[["top", "right", "left"]].set_visible(False)
  figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
  outputs.write(out, png_of(figure), overwrite)


def draw_parts(report: Report, out: Path, overwrite: bool = False) -> None:
  """Writes a PNG: arithmetic, padding apart, and memory traffic by part."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7.6, 2.7), dpi=130, layout="constrained")
  left, right = figure.subplots(1, 2, sharey=True)
  parts = report.parts
  work = {name: part.program_flops for name, part in parts.items()}
  moved = {name: part.memory_traffic for name, part in parts.items()}
  scale, unit = unit_of(max(work.values()), FLOPS)
  _draw_bars(left, report, "arithmetic", work, scale, COLOURS[3])
  left.set_xlabel(f"arithmetic of one chip, {unit}")
  needed = [
    min(part.useful_flops, part.program_flops) / scale
    for part in parts.values()
  ]
  left.barh(list(parts), needed, color=COLOURS[0], label="needed")
  left.legend(frameon=False, fontsize=8, loc="lower right", reverse=True)
  left.invert_yaxis()
  scale, unit = unit_of(max(moved.values()), BYTES)
  _draw_bars(right, report, "memory", moved, scale, COLOURS[1])
  right.set_xlabel(f"memory traffic of one chip, {unit}")
  note = "; seconds at the chip's peak, bold where they limit"
  title = f"{_title(report)} {report.batch_size} images"
  title += note if report.bound else ""
  figure.suptitle(title, x=0.01, ha="left", fontsize=10)
  outputs.write(out, png_of(figure), overwrite)


def _draw_bars(axes, report: Report, what: str, values, scale, colour) -> None:
  """Bars of one panel, with the seconds that they take at best."""
  shown = [value / scale for value in values.values()]
  axes.barh(list(values), shown, color=colour, label="padding")
  axes.tick_params(axis="y", length=0)
  axes.spines[["top", "right"]].set_visible(False)
  if not report.bound:
    return
  bounds = [part.bound for part in report.parts.values()]
  for name, width, bound in zip(values, shown, bounds, strict=True):
    axes.annotate(
      f"{getattr(bound, what):.3g} s",
      (width, name),
      (4, 0),
      textcoords="offset points",
      va="center",
      fontsize=8,
      fontweight="bold" if bound.longest == what else "normal",
    )
  longest = max(max(bound.arithmetic, bound.memory) for bound in bounds)
  per_second = sum(shown) / getattr(report.bound, what)
  axes.set_xlim(0, 1.2 * longest * per_second)


def _title(report: Report) -> str:
  return f"{report.config}, {report.program}, {report.topology}:"
