"""Times the training step and generation; one JSON line per measurement.

    python -m benchmarks.run --sizes tiny,digits --out rows.jsonl

1. Compile, ahead of time: its seconds are a column of their own, and so are
   those of the first call, compiling included. With `--cache` a second process
   finds the programs there.
2. Time rounds after a warm-up (`benchmarks.timing`).
3. Count parameters, and FLOPs in the jaxpr: those that the program does,
   padding included, and those that are needed (`benchmarks.needed`). Training
   counts as three forward passes: recomputation is no progress.
4. With `--split`, time transformer and head by themselves too.
5. Append the row, with versions and device, to the output file.

It needs jax, flax, optax and jaxtyping, no data and no checkpoint: batches are
random numbers made on the spot, parameters are as initialised. Time does not
depend on their values.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks import flags, sizes
from benchmarks.generation import time_generation
from benchmarks.training import time_training
from experiments import programs, rows
from marjax.experiment import Experiment

TASKS = {"train": time_training, "generate": time_generation}


def measure(
  task: str,
  size: str,
  experiment: Experiment,
  repeats: int,
  is_split: bool = False,
) -> dict:
  """One row: what was asked for, what was found, and where."""
  return {
    "task": task,
    "size": size,
    "batch_size": experiment.training.batch_size,
    "dtype": experiment.model.backbone.dtype,
    "head": experiment.model.head.kind,
    **TASKS[task](experiment, repeats, is_split),
    **flags.where(),
  }


def use_cache(folder: Path) -> str:
  """Keeps compiled programs in a folder; "warm" if it held some, or "cold"."""
  folder.mkdir(parents=True, exist_ok=True)
  found = "warm" if any(folder.iterdir()) else "cold"
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return found


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → measurements → appended lines; 2 after an error to mend."""
  args = _flags(argv)
  if args.split and args.head == "categorical":
    raise ValueError(
      "--split is given with --head categorical; expected a head of floats:"
      " no cheaper one draws codes, to time the transformer by."
    )
  experiments = [
    (size, _experiment(size, args)) for size in args.sizes.split(",")
  ]
  tasks = programs.chosen("task", args.tasks, TASKS)
  rows.make(args.out)
  cache = {"cache": use_cache(_own_folder(args))} if args.cache else {}
  for size, experiment in experiments:
    for task in tasks:
      print(f"{task} {size} ...", end=" ", flush=True)
      row = measure(task, size, experiment, args.repeats, args.split)
      rows.append(args.out, {**row, **cache})
      print(_sentence(row), flush=True)


def _sentence(row: dict) -> str:
  parts = (
    f" ({', '.join(_part(row, name) for name in _PARTS)})"
    if "seconds_head" in row
    else ""
  )
  return (
    f"{1e3 * row['seconds']:.4g} ms{parts},"
    f" {row['images_per_second']:.4g} images/s,"
    f" {row['tflops_per_second']:.3g} TFLOP/s,"
    f" {100 * row['share_of_floor']:.3g} % of the floor,"
    f" compiled in {row['compile_seconds']} s,"
    f" first call {row['first_call_seconds']} s"
  )


_PARTS = ("transformer", "head", "rest")


def _part(row: dict, name: str) -> str:
  return f"{name} {1e3 * row[f'seconds_{name}']:.4g}"


def _experiment(size: str, args: argparse.Namespace) -> Experiment:
  found = sizes.experiment(
    size, args.batch_size, args.dtype, args.remat, args.data, args.head
  )
  asked = {
    "num_ar_steps": args.num_ar_steps,
    "guidance_scale": args.guidance_scale,
  }
  asked = {name: value for name, value in asked.items() if value is not None}
  if args.num_diffusion_steps is not None:
    asked["head"] = {"num_steps": args.num_diffusion_steps}
  sampling = found.sampling.changed(asked, found.model)
  return dataclasses.replace(found, sampling=sampling.for_model(found.model))


def _own_folder(args: argparse.Namespace) -> Path:
  """A folder of these programs alone, lest those of others look warm."""
  said = vars(args).items()
  names = [
    f"{name}={value}"
    for name, value in said
    if value is not None and name not in ("cache", "out", "repeats", "split")
  ]
  return args.cache / ",".join(names)


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("--sizes", default="tiny,digits", help="A,B of sizes.py")
  parser.add_argument(
    "--tasks", default="train,generate", help="train,generate"
  )
  parser.add_argument(
    "--batch_size", type=programs.count, help="images per call"
  )
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16")
  )
  parser.add_argument(
    "--remat",
    choices=("none", "save_matmuls", "full"),
    help="what the backward pass recomputes (default: the size's own)",
  )
  parser.add_argument(
    "--data",
    default="pixels",
    choices=("pixels", "latents"),
    help="what training takes; cached latents with base, large, huge",
  )
  parser.add_argument(
    "--head",
    default="diffusion",
    choices=sizes.HEADS,
    help="what draws a token; categorical with big sizes (default: diffusion)",
  )
  flags.add_repeats(parser)
  parser.add_argument("--num_ar_steps", type=programs.count)
  parser.add_argument(
    "--num_diffusion_steps",
    type=programs.count,
    help="evaluations of the head a token",
  )
  parser.add_argument("--guidance_scale", type=float)
  parser.add_argument(
    "--split", action="store_true", help="time transformer and head too"
  )
  parser.add_argument(
    "--cache",
    type=Path,
    help="folder that keeps compiled programs, each set of flags apart",
  )
  flags.add_out(parser, "rows")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
