"""Times the KL-16 autoencoder at 256²; one JSON line per measurement.

    python -m benchmarks.codec --batch_size 64 --dtypes float32,bfloat16

1. Parameters as initialised; decoding takes standard normal latents, which is
   what trained latents are scaled to, encoding takes uniform pixels.
2. A variant is a dtype and a matmul precision. Accelerators round the factors
   of float32 products at "default" and do not at "highest", so float32 is
   measured at both; bfloat16 at "default".
3. Compile and time as in `benchmarks.run`, on the first device.
4. Compare the result with that of float32 at "highest" on the same input: in
   uint8 levels for images, and relative to the root mean square of the result,
   since the range of an untrained decoder's images means nothing.
5. Append the row, with versions and device, to the output file.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from benchmarks import flags, timing
from benchmarks.precision import REFERENCE, Variant, rms
from experiments import programs, rows
from marjax import keys
from marjax.latents.kl import KLConfig
from marjax.train import flops

KL16 = KLConfig()
LEVELS = 127.5
"""uint8 levels in 1, the unit of images in [-1, 1]."""

PARTS = {
  "decode": ("from_latents", "decoder"),
  "encode": ("encoder", "to_moments"),
}
"""Parameters that each task reads."""


VARIANTS = {
  "float32": (REFERENCE, Variant("float32", "default")),
  "bfloat16": (Variant("bfloat16", "default"),),
}


def measure(
  config: KLConfig,
  task: str,
  variants: Sequence[Variant],
  batch_size: int,
  repeats: int,
) -> Iterator[dict]:
  """Rows of one task, one per variant, the reference's first if asked for."""
  arguments = jax.device_put(inputs(config, task, batch_size))
  reference = None
  for variant in dict.fromkeys((REFERENCE, *variants)):
    start = time.perf_counter()
    compiled = lower(config, task, variant, *arguments).compile()
    compile_seconds = time.perf_counter() - start
    result = np.asarray(compiled(*arguments))
    if reference is None:
      reference = result
    if variant not in variants:
      continue
    seconds = timing.rounds(functools.partial(compiled, *arguments), repeats)
    work = flops.count(getattr(config, task), *arguments)
    yield {
      "task": task,
      "image_size": config.image_size,
      "batch_size": batch_size,
      "dtype": variant.dtype,
      "matmul_precision": variant.precision,
      **timing.rates(seconds, batch_size, work),
      "compile_seconds": round(compile_seconds, 2),
      "memory_bytes": timing.memory(compiled),
      "parameters": sum(leaf.size for leaf in jax.tree.leaves(arguments[0])),
      **difference(task, result, reference),
      **flags.where(),
    }


def inputs(config: KLConfig, task: str, batch_size: int) -> tuple:
  """Parameters that a task reads, and its latents or images, float32."""
  params = jax.jit(config.init_params)(keys.root(0))
  params = {name: params[name] for name in PARTS[task]}
  rng = np.random.default_rng(0)
  if task == "decode":
    shape = (batch_size, *config.latent_shape)
    return params, rng.standard_normal(shape, np.float32)
  shape = (batch_size, config.image_size, config.image_size, config.channels)
  return params, rng.uniform(-1, 1, shape).astype(np.float32)


def lower(config: KLConfig, task: str, variant: Variant, *arguments):
  """A task's program, to be compiled, whatever jax's default precision is."""
  config = dataclasses.replace(config, dtype=variant.dtype)
  with jax.default_matmul_precision(variant.precision):
    return jax.jit(getattr(config, task)).lower(*arguments)


def difference(task: str, result: np.ndarray, reference: np.ndarray) -> dict:
  """Columns of error: root mean square, largest, relative to the reference.

  Images are not clipped or rounded first; latents are in their own unit.
  """
  unit = LEVELS if task == "decode" else 1.0
  reference = unit * reference.astype(np.float64)
  error = unit * result.astype(np.float64) - reference
  return {
    "error_unit": "uint8 levels" if task == "decode" else "latents",
    "error_rms": rms(error),
    "error_max": float(np.abs(error).max()),
    "error_relative": rms(error) / rms(reference),
    "result_rms": rms(reference),
    "result_std": float(reference.std()),
  }


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → measurements → appended lines; 2 after an error to mend."""
  args = _flags(argv)
  tasks = programs.chosen("task", args.tasks, PARTS)
  dtypes = programs.chosen("dtype", args.dtypes, VARIANTS)
  variants = [variant for dtype in dtypes for variant in VARIANTS[dtype]]
  rows.make(args.out)
  for task in tasks:
    for row in measure(KL16, task, variants, args.batch_size, args.repeats):
      rows.append(args.out, row)
      print(_sentence(row), flush=True)


def _sentence(row: dict) -> str:
  return (
    f"{row['task']} {row['dtype']} {row['matmul_precision']}:"
    f" {1e3 * row['seconds']:.4g} ms,"
    f" {row['images_per_second']:.4g} images/s,"
    f" {row['tflops_per_second']:.3g} TFLOP/s,"
    f" compiled in {row['compile_seconds']} s,"
    f" error {row['error_rms']:.3g} (max {row['error_max']:.3g})"
    f" {row['error_unit']}, {100 * row['error_relative']:.2g} %"
  )


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument("--tasks", default="decode,encode", help="decode,encode")
  parser.add_argument(
    "--dtypes", default="float32,bfloat16", help="float32,bfloat16"
  )
  parser.add_argument(
    "--batch_size", type=programs.count, default=64, help="images"
  )
  flags.add_repeats(parser)
  flags.add_out(parser, "codec")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
