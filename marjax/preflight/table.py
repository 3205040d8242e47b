"""A preflight's report, for people to read."""

from marjax.parallel.chips import GIB
from marjax.preflight.report import Report

Units = tuple[float, int, tuple[str, ...]]
"""The largest unit, how many times smaller each next one is, all names."""

FLOPS: Units = (1e12, 1000, ("TFLOP", "GFLOP", "MFLOP"))
BYTES: Units = (1e9, 1000, ("GB", "MB", "kB"))
MEMORY: Units = (GIB, 1024, ("GiB", "MiB", "KiB"))


def as_text(report: Report) -> str:
  """All numbers of a report, aligned."""
  axes = ", ".join(f"{name} {size}" for name, size in report.mesh.items())
  unit, name = unit_of(report.needed, MEMORY)
  rows = {**report.memory, "in all": report.needed}
  fits = {None: "what a chip has is not known", True: "fits"}
  if report.limit is not None:
    rows["a chip has"] = report.limit
  lines = [
    f"{report.config}, {report.program}: {report.batch_size} images on"
    f" {report.num_chips} × {report.device_kind} ({report.topology}; {axes})",
    "",
    f"memory of one chip, {name}",
    *(f"  {part:<18}{size / unit:>10.3f}" for part, size in rows.items()),
    f"  {fits.get(report.fits, 'DOES NOT FIT')}",
    *(f"  - {change}" for change in report.advice),
  ]
  if report.program_flops is not None:
    lines += ["", *_exchanges(report), "", *_work(report)]
  if report.padding:
    lines += ["", *_padding(report)]
  lines.append(f"compiled in {report.compile_seconds:.0f} s")
  return "\n".join(lines) + "\n"


def unit_of(value: float, units: Units) -> tuple[float, str]:
  """The largest unit that a value reaches, else the smallest; and its name."""
  size, step, names = units
  for name in names[:-1]:
    if value >= size:
      return size, name
    size /= step
  return size, names[-1]


def _exchanges(report: Report) -> list[str]:
  unit, name = unit_of(report.whole.sent_bytes, BYTES)
  lines = ["exchanges between chips in one step"]
  lines += [
    f"  {kind:<18}{each.count:>8} times {each.num_bytes / unit:>10.3f} {name}"
    f" {each.sent_bytes / unit:>10.3f} {name} sent by each chip"
    for kind, each in report.collectives.items()
  ]
  lines += ["  none"] * (not report.collectives)
  lines += ["the costliest"] * bool(report.largest)
  for each in report.largest:
    scope = each.op_name or "(made by XLA)"
    scope = scope if len(scope) <= 70 else f"...{scope[-70:]}"
    lines.append(
      f"  {each.kind} {each.dtype}{list(each.shape)} × {each.times}: {scope}"
    )
  return lines


def _work(report: Report) -> list[str]:
  """One line for each part of the model, if known, and one for all of them."""
  images = report.batch_size / report.num_chips
  flop, flop_name = unit_of(report.program_flops, FLOPS)
  each, each_name = unit_of(report.program_flops / images, FLOPS)
  byte, byte_name = unit_of(report.memory_traffic, BYTES)
  lines = [
    f"work of one chip in one step{each_name + '/image':>13}{flop_name:>10}"
    f"{'× needed':>10}{byte_name + ', est.':>12}{'FLOP/byte':>11}"
    f"{'at best, s':>12}"
  ]
  for name, part in (*report.parts.items(), ("in all", report.whole)):
    work, traffic = part.program_flops, part.memory_traffic
    ratio = f"{work / part.useful_flops:.3f}" if part.useful_flops else "-"
    least = f"{part.bound.seconds:>12.3g}" if part.bound else f"{'?':>12}"
    limit = f" {part.bound.longest}" if part.bound else ""
    lines.append(
      f"  {name:<24}{work / images / each:>15.3f}{work / flop:>10.3f}"
      f"{ratio:>10}{traffic / byte:>12.3f}{part.intensity:>11.1f}{least}{limit}"
    )
  if report.bound:
    bound = report.bound
    lines.append(
      f"at best {bound.seconds:.3g} s: arithmetic {bound.arithmetic:.3g},"
      f" memory {bound.memory:.3g}, links {bound.links:.3g}, each alone; then"
      f" {bound.utilisation:.0%} of the peak are used,"
      f" {report.batch_size / bound.seconds:.0f} images/s."
      " A bound, not a forecast."
    )
  if report.bound and report.parts:
    seconds = sum(part.bound.seconds for part in report.parts.values())
    balance = report.whole.intensity * bound.memory / bound.arithmetic
    lines.append(
      f"one part after the other at best {seconds:.3g} s; memory is the limit"
      f" below {balance:.0f} FLOP/byte"
    )
  return lines


def _padding(report: Report) -> list[str]:
  """One line for each segment of the plan, and one for all of them."""
  rows = []
  for part in report.padding:
    steps = f"{part.first_step} .. {part.last_step}"
    rows.append((steps, part.encoder_length, part.head_width, [part]))
  rows.append(("all", "", "", report.padding))
  lines = [
    f"padding by segment{'steps':>12}{'known tokens':>16}{'× needed':>10}"
    f"{'head tokens':>13}{'× needed':>10}"
  ]
  for steps, length, width, these in rows:
    work = sum(part.backbone_work for part in these)
    work /= sum(part.needed_work for part in these)
    tokens = sum(part.head_rows for part in these)
    tokens /= sum(part.needed_rows for part in these)
    lines.append(
      f"{steps:>30}{length:>16}{work:>10.3f}{width:>13}{tokens:>10.3f}"
    )
  return lines
