"""A preflight's report, for people: a table, and a picture of the memory."""

import io
from pathlib import Path

from marjax import outputs
from marjax.parallel.chips import GIB
from marjax.preflight.report import Report

COLOURS = ("#1f3a68", "#2a8c82", "#7bb662", "#c9c2a5", "#8d8d8d")
COLOURS += ("#c8742c", "#5b4a72")


def as_text(report: Report) -> str:
  """All numbers of a report, aligned."""
  axes = ", ".join(f"{name} {size}" for name, size in report.mesh.items())
  unit, name = _unit(report.needed, GIB, 1024, ("GiB", "MiB", "KiB"))
  lines = [
    f"{report.config}, {report.program}: {report.batch_size} images on"
    f" {report.num_chips} × {report.device_kind} ({report.topology}; {axes})",
    "",
    f"memory of one chip, {name}",
    *(_row(part, size / unit) for part, size in report.memory.items()),
    _row("in all", report.needed / unit),
  ]
  if report.limit is None:
    lines.append("  what a chip has is not known")
  else:
    lines.append(_row("a chip has", report.limit / unit))
    lines.append("  fits" if report.fits else "  DOES NOT FIT")
  lines += [f"  - {change}" for change in report.advice]
  if report.program_flops is not None:
    lines += ["", *_exchanges(report), "", *_work(report)]
  lines.append(f"compiled in {report.compile_seconds:.0f} s")
  return "\n".join(lines) + "\n"


def _unit(value: float, largest: float, step: int, names: tuple[str, ...]):
  """The largest unit that a value reaches, else the smallest; and its name."""
  for name in names[:-1]:
    if value >= largest:
      return largest, name
    largest /= step
  return largest, names[-1]


def _row(name: str, value: float) -> str:
  return f"  {name:<18}{value:>10.3f}"


def _exchanges(report: Report) -> list[str]:
  exchanges = report.collectives.values()
  sent = sum((found.sent_bytes for found in exchanges), 0.0)
  unit, name = _unit(sent, 1e9, 1000, ("GB", "MB", "kB"))
  lines = ["exchanges between chips in one step"]
  lines += [
    f"  {kind:<18}{found.count:>8} times {found.num_bytes / unit:>10.3f} {name}"
    f" {found.sent_bytes / unit:>10.3f} {name} sent by each chip"
    for kind, found in report.collectives.items()
  ]
  lines += ["  none"] * (not report.collectives)
  lines += ["the costliest"] * bool(report.largest)
  lines += [
    f"  {found.kind} {found.dtype}{list(found.shape)} × {found.times}:"
    f" {_scope(found.op_name)}"
    for found in report.largest
  ]
  return lines


def _scope(op_name: str, longest: int = 70) -> str:
  if len(op_name) <= longest:
    return op_name or "(made by XLA)"
  return "..." + op_name[-longest:]


def _work(report: Report) -> list[str]:
  ratio = report.program_flops / report.useful_flops
  flop, flop_name = _unit(
    report.program_flops, 1e12, 1000, ("TFLOP", "GFLOP", "MFLOP")
  )
  byte, byte_name = _unit(report.memory_traffic, 1e9, 1000, ("GB", "MB", "kB"))
  lines = [
    "work of one chip in one step",
    f"{_row('arithmetic', report.program_flops / flop)} {flop_name},"
    f" {ratio:.2f} × the {report.useful_flops / flop:.3f} that are useful",
    f"{_row('memory traffic', report.memory_traffic / byte)} {byte_name}"
    " (estimate)",
  ]
  if report.bound:
    bound = report.bound
    lines += [
      f"at best {bound.seconds:.3g} s: arithmetic {bound.arithmetic:.3g},"
      f" memory {bound.memory:.3g}, links {bound.links:.3g}, each alone; then"
      f" {bound.utilisation:.0%} of the peak are used,"
      f" {report.batch_size / bound.seconds:.0f} images/s."
      " A bound, not a forecast.",
    ]
  return lines


def draw_memory(report: Report, out: Path, overwrite: bool = False) -> None:
  """Writes a PNG: one bar of the parts, and where the chip's memory ends."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
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
  buffer = io.BytesIO()
  FigureCanvasAgg(figure).print_png(buffer)
  outputs.write(out, buffer.getvalue(), overwrite)
