"""Times the training step and generation; one JSON line per measurement.

    python -m benchmarks.run --sizes tiny,digits --out rows.jsonl

1. Compile, ahead of time: its seconds are a column of their own.
2. Run until the machine is warm, then time `--repeats` rounds, each long enough
   to be timed; report the median, the fastest and the slowest.
3. Count parameters, and FLOPs in the jaxpr (see `flops`), padding included.
   Training counts as three forward passes: recomputation is no progress.
4. Append the row, with versions and device, to the output file.

It needs jax, flax, optax and jaxtyping, no data and no checkpoint: batches are
random pixels made on the spot, parameters are as initialised. Time does not
depend on their values.
"""

import argparse
import dataclasses
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sizes
from marjax import flops, keys
from marjax.evaluate import environment
from marjax.experiment import Experiment
from marjax.generate import masked
from marjax.generate.draws import draw_batch
from marjax.model import draw, init_params
from marjax.parallel.chips import chip_of
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import batch_sharding
from marjax.settings import Settings
from marjax.tokens.patches import patchify
from marjax.train.step import make_train_program

IMAGENET_IMAGES = 1_281_167
ROUND_SECONDS = 1.0
MAX_CALLS = 100


def time_training(experiment: Experiment, repeats: int) -> dict:
  """Rates of one optimizer step on all devices."""
  mesh = make_mesh()
  program = make_train_program(experiment, mesh, IMAGENET_IMAGES)
  state, batch = program.init(), random_batch(experiment)
  placed = jax.device_put(batch, batch_sharding(program.mesh))
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    step = program.step.lower(state, placed).compile()
  compile_seconds = time.perf_counter() - start

  def call():
    nonlocal state
    state, metrics = step(state, placed)
    return metrics

  seconds = rounds(call, repeats)
  work = 3 * flops.count(forward(experiment), state.params, batch)
  return {
    **rates(seconds, experiment.training.batch_size, work),
    "compile_seconds": round(compile_seconds, 2),
    "memory_bytes": memory(step),
    "parameters": count_parameters(state.params),
  }


def time_generation(experiment: Experiment, repeats: int) -> dict:
  """Rates of one batch of images, tokens only, on the first device."""
  config, settings = experiment.model, experiment.sampling
  batch = experiment.training.batch_size
  params = jax.jit(lambda: nn.unbox(init_params(config, keys.root(0))))()
  static = masked.static_for(config, settings)
  scales = masked.step_scales(static.plan, settings)
  labels = jnp.arange(batch, dtype=jnp.int32) % config.backbone.num_classes

  def generate(params, labels):
    ids, length = jnp.arange(batch), config.backbone.num_tokens
    draws = draw_batch(keys.root(0), ids, length)
    temperature = jnp.float32(settings.temperature)
    return masked.generate(
      static, params, labels, draws, jnp.asarray(scales), temperature
    )[0]

  start = time.perf_counter()
  compiled = jax.jit(generate).lower(params, labels).compile()
  compile_seconds = time.perf_counter() - start
  seconds = rounds(lambda: compiled(params, labels), repeats)
  return {
    **rates(seconds, batch, flops.count(generate, params, labels)),
    "compile_seconds": round(compile_seconds, 2),
    "memory_bytes": memory(compiled),
    "parameters": count_parameters(params),
    "settings": dataclasses.asdict(settings),
  }


TASKS = {"train": time_training, "generate": time_generation}


def random_batch(experiment: Experiment) -> dict[str, np.ndarray]:
  """A batch of noise with labels and ids, as training takes it."""
  size, data = experiment.training.batch_size, experiment.data
  rng = np.random.default_rng(0)
  shape = (size, data.image_size, data.image_size, data.channels)
  return {
    "image": rng.uniform(-1, 1, shape).astype(np.float32),
    "label": rng.integers(0, data.num_classes, size).astype(np.int32),
    "id": np.arange(size, dtype=np.int32),
  }


def forward(experiment: Experiment) -> Callable:
  """(params, batch) to the loss, without dropout: what FLOPs are counted in."""
  codec, config = experiment.codec, experiment.model

  def loss(params, batch):
    tokens = patchify(codec.encode({}, batch["image"]), codec.patch)
    draws = draw(config, keys.at(keys.root(0), batch["id"]), batch["label"])
    return config.build().apply({"params": params}, tokens, draws).loss

  return loss


def count_parameters(params: dict) -> dict[str, int]:
  """Numbers in the backbone, in the head, and in both."""
  parts = {
    name: sum(leaf.size for leaf in jax.tree.leaves(params[name]))
    for name in ("backbone", "head")
  }
  return {**parts, "all": sum(parts.values())}


def rounds(call: Callable, repeats: int) -> list[float]:
  """Seconds per call, from `repeats` rounds of calls after a warm-up."""
  jax.block_until_ready(call())
  start = time.perf_counter()
  jax.block_until_ready(call())
  once = time.perf_counter() - start
  calls = max(1, min(MAX_CALLS, round(ROUND_SECONDS / once)))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      done = call()
    jax.block_until_ready(done)
    seconds.append((time.perf_counter() - start) / calls)
  return seconds


def rates(seconds: list[float], images: int, work: int) -> dict:
  """Columns of speed, from seconds per call and FLOPs of a call."""
  median = statistics.median(seconds)
  found = {
    "seconds": median,
    "seconds_fastest": min(seconds),
    "seconds_slowest": max(seconds),
    "repeats": len(seconds),
    "images_per_second": images / median,
    "flops": work,
    "tflops_per_second": work / median / 1e12,
  }
  chip = chip_of(jax.devices()[0])
  if chip:
    found["share_of_bfloat16_peak"] = found["tflops_per_second"] / chip.tflops
  return found


def memory(compiled) -> int | None:
  """Bytes the program holds on a device: arguments, results, temporaries."""
  found = compiled.memory_analysis()
  if found is None:
    return None
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    - found.alias_size_in_bytes
  )


def measure(task: str, size: str, experiment: Experiment, repeats: int) -> dict:
  """One row: what was asked for, what was found, and where."""
  return {
    "task": task,
    "size": size,
    "batch_size": experiment.training.batch_size,
    "dtype": experiment.model.backbone.dtype,
    **TASKS[task](experiment, repeats),
    "date": datetime.date.today().isoformat(),
    "device": environment.device(),
    "versions": environment.versions(),
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Flags → measurements → appended lines; 2 after a wrong flag."""
  args = _flags(argv)
  try:
    if args.repeats < 1:
      raise ValueError(f"--repeats is {args.repeats}; expected 1 or more.")
    experiments = [
      (size, _experiment(size, args)) for size in args.sizes.split(",")
    ]
    tasks = [_known_task(task) for task in args.tasks.split(",")]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    file = open(args.out, "a")
  except (ValueError, OSError) as error:
    print(f"benchmarks.run: {error}", file=sys.stderr)
    return 2
  with file:
    for size, experiment in experiments:
      for task in tasks:
        print(f"{task} {size} ...", end=" ", flush=True)
        row = measure(task, size, experiment, args.repeats)
        file.write(json.dumps(row) + "\n")
        file.flush()
        print(
          f"{1e3 * row['seconds']:.4g} ms,"
          f" {row['images_per_second']:.4g} images/s,"
          f" {row['tflops_per_second']:.3g} TFLOP/s,"
          f" compiled in {row['compile_seconds']} s"
        )
  return 0


def _experiment(size: str, args: argparse.Namespace) -> Experiment:
  found = sizes.experiment(size, args.batch_size, args.dtype)
  asked = Settings(
    num_ar_steps=args.num_ar_steps,
    num_diffusion_steps=args.num_diffusion_steps,
    guidance_scale=args.guidance_scale,
  )
  return dataclasses.replace(found, sampling=asked.over(found.sampling))


def _known_task(task: str) -> str:
  if task not in TASKS:
    raise ValueError(
      f"there is no task {task!r}; expected one of {', '.join(TASKS)}."
    )
  return task


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.run", description=__doc__.partition("\n")[0]
  )
  parser.add_argument("--sizes", default="tiny,digits", help="A,B of sizes.py")
  parser.add_argument(
    "--tasks", default="train,generate", help="train,generate"
  )
  parser.add_argument("--batch_size", type=int, help="images per call")
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16")
  )
  parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
  parser.add_argument("--num_ar_steps", type=int)
  parser.add_argument("--num_diffusion_steps", type=int)
  parser.add_argument("--guidance_scale", type=float)
  parser.add_argument(
    "--out",
    type=Path,
    default=Path("benchmarks/results/rows.jsonl"),
    help="JSON lines, appended to (default: %(default)s)",
  )
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
