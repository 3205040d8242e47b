"""Do the published recipes fit the pods that people have?

    python -m experiments.preflight

Compiles training of MAR-B, L and H at their batch of 2048 for slices of four
kinds of TPU, and generation with each for a small one, 64 images on a chip, as
`marjax preflight` does. One JSON line each, appended to
experiments/results/preflight.jsonl; rows that are there are not compiled again,
unless with --again: of equal ones the last counts. Needs libtpu, no TPU, and an
hour or two.
"""

import argparse
import sys
from pathlib import Path

from experiments import rows
from marjax.cli import configs
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

# Whole parameters on every chip to generate, as `marjax.load` has them.
MESHES = {
  "train": (),
  "generate": ("config.mesh.preset=dp", "config.mesh.fsdp=1"),
}


def is_there(path: Path, name: str, where: str, program: str) -> bool:
  """Whether a file has the row; one of a generation has its parts."""
  asked = {"config": name, "topology": where, "program": program}
  found = [row for row in rows.read(path) if rows.find([row], **asked)]
  return any(program == "train" or row.get("parts") for row in found)


def main() -> int:
  """Compiles what is missing; 2 after an error of the machine's."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.preflight",
    description=__doc__.partition("\n")[0],
  )
  parser.add_argument("--out", type=Path, default=OUT, help="JSON lines")
  parser.add_argument("--program", choices=MESHES, help="only this one")
  parser.add_argument("--config", choices=("mar_b", "mar_l", "mar_h"))
  parser.add_argument("--again", action="store_true", help="compile all anew")
  args = parser.parse_args()
  for name, where, program in WANTED:
    is_asked = args.program in (None, program) and args.config in (None, name)
    if not is_asked or (
      not args.again and is_there(args.out, name, where, program)
    ):
      continue
    print(f"{name} {program} {where} ...", end=" ", flush=True)
    devices = topology.devices_of(where)
    experiment = configs.load(f"configs/{name}.py", MESHES[program])
    found = report.preflight(experiment, devices, where, program)
    rows.append(args.out, to_dict(found) | {"fits": found.fits})
    print(f"{'fits' if found.fits else 'does not fit'},", end=" ")
    print(f"compiled in {found.compile_seconds:.0f} s")
  return 0


if __name__ == "__main__":
  sys.exit(main())
