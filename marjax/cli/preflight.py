"""Compile a config for chips that are not there, and see whether it fits.

Compiles the very step that training (or generation) would run, with XLA's real
TPU compiler, which needs no TPU but libtpu (pip install "marjax[tpu]"), or its
GPU compiler (pip install "marjax[cuda]"), which needs no GPU. Prints
memory, exchanges between chips and a bound on the time, of a generation also by
part of the model, and what its plan pads; with --out also writes
preflight.json, preflight.txt, memory.png and, of a generation, parts.png.
"""

import argparse
import json

from marjax import outputs
from marjax.cli import configs, flags
from marjax.schema import to_dict

FLAGS = """
--config FILE.py[:VARIANT], required
  what would be trained; --config.KEY=VALUE sets one of its fields
--topology KIND:AxB[xC]|KIND:N|here, required
  chips, such as v5e:16x16, v4:4x4x4, v5p:4x4x8 or v6e:16x16, or GPUs, such as
  h200:1 or h100:8; here: the devices of this machine
--num_slices N, default 1
  slices of that shape
--program train|generate, default train
  what would run on them
--batch_size N
  images of a generation over all chips (default: 64 on each)
--out FOLDER
  where the report and its picture go
--overwrite
  replace these files where they exist
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax preflight`."""
  flags.add(parser, FLAGS)


def run(args: argparse.Namespace) -> None:
  """Config and topology → report on stdout, and files."""
  from marjax.preflight import pictures, report, table, topology

  folder = None if args.out is None else outputs.path_of(args.out)
  names = ["preflight.json", "preflight.txt", "memory.png"]
  names += ["parts.png"] * (args.program == "generate")
  if folder:
    outputs.check_free([folder / name for name in names], args.overwrite)
  experiment = configs.load(args.config, args.overrides)
  devices = topology.devices_of(args.topology, args.num_slices)
  found = report.preflight(
    experiment, devices, args.topology, args.program, args.batch_size
  )
  text = table.as_text(found)
  print(text, end="")
  if folder:
    content = json.dumps(to_dict(found) | {"fits": found.fits}, indent=1)
    outputs.write(folder / names[0], content.encode(), args.overwrite)
    outputs.write(folder / names[1], text.encode(), args.overwrite)
    pictures.draw_memory(found, folder / names[2], args.overwrite)
    if found.parts:
      pictures.draw_parts(found, folder / names[3], args.overwrite)
