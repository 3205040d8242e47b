"""Do the published recipes fit the pods that people have?

    python -m experiments.preflight

Compiles training of MAR-B, L and H at their batch of 2048 for slices of four
kinds of TPU, and generation with each for a small one, 64 images on a chip, as
`marjax preflight` does; and both for the models of table 1, on a slice of 256
chips and on one GPU, there with 128 images a training step. One JSON line each,
appended to experiments/results/preflight.jsonl; rows that are there are not
compiled again, unless with --again: of equal ones the last counts. Needs libtpu
and jax's CUDA plugin, no TPU and no GPU, and an hour or two.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import programs, rows
from marjax.cli import configs
from marjax.experiment import Experiment
from marjax.preflight import report, topology
from marjax.schema import to_dict

OUT = Path("experiments/results/preflight.jsonl")

TOPOLOGIES = ("v5e:16x16", "v4:4x4x8", "v5p:4x4x4", "v6e:8x8")

WANTED = [("mar_h", where, "train") for where in TOPOLOGIES]
WANTED += [(name, "v5e:16x16", "train") for name in ("mar_b", "mar_l")]
WANTED += [
  (name, "v5e:2x4", "generate") for name in ("mar_l", "mar_b", "mar_h")
]
WANTED += [
  (name, where, "train")
  for where in TOPOLOGIES[1:]
  for name in ("mar_l", "mar_b")
]

CELLS = tuple(
  f"table1:{cell}" for cell in ("ar_raster", "ar_random", "mar", "guided")
)
GPU = "h200:1"
WANTED += [
  (cell, where, program)
  for program in ("train", "generate")
  for where in ("v5e:16x16", GPU)
  for cell in CELLS
]

NAMES = tuple(dict.fromkeys(name for name, _, _ in WANTED))
PROGRAMS = ("train", "generate")

# Whole parameters on every chip, as `marjax.load` has them.
WHOLE = ("config.mesh.preset=dp", "config.mesh.fsdp=1")


def overrides(where: str, program: str) -> tuple[str, ...]:
  """What differs from a config that is for training on a pod."""
  if program == "generate":
    return WHOLE
  return (*WHOLE, "config.training.batch_size=128") if where == GPU else ()


def experiment_of(name: str, where: str, program: str) -> Experiment:
  """What a config says of its program there."""
  file, _, variant = name.partition(":")
  path = f"configs/{file}.py:{variant}" if variant else f"configs/{file}.py"
  return configs.load(path, overrides(where, program))


def is_there(path: Path, name: str, where: str, program: str) -> bool:
  """Whether a file has the row; one of a generation has its parts."""
  config = name.replace(":", "_")  # as an experiment calls itself
  asked = {"config": config, "topology": where, "program": program}
  found = [row for row in rows.read(path) if rows.find([row], **asked)]
  return any(program == "train" or row.get("parts") for row in found)


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Compiles what is missing; 2 after an error to mend."""
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("--out", type=Path, default=OUT, help="JSON lines")
  parser.add_argument("--program", choices=PROGRAMS, help="only this one")
  parser.add_argument("--config", choices=NAMES)
  parser.add_argument("--again", action="store_true", help="compile all anew")
  args = parser.parse_args(argv)
  for name, where, program in WANTED:
    is_asked = args.program in (None, program) and args.config in (None, name)
    if not is_asked or (
      not args.again and is_there(args.out, name, where, program)
    ):
      continue
    print(f"{name} {program} {where} ...", end=" ", flush=True)
    devices = topology.devices_of(where)
    experiment = experiment_of(name, where, program)
    found = report.preflight(experiment, devices, where, program)
    rows.append(args.out, to_dict(found) | {"fits": found.fits})
    print(f"{'fits' if found.fits else 'does not fit'},", end=" ")
    print(f"compiled in {found.compile_seconds:.0f} s")


if __name__ == "__main__":
  sys.exit(main())
