"""From one GPU to several: the same work, or the same work for each.

    python -m benchmarks.scaling --out scaling.jsonl
    python -m benchmarks.scaling --rows train_large_dp_weak --devices 1,2

1. A row's name is TASK_SIZE_MESH_MODE. In "weak" every GPU has as many images
   however many GPUs there are; in "strong" all of them together have.
2. Each is measured on 1, 2, 4, 8, ... of the devices present, by meshes of the
   first of them, in one process. On one device all meshes are one program, so
   it is measured once, under the mesh "one"; and two rows that come to the same
   program, as weak and strong do on two devices, are measured once.
3. Efficiency is images/s over n times the images/s of one device, with as many
   images on it (weak) or with all of them (strong).
4. A few programs are compiled at the same time, then measured in turn, and each
   row is appended at once. Rows that the file has for the same kind of device
   are skipped; with `--limit_s` none is begun later than that.

Needs jax, flax, optax and jaxtyping, no data and no checkpoint.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from benchmarks import flags, on_devices
from benchmarks.on_devices import ONE, Program
from benchmarks.run import use_cache
from experiments import programs, rows
from marjax.evaluate import environment

MODES = ("weak", "strong")
PRESETS = ("dp", "fsdp")


@dataclass(frozen=True)
class Images:
  """How many images a size works on.

  Attributes:
    weak, strong: of a training step, on each device and in all.
    generated: on each device. remat: what fits with `strong` on one device.
  """

  weak: int
  strong: int
  generated: int
  remat: str


SIZES = {
  "large": Images(128, 256, 64, "none"),
  "huge": Images(128, 256, 64, "save_matmuls"),
  "tiny": Images(4, 32, 4, "none"),
}

ROWS = [
  f"train_{size}_{preset}_{mode}"
  for size in ("large", "huge")
  for mode in MODES
  for preset in PRESETS
]
ROWS += [
  f"generate_{size}_{preset}_weak"
  for size in ("large", "huge")
  for preset in PRESETS
]


@dataclass(frozen=True)
class Question:
  """What one row answers: a program, as one of a family."""

  mode: str
  program: Program

  @property
  def name(self) -> str:
    """TASK_SIZE_MESH_MODE."""
    program = self.program
    return f"{program.task}_{program.size}_{program.preset}_{self.mode}"

  def as_row(self) -> dict:
    """Its columns, by which a row is known."""
    return {"mode": self.mode, **dataclasses.asdict(self.program)}


def questions(
  name: str, devices: Sequence[int], dtype: str, remat: str | None
) -> list[Question]:
  """What a row's name asks, the one of one device first.

  Raises:
    ValueError: there is no such row.
  """
  task, size, preset, mode = (name.split("_") + [""] * 4)[:4]
  images = SIZES.get(size)
  is_known = preset in PRESETS and name.count("_") == 3 and images is not None
  modes = {"train": MODES, "generate": MODES[:1]}.get(task, ())
  if not (is_known and mode in modes):
    raise ValueError(
      f"there is no row {name!r}; expected train_SIZE_MESH_MODE or"
      f" generate_SIZE_MESH_weak, SIZE one of {', '.join(SIZES)}, MESH of"
      f" {', '.join(PRESETS)}, MODE of {', '.join(MODES)}."
    )
  each = images.weak if task == "train" else images.generated
  return [
    Question(
      mode,
      Program(
        task,
        size,
        preset if count > 1 else ONE,
        count,
        images.strong if mode == "strong" else count * each,
        dtype,
        remat or images.remat,
      ),
    )
    for count in sorted({1, *devices})
  ]


def scale(
  asked: Sequence[Question],
  out: Path,
  repeats: int,
  together: int,
  is_late: Callable[[], bool],
) -> None:
  """Measures what the file does not have, and appends it.

  Args:
    asked: in the order to measure them, but one device before several.
    out: JSON lines. repeats: timed rounds.
    together: programs that are compiled at the same time.
    is_late: whether to begin no further row.
  """
  there = rows.read(out)
  asked = [one for one in asked if _find(there, one) is None]
  programs = list(dict.fromkeys(one.program for one in asked))
  # What all others are compared with comes first.
  programs.sort(key=lambda program: program.num_devices > 1)
  measured = {}
  for program, ready in _compiled(programs, together, is_late):
    columns = _measured(program, ready, repeats)
    if columns is None:
      continue
    measured[program] = columns
    for one in asked:
      if one.program == program:
        row = _row(one, measured, there)
        rows.append(out, row)
        print(_sentence(row), flush=True)
  left = [one for one in asked if one.program not in measured]
  if left:
    names = [f"{one.name} on {one.program.num_devices}" for one in left]
    print(f"not measured: {', '.join(names)}", flush=True)


def _compiled(
  programs: Sequence[Program], together: int, is_late: Callable[[], bool]
) -> Iterator[tuple]:
  """Each with its compiled form, a few compiled at a time, until it is late."""
  for start in range(0, len(programs), together):
    if is_late():
      return
    for pair in on_devices.compiled(programs[start : start + together]):
      if is_late():
        return
      yield pair


def _measured(program: Program, ready, repeats: int) -> dict | None:
  """Columns, or None for what does not run, out of memory perhaps."""
  try:
    if isinstance(ready, Exception):
      raise ready
    return ready.measure(program.batch_size, repeats)
  except jax.errors.JaxRuntimeError as error:
    print(f"{program} failed: {str(error).splitlines()[0]}", flush=True)
    return None


def _find(table: Sequence[rows.Row], one: Question) -> rows.Row | None:
  kind = environment.device()["kind"]
  same = [row for row in table if row["device"]["kind"] == kind]
  return rows.find(same, **one.as_row())


def _row(one: Question, measured: dict, there: Sequence[rows.Row]) -> rows.Row:
  columns, count = measured[one.program], one.program.num_devices
  alone = _alone(one)
  base = measured.get(alone.program) or _find(there, alone)
  rate = columns["images_per_second"] / count
  return {
    "name": one.name,
    **one.as_row(),
    "images_per_device": one.program.batch_size / count,
    "efficiency": rate / base["images_per_second"] if base else None,
    "is_same_run": alone.program in measured,
    **columns,
    **flags.where(),
  }


def _alone(one: Question) -> Question:
  """The question of one device that this is compared with."""
  program = one.program
  share = program.num_devices if one.mode == "weak" else 1
  alone = dataclasses.replace(
    program,
    preset=ONE,
    num_devices=1,
    batch_size=program.batch_size // share,
  )
  return Question(one.mode, alone)


def _sentence(row: rows.Row) -> str:
  efficiency, exposed = row["efficiency"], row["exposed_seconds"]
  return (
    f"{row['name']} on {row['num_devices']}: {1e3 * row['seconds']:.4g} ms,"
    f" {row['images_per_second']:.4g} images/s, efficiency"
    f" {'unknown' if efficiency is None else f'{efficiency:.1%}'},"
    f" {row['memory_bytes'] / 1e9:.3g} GB a device, exposed communication"
    f" {'unknown' if exposed is None else f'{1e3 * exposed:.3g} ms'},"
    f" compiled in {row['compile_seconds']} s"
  )


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → rows; 2 after an error to mend."""
  args, start = _flags(argv), time.monotonic()
  asked, there = _asked(args), rows.read(args.out)
  rows.make(args.out)
  if args.cache:
    use_cache(args.cache)

  def is_late() -> bool:
    return time.monotonic() - start > args.limit_s

  print(f"{len(there)} rows are there; {json.dumps(environment.device())}")
  scale(asked, args.out, args.repeats, args.together, is_late)


def _asked(args: argparse.Namespace) -> list[Question]:
  """The questions of all rows, each once.

  Raises:
    ValueError: a wrong flag.
  """
  devices = devices_of(args.devices, jax.device_count())
  found = [
    one
    for name in args.rows.split(",")
    for one in questions(name, devices, args.dtype, args.remat)
  ]
  return list(dict.fromkeys(found))


def devices_of(text: str | None, present: int) -> list[int]:
  """Numbers of devices; untold, the powers of two up to all.

  Raises:
    ValueError: no such numbers.
  """
  if text is None:
    return [1 << power for power in range(present.bit_length())]
  counts = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
  if not all(1 <= count <= present for count in counts):
    raise ValueError(
      f"--devices is {text!r}; expected numbers from 1 to {present}, as in 1,2."
    )
  return counts


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument(
    "--rows", default=",".join(ROWS), help="A,B in this order (%(default)s)"
  )
  parser.add_argument(
    "--devices",
    help="numbers of devices (default: 1, 2, 4, ... of those there)",
  )
  parser.add_argument(
    "--dtype", default="bfloat16", choices=("float32", "bfloat16")
  )
  parser.add_argument(
    "--remat",
    choices=("none", "save_matmuls", "full"),
    help="what the backward pass recomputes (default: the size's own)",
  )
  flags.add_repeats(parser, default=3)
  parser.add_argument(
    "--together",
    type=programs.count,
    default=4,
    help="programs compiled at the same time (default: %(default)s)",
  )
  parser.add_argument(
    "--limit_s",
    type=programs.seconds,
    default=float("inf"),
    help="seconds after which no row is begun",
  )
  parser.add_argument(
    "--cache", type=Path, help="folder that keeps compiled programs"
  )
  flags.add_out(parser, "scaling")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
