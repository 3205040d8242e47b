"""What fewer network evaluations cost: seconds against quality, one checkpoint.

    python -m experiments.tradeoff --checkpoint out/digits
    python -m experiments.tradeoff --checkpoint out/digits --time_only

1. Score every setting of `experiments.tradeoff_settings` once: 1 000 images of
   balanced classes, seed 0, with the checkpoint's guidance and temperature.
2. CANDIDATES were chosen among those rows. Score them and BASELINES on seeds
   that had no part in the choice, the same ones for all, so that differences
   can be taken seed by seed (`experiments.paired`).
3. Time one batch of each setting compared: all are compiled, then all run in
   turn, three times over; the median counts, and later rows replace earlier
   ones. --time_only does only this.
4. A row already there, of the same parameters, is skipped (timings never are).
   `python -m experiments.tables` makes the tables, `python -m
   experiments.tradeoff_picture` the picture.

Arithmetic does not depend on what else the machine does, so every row has it.
Scored images come from a plan of one bucket, which compiles fastest and changes
no image; timings and arithmetic are those of the checkpoint's own plan.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import programs, rows, samplers
from experiments.tradeoff_settings import (
  BASELINES,
  CANDIDATES,
  Changes,
  grid,
  head_evaluations,
  name_of,
  pace_of,
)
from marjax import keys
from marjax.evaluate import environment, run
from marjax.evaluate.scores import pixels
from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.generate.settings import Settings
from marjax.pipeline import Pipeline, load
from marjax.train import flops

RESULTS = Path("experiments/results/tradeoff.jsonl")

TIMED_BATCH = 64
ROUNDS = 3


def asked_row(
  pipe: Pipeline, variant: Changes, num_images: int, seed: int
) -> tuple[Settings, rows.Row]:
  """Complete settings, and what tells the row of their scores apart."""
  settings = dataclasses.replace(pipe.settings(variant), num_buckets=1)
  return settings, {
    "kind": "scores",
    "name": name_of(variant),
    **samplers.key_of(pipe, settings, num_images, seed),
  }


def score_missing(
  pipe: Pipeline,
  variants: Iterable[Changes],
  num_images: int,
  seeds: Sequence[int],
  out: Path,
) -> None:
  """Adds the rows of scores that the file of results does not have."""
  from tqdm import tqdm

  real = run.load_real(run.known_data(pipe))
  asked = {"kind": "real", "num_images": num_images}
  rows.measured(out, asked, lambda: measure_real(pipe, real, num_images))
  found = rows.read(out)
  todo = [
    (variant, settings, asked)
    for variant in variants
    for seed in seeds
    for settings, asked in [asked_row(pipe, variant, num_images, seed)]
    if rows.find(found, **asked) is None
  ]
  for variant, settings, asked in (bar := tqdm(todo, unit="row")):
    work = flops_of(pipe, pipe.settings(variant))
    asked["head_evaluations"] = head_evaluations(variant)
    asked["flops_per_image"] = work / TIMED_BATCH
    how = (pipe, real, settings, num_images, asked["seed"])
    measure = functools.partial(samplers.measure, *how)
    row, _ = rows.measured(out, asked, measure)
    bar.write(
      f"{row['name']}, seed {row['seed']}:"
      f" Fréchet ratio {row['frechet_ratio']:.2f},"
      f" accuracy {row['label_accuracy']:.3f}, {row['seconds']:.1f} s"
    )


def measure_real(pipe: Pipeline, real: run.Real, num_images: int) -> rows.Row:
  """What real images score."""
  labels = run.balanced_labels(num_images, pipe.card.data.num_classes)
  mean, spread = pixels.repeated_ratio(
    real.train.images, real.train.labels, real.test.images, labels
  )
  accuracy = pixels.label_accuracy(
    real.classifier, real.test.images, real.test.labels
  )
  return {"frechet_ratio": mean, "spread": spread, "label_accuracy": accuracy}


def time_all(pipe: Pipeline, variants: Iterable[Changes], out: Path) -> None:
  """Adds a row of seconds for each pace among the settings."""
  from tqdm import tqdm

  labels = np.arange(TIMED_BATCH) % pipe.card.data.num_classes
  paces = {}
  for variant in variants:
    settings = pipe.settings(variant)
    row = {"name": name_of(variant), "settings": rows.as_row(settings)}
    paces.setdefault(pace_of(row), (variant, settings, row))
  seconds = {pace: [] for pace in paces}

  def once(settings: Settings) -> float:
    start = time.perf_counter()
    pipe.generate(labels, 0, settings, batch_size=TIMED_BATCH)
    return time.perf_counter() - start

  for _, settings, _ in tqdm(paces.values(), desc="compiling"):
    once(settings)
  for _ in tqdm(range(ROUNDS), desc="timing"):
    for pace, (_, settings, _) in paces.items():
      seconds[pace].append(once(settings))
  for pace, (variant, settings, row) in paces.items():
    rows.append(
      out,
      {
        "kind": "time",
        **row,
        "batch_size": TIMED_BATCH,
        "head_evaluations": head_evaluations(variant),
        "flops_per_image": flops_of(pipe, settings) / TIMED_BATCH,
        "seconds_per_image": statistics.median(seconds[pace]) / TIMED_BATCH,
        "rounds": seconds[pace],
        "device": environment.device(),
        "versions": environment.versions(),
      },
    )


def flops_of(pipe: Pipeline, settings: Settings) -> int:
  """Matrix products of one batch, padding included."""
  static = reveal.static_for(pipe.card.model, settings)
  numbers = reveal.numbers_for(static.plan, settings)
  backbone = pipe.card.model.backbone

  def generate(params: Any, labels: jax.Array) -> jax.Array:
    draws = draw_batch(keys.root(0), jnp.arange(TIMED_BATCH), backbone)
    return reveal.generate(static, params, labels, draws, numbers)

  return flops.count(generate, pipe.params, np.zeros(TIMED_BATCH, np.int32))


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → rows; 2 when something about the checkpoint is wrong."""
  parser = programs.scoring_parser(__spec__, __doc__, RESULTS)
  parser.add_argument(
    "--seeds",
    type=programs.count,
    default=10,
    help="fresh seeds (default: %(default)s)",
  )
  parser.add_argument(
    "--time_only", action="store_true", help="only measure seconds"
  )
  args = parser.parse_args(argv)
  pipe = load(args.checkpoint)
  compared = (*BASELINES, *CANDIDATES)
  if not args.time_only:
    score_missing(pipe, grid(), args.num_images, [0], args.out)
    seeds = range(1, args.seeds + 1)
    score_missing(pipe, compared, args.num_images, seeds, args.out)
  time_all(pipe, compared, args.out)


if __name__ == "__main__":
  sys.exit(main())
