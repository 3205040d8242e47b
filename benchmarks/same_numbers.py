"""Whether several devices compute what one does.

    python -m benchmarks.same_numbers
    python -m benchmarks.same_numbers --devices 2 --num_steps 50

1. A small model (width 256, 4 + 4 blocks, 64 tokens) trains in float32 with
   full products, on 1, 2, 4, ... devices, with the whole state on each of them
   (dp) and split over them (fsdp). All draws are addressed by step and image,
   so only sums have another order. It starts from noisy parameters: a fresh
   head gives exactly 0, and no gradient to what is below it.
2. With the parameters that one device ends with, every mesh generates images.
3. The largest differences from one device, relative to its own numbers: of the
   losses and gradient norms, step by step, and of the images, in their range.
   Above `--tolerance`, 1e-4, the exit code is 1.
4. One bfloat16 step likewise, which on NVIDIA GPUs runs the kernels, each
   device on its own part. There every product is rounded, to 2^-9 of itself,
   and which way may depend on how many images a device has. A mean of many such
   errors is small: the loss may differ by 2^-8, the gradient, as a vector, by
   2^-6.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from benchmarks import flags, sizes
from benchmarks.scaling import PRESETS, devices_of
from experiments import programs, rows
from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.masked import MaskedConfig
from marjax.data.synthetic import SyntheticSource
from marjax.experiment import (
  DataConfig,
  Experiment,
  MeshConfig,
  TrainingConfig,
)
from marjax.generate.settings import Settings
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.reverse import ReverseSettings
from marjax.latents.pixels import PixelsConfig
from marjax.layers.placed import has_kernels
from marjax.model import ModelConfig
from marjax.parallel.mesh import make_mesh, sizes_of
from marjax.parallel.rules import batch_sharding
from marjax.pipeline import Pipeline
from marjax.tokens.masking import MaskConfig
from marjax.train.state import TrainState
from marjax.train.step import make_train_program

TOLERANCE = 1e-4
ROUNDING = {"loss": 2.0**-8, "gradient": 2.0**-6}
NOISE = 0.02

SMALL = ModelConfig(
  MaskedConfig(
    num_tokens=64,
    token_dim=16,
    width=256,
    encoder_depth=4,
    decoder_depth=4,
    num_heads=4,
    num_buffer=16,
    remat="none",
    condition=ClassesConfig(num_classes=10),
    masking=MaskConfig(num_strata=2),
  ),
  DiffusionHeadConfig(token_dim=16, width=256, depth=3),
)


MODELS = {"small": SMALL, "tiny": sizes.SIZES["tiny"].model}


def experiment_of(
  model: ModelConfig = SMALL, batch_size: int = 32, dtype: str = "float32"
) -> Experiment:
  """Training on grey images, cut into patches of token_dim pixels."""
  tokens, cell = model.backbone.num_tokens, model.backbone.token_dim
  patch = round(cell**0.5)
  side = patch * round(tokens**0.5)
  return Experiment(
    name="same numbers",
    codec=PixelsConfig(image_size=side, channels=1, patch=patch),
    model=model.in_dtype(dtype),
    data=DataConfig("synthetic", image_size=side, channels=1, num_classes=10),
    training=TrainingConfig(
      batch_size=batch_size, num_steps=1000, learning_rate=1e-4
    ),
    sampling=Settings(
      num_ar_steps=8,
      num_buckets=2,
      guidance_scale=2.0,
      head=ReverseSettings(num_steps=25, start=950),
    ),
  )


def meshes(counts: Sequence[int]) -> dict[str, Mesh]:
  """Those of several devices by name, after that of one, "one"."""
  made = {"one": make_mesh(devices=jax.devices()[:1])}
  for count in counts:
    for preset in PRESETS if count > 1 else ():
      sizes = sizes_of(MeshConfig(preset))
      devices = jax.devices()[:count]
      made[f"{preset} on {count}"] = make_mesh(*sizes, devices=devices)
  return made


@dataclasses.dataclass(frozen=True)
class Run:
  """What training on a mesh gave, on the host.

  Attributes:
    losses, gradient_norms: float32 [num_steps].
    gradient: of the first step, clipped, times a constant: AdamW's first mean.
    params: after the last step.
  """

  losses: np.ndarray
  gradient_norms: np.ndarray
  gradient: PyTree
  params: PyTree


def train(experiment: Experiment, mesh: Mesh, num_steps: int) -> Run:
  """Trains on synthetic images, new ones in each step."""
  program = make_train_program(experiment, mesh, experiment.data.num_examples)
  state, metrics, gradient = noisy(program.init()), [], None
  for step in range(num_steps):
    batch = jax.device_put(batch_of(experiment, step), batch_sharding(mesh))
    state, values = program.step(state, batch)
    metrics.append(jax.device_get(values))
    if step == 0:
      gradient = jax.device_get(optax.tree.get(state.opt_state, "mu"))
  return Run(
    np.array([one["loss"] for one in metrics]),
    np.array([one["grad_norm"] for one in metrics]),
    gradient,
    jax.device_get(state.params),
  )


def noisy(state: TrainState) -> TrainState:
  """The state with other parameters, the same on every mesh."""
  rng = np.random.default_rng(0)

  def add(leaf):
    noise = NOISE * rng.standard_normal(leaf.shape, np.float32)
    return jax.device_put(np.asarray(leaf) + noise, leaf.sharding)

  return dataclasses.replace(state, params=jax.tree.map(add, state.params))


def batch_of(experiment: Experiment, step: int) -> dict[str, np.ndarray]:
  """The images of a step, with labels and ids."""
  source = SyntheticSource(experiment.data, "train")
  first = step * experiment.training.batch_size
  ids = (first + np.arange(experiment.training.batch_size)) % len(source)
  examples = [source[int(index)] for index in ids]
  images = np.stack([example["image"] for example in examples])
  return {
    "image": (images / 127.5 - 1).astype(np.float32),
    "label": np.array([example["label"] for example in examples], np.int32),
    "id": ids.astype(np.int32),
  }


def generate(
  experiment: Experiment, mesh: Mesh, params: PyTree, num_images: int
) -> np.ndarray:
  """Latents of that many images: pixels in [-1, 1] and what is outside."""
  abstract = make_train_program(experiment, mesh, 1).abstract_state.params
  places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  on_mesh = jax.device_put(params, places)
  pipe = Pipeline.of_experiment(experiment, on_mesh, mesh)
  labels = [i % experiment.data.num_classes for i in range(num_images)]
  return pipe.latents(labels, seed=0)


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
  """The largest of the differences, relative to the largest number."""
  return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))


def of_each(found: np.ndarray, wanted: np.ndarray) -> float:
  """The largest of the relative differences."""
  return float(np.max(np.abs(found - wanted) / np.abs(wanted)))


def of_vector(found: PyTree, wanted: PyTree) -> float:
  """The length of the difference of two trees, relative to the second's.

  In numpy: who compares what other processes computed should take no device.
  """
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
  apart, whole = 0.0, 0.0
  for one, other in pairs:
    other = np.asarray(other, np.float64)
    apart += np.sum((np.asarray(one, np.float64) - other) ** 2)
    whole += np.sum(other**2)
  return float(np.sqrt(apart / whole))


def in_float32(
  experiment: Experiment, counts: Sequence[int], num_steps: int, num_images: int
) -> Iterator[rows.Row]:
  """A row per mesh of several devices: losses, gradient norms, images.

  The parameters are told, not judged: AdamW divides a gradient by its own
  size, so where that is rounding alone they go their own ways.
  """
  (alone, one), *others = meshes(counts).items()
  with jax.default_matmul_precision("highest"):
    first = train(experiment, one, num_steps)
    wanted = generate(experiment, one, first.params, num_images)
    for name, mesh in others:
      run = train(experiment, mesh, num_steps)
      images = generate(experiment, mesh, first.params, num_images)
      apart = {
        "loss": of_each(run.losses, first.losses),
        "gradient norm": of_each(run.gradient_norms, first.gradient_norms),
        "images": difference(images, wanted),
      }
      yield {
        "mesh": name,
        "against": alone,
        "dtype": "float32",
        "apart": apart,
        "parameters": of_vector(run.params, first.params),
        "last_loss": float(run.losses[-1]),
      }


def in_bfloat16(
  experiment: Experiment, counts: Sequence[int]
) -> Iterator[rows.Row]:
  """A row per mesh of several devices: loss and gradient of one step."""
  (alone, one), *others = meshes(counts).items()
  first = train(experiment, one, 1)
  for name, mesh in others:
    run = train(experiment, mesh, 1)
    with jax.set_mesh(mesh):
      is_fused = has_kernels()
    apart = {
      "loss": of_each(run.losses, first.losses),
      "gradient": of_vector(run.gradient, first.gradient),
    }
    yield {
      "mesh": name,
      "against": alone,
      "dtype": "bfloat16",
      "kernels": is_fused,
      "apart": apart,
    }


def judged(row: rows.Row, tolerance: float) -> rows.Row:
  """The row with its bounds, and whether it is within them."""
  bounds = dict.fromkeys(row["apart"], tolerance)
  if row["dtype"] == "bfloat16":
    bounds = ROUNDING
  # Written so that NaN is none of them.
  is_same = all(row["apart"][name] <= bound for name, bound in bounds.items())
  return {**row, "bounds": bounds, "is_same": is_same}


def _sentence(row: rows.Row) -> str:
  parts = [f"{name} {apart:.2g}" for name, apart in row["apart"].items()]
  if "parameters" in row:
    parts.append(f"(parameters {row['parameters']:.2g})")
  kernels = {True: " with kernels", False: " without kernels", None: ""}
  how = kernels[row.get("kernels")]
  end = "" if row["is_same"] else f"; above {row['bounds']}"
  return f"{row['dtype']}{how}, {row['mesh']}: {', '.join(parts)}{end}"


@programs.program
def main(argv: Sequence[str] | None) -> int:
  """Flags → differences; 1: one is too large, 2: an error to mend."""
  args = _flags(argv)
  counts = _counts(args)
  size, is_same = (MODELS[args.model], args.batch_size), True
  for row in itertools.chain(
    in_float32(experiment_of(*size), counts, args.num_steps, args.num_images),
    in_bfloat16(experiment_of(*size, "bfloat16"), counts),
  ):
    row = judged(row, args.tolerance)
    is_same &= row["is_same"]
    print(_sentence(row), flush=True)
    if args.out:
      rows.append(args.out, {**row, **flags.where()})
  print("the same numbers" if is_same else "NOT the same numbers")
  return 0 if is_same else 1


def _counts(args: argparse.Namespace) -> list[int]:
  """Numbers of devices.

  Raises:
    ValueError: a wrong flag.
  """
  counts = devices_of(args.devices, jax.device_count())
  if max(counts) == 1:
    raise ValueError(
      f"there are {jax.device_count()} devices and --devices is"
      f" {args.devices}; expected several, to compare with one."
    )
  return counts


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  parser.add_argument(
    "--devices", help="A,B of them (default: 1, 2, 4, ... up to all)"
  )
  parser.add_argument(
    "--model", default="small", choices=list(MODELS), help="tiny for CPUs"
  )
  parser.add_argument("--num_steps", type=programs.count, default=50)
  parser.add_argument("--num_images", type=programs.count, default=16)
  parser.add_argument(
    "--batch_size",
    type=programs.count,
    default=32,
    help="of a step, on all devices",
  )
  parser.add_argument("--tolerance", type=float, default=TOLERANCE)
  parser.add_argument("--out", type=Path, help="JSON lines to append to")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
