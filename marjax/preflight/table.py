"""A preflight's report, for people to read."""

from collections.abc import Iterable

from marjax.parallel.chips import GIB
from marjax.preflight.parts import Work
from marjax.preflight.report import Report


def as_text(report: Report) -> str:
  """All numbers of a report, aligned."""
  axes = ", ".join(f"{name} {size}" for name, size in report.mesh.items())
  unit, name = unit_of(report.needed, GIB, 1024, ("GiB", "MiB", "KiB"))
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
  if report.parts:
    lines += ["", *_parts(report)]
  if report.padding:
    lines += ["", *_padding(report)]
  lines.append(f"compiled in {report.compile_seconds:.0f} s")
  return "\n".join(lines) + "\n"


def unit_of(value: float, largest: float, step: int, names: tuple[str, ...]):
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
  unit, name = unit_of(sent, 1e9, 1000, ("GB", "MB", "kB"))
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
  flop, flop_name = unit_of(
    report.program_flops, 1e12, 1000, ("TFLOP", "GFLOP", "MFLOP")
  )
  byte, byte_name = unit_of(
    report.memory_traffic, 1e9, 1000, ("GB", "MB", "kB")
  )
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


def _parts(report: Report) -> list[str]:
  """One line for each part of the model, and one for all of them."""
  images = report.batch_size / report.num_chips
  flop, flop_name = unit_of(
    report.program_flops, 1e12, 1000, ("TFLOP", "GFLOP", "MFLOP")
  )
  each, each_name = unit_of(
    report.program_flops / images, 1e12, 1000, ("TFLOP", "GFLOP", "MFLOP")
  )
  byte, byte_name = unit_of(
    report.memory_traffic, 1e9, 1000, ("GB", "MB", "kB")
  )
  lines = [
    f"work of one chip by part{each_name + '/image':>14}{flop_name:>10}"
    f"{'× needed':>10}{byte_name:>10}{'FLOP/byte':>11}{'at best, s':>12}"
  ]
  for name, part in (*report.parts.items(), ("in all", _whole(report))):
    least = f"{part.bound.seconds:>12.3g}" if part.bound else f"{'?':>12}"
    limit = f" {part.bound.longest}" if part.bound else ""
    work, traffic = part.program_flops, part.memory_traffic
    lines.append(
      f"  {name:<22}{work / images / each:>14.3f}{work / flop:>10.3f}"
      f"{_ratio(part):>10}{traffic / byte:>10.3f}{part.intensity:>11.1f}"
      f"{least}{limit}"
    )
  if report.bound:
    seconds = sum(part.bound.seconds for part in report.parts.values())
    balance = (report.bound.memory / report.memory_traffic) / (
      report.bound.arithmetic / report.program_flops
    )
    lines.append(
      f"one part after the other at best {seconds:.3g} s; memory is the limit"
      f" below {balance:.0f} FLOP/byte"
    )
  return lines


def _whole(report: Report) -> Work:
  sent = sum(found.sent_bytes for found in report.collectives.values())
  return Work(
    report.useful_flops,
    report.program_flops,
    report.memory_traffic,
    float(sent),
    report.bound,
  )


def _ratio(part: Work) -> str:
  """Arithmetic over what is needed of it."""
  useful = part.useful_flops
  return f"{part.program_flops / useful:.3f}" if useful else "-"


def _padding(report: Report) -> list[str]:
  """One line for each segment of the plan, and one for all of them."""
  lines = [
    f"padding by segment{'steps':>12}{'encoder slots':>16}{'× needed':>10}"
    f"{'head tokens':>13}{'× needed':>10}"
  ]
  for part in report.padding:
    steps = part.last_step + 1 - part.first_step
    slots = part.encoder_slots // steps
    shown = f"{slots - part.encoder_length} + {part.encoder_length}"
    lines.append(
      f"  {f'{part.first_step} .. {part.last_step}':>28}{shown:>16}"
      f"{part.encoder_slots / part.needed_slots:>10.3f}{part.head_width:>13}"
      f"{part.head_rows / part.needed_rows:>10.3f}"
    )
  encoder = _total(part.encoder_slots for part in report.padding)
  encoder /= _total(part.needed_slots for part in report.padding)
  head = _total(part.head_rows for part in report.padding)
  head /= _total(part.needed_rows for part in report.padding)
  return [*lines, f"  {'all':>28}{encoder:>26.3f}{head:>23.3f}"]


def _total(numbers: Iterable[float]) -> float:
  return sum(numbers, 0.0)
