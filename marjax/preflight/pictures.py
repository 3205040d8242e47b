"""Pictures of a preflight's report: memory of one chip, and its work by part.

    arithmetic │██████▒▒ 1.1 s      memory traffic │████ 0.6 s

Where the chip is known, both panels of the second are as wide as the same
seconds, so that the longer bar of a part is what limits it.
"""

import io
from pathlib import Path

from marjax import outputs
from marjax.parallel.chips import GIB
from marjax.preflight.report import Report
from marjax.preflight.table import unit_of

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
  axes.set_title(
    f"{report.config}, {report.program}, {report.topology}:"
    f" {verdicts[report.fits]}",
    loc="left",
  )
  axes.set_xlabel("GiB of one chip")
  axes.set_yticks([])
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)
  figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
  _write(figure, out, overwrite)


def draw_parts(report: Report, out: Path, overwrite: bool = False) -> None:
  """Writes a PNG: arithmetic, padding apart, and memory traffic by part."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7.6, 2.7), dpi=130, layout="constrained")
  left, right = figure.subplots(1, 2, sharey=True)
  work = {name: part.program_flops for name, part in report.parts.items()}
  needed = {
    name: min(part.useful_flops, part.program_flops)
    for name, part in report.parts.items()
  }
  moved = {name: part.memory_traffic for name, part in report.parts.items()}
  units = (1e12, 1000, ("TFLOP", "GFLOP", "MFLOP"))
  scale = _draw_bars(left, report, "arithmetic", work, units)
  values = [value / scale for value in needed.values()]
  left.barh(list(needed), values, color=COLOURS[0], label="needed")
  left.legend(frameon=False, fontsize=8, loc="lower right", reverse=True)
  units = (1e9, 1000, ("GB", "MB", "kB"))
  _draw_bars(right, report, "memory", moved, units)
  left.invert_yaxis()
  note = "; seconds at the chip's peak, bold where they limit"
  figure.suptitle(
    f"{report.config}, {report.program}, {report.topology}:"
    f" {report.batch_size} images{note if report.bound else ''}",
    x=0.01,
    ha="left",
    fontsize=10,
  )
  _write(figure, out, overwrite)


def _draw_bars(axes, report: Report, what: str, values, units) -> float:
  """Bars of one panel with what they take at best; the unit that they have."""
  is_work = what == "arithmetic"
  scale, unit = unit_of(max(values.values()), *units)
  colour, label = (COLOURS[3], "padding") if is_work else (COLOURS[1], "")
  shown = [value / scale for value in values.values()]
  axes.barh(list(values), shown, color=colour, label=label)
  bounds = {name: p.bound for name, p in report.parts.items() if p.bound}
  for name, bound in bounds.items():
    seconds = getattr(bound, what)
    axes.annotate(
      f"{seconds:.3g} s",
      (values[name] / scale, name),
      (4, 0),
      textcoords="offset points",
      va="center",
      fontsize=8,
      fontweight="bold" if bound.longest == what else "normal",
    )
  if bounds and report.bound:
    longest = max(max(b.arithmetic, b.memory) for b in bounds.values())
    per_second = sum(values.values()) / getattr(report.bound, what)
    axes.set_xlim(0, 1.2 * longest * per_second / scale)
  heading = "arithmetic" if is_work else "memory traffic"
  axes.set_xlabel(f"{heading} of one chip, {unit}")
  axes.tick_params(axis="y", length=0)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  return scale


def _write(figure, out: Path, overwrite: bool) -> None:
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  buffer = io.BytesIO()
  FigureCanvasAgg(figure).print_png(buffer)
  outputs.write(out, buffer.getvalue(), overwrite)
