"""What the settings of the sampler are worth, for one trained checkpoint.

    python -m experiments.samplers --checkpoint out/digits

1. For each setting below: generate 1 000 images of balanced classes from the
   same seed, and score them as `marjax evaluate` does.
2. Append a row; a row already there, of the same parameters, is skipped.
3. `python -m experiments.tables` makes the table.

Seconds are those of generating, after compiling.
"""

import dataclasses
import functools
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import programs, rows
from marjax.evaluate import run
from marjax.evaluate.scores import pixels
from marjax.generate.settings import Settings
from marjax.head.reverse import ReverseSettings
from marjax.pipeline import Pipeline, load

RESULTS = Path("experiments/results/samplers.jsonl")

LATE = Settings(head=ReverseSettings(num_steps=20, start=950))

VARIANTS = {
  "published spacing, 100 steps": Settings(
    head=ReverseSettings(num_steps=100, start=999)
  ),
  "published spacing, 50 steps": Settings(
    head=ReverseSettings(num_steps=50, start=999)
  ),
  "start at 980, 50 steps": Settings(
    head=ReverseSettings(num_steps=50, start=980)
  ),
  "start at 980, 20 steps": Settings(
    head=ReverseSettings(num_steps=20, start=980)
  ),
  "start at 950, 50 steps": Settings(
    head=ReverseSettings(num_steps=50, start=950)
  ),
  "start at 950, 20 steps": LATE,
  "start at 950, 20 steps, temperature 0.9": dataclasses.replace(
    LATE, temperature=0.9
  ),
  "start at 950, 20 steps, guidance 2": dataclasses.replace(
    LATE, guidance_scale=2.0
  ),
  "published spacing, 100 steps, guidance 2": Settings(
    guidance_scale=2.0, head=ReverseSettings(num_steps=100, start=999)
  ),
  "DDIM, published spacing, 100 steps": Settings(
    head=ReverseSettings(num_steps=100, start=999, sampler="ddim")
  ),
  "DDIM, start at 950, 20 steps": Settings(
    head=ReverseSettings(num_steps=20, start=950, sampler="ddim")
  ),
  "DDIM, start at 950, 50 steps": Settings(
    head=ReverseSettings(num_steps=50, start=950, sampler="ddim")
  ),
}
"""Unguided and at temperature 1 unless they say otherwise."""


def settings_of(pipe: Pipeline, variant: Settings) -> Settings:
  """A variant on the checkpoint's AR steps; the rest as published."""
  num_ar_steps = pipe.settings().num_ar_steps
  return dataclasses.replace(variant, num_ar_steps=num_ar_steps)


def measure(
  pipe: Pipeline, real: run.Real, settings: Settings, num_images: int, seed: int
) -> dict[str, Any]:
  """Scores and seconds of one setting."""
  labels = run.balanced_labels(num_images, pipe.card.data.num_classes)
  size = min(num_images, 64)
  pipe.generate(labels[:size], seed, settings, batch_size=size)
  start = time.perf_counter()
  images = pipe.generate(labels, seed, settings, batch_size=size)
  seconds = time.perf_counter() - start
  return {
    **run.score(images, labels, real),
    "seconds": seconds,
    "images_per_second": num_images / seconds,
  }


def check_count(num_images: int, num_classes: int) -> None:
  """Refuses, before a training, what `measure` would after it.

  Raises:
    ValueError: so many images cannot be scored.
  """
  run.balanced_labels(num_images, num_classes)
  pixels.check_count(num_images, "num_images")


def fingerprint(params: Any) -> int:
  """A number that changes with the parameters, the same on any machine."""
  sums = [zlib.crc32(np.asarray(leaf)) for leaf in jax.tree.leaves(params)]
  return zlib.crc32(np.asarray(sums, np.uint32))


def key_of(
  pipe: Pipeline, settings: Settings, num_images: int, seed: int
) -> rows.Row:
  """What tells a model's row of scores from its others, and other models'."""
  return {
    "settings": rows.as_row(settings),
    "num_images": num_images,
    "seed": seed,
    "steps_trained": pipe.card.step,
    "parameters": fingerprint(pipe.params),
  }


def measure_missing(
  checkpoint: Path, num_images: int, seed: int, out: Path
) -> None:
  """Adds the rows that the file of results does not have, and prints all."""
  pipe = load(checkpoint)
  real = run.load_real(run.known_data(pipe))
  for name, variant in VARIANTS.items():
    settings = settings_of(pipe, variant)
    asked = {"name": name, **key_of(pipe, settings, num_images, seed)}
    print(f"{name} ...", end=" ", flush=True)
    how = (pipe, real, settings, num_images, seed)
    row, is_new = rows.measured(out, asked, functools.partial(measure, *how))
    print(
      f"{'' if is_new else 'already there, '}"
      f"accuracy {row['label_accuracy']:.3f},"
      f" Fréchet ratio {row['frechet_ratio']:.2f},"
      f" near copies {row['near_copy_rate']:.3f}, {row['seconds']:.1f} s",
      flush=True,
    )


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → rows; 2 when something about the checkpoint is wrong."""
  parser = programs.scoring_parser(__spec__, __doc__, RESULTS)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  measure_missing(args.checkpoint, args.num_images, args.seed, args.out)


if __name__ == "__main__":
  sys.exit(main())
