"""The paper's table 1 on digits: order, attention, tokens a step, and the loss.

1. Fit the codebook of the cells with cross-entropy, once. Train every variant
   of configs/digits.py that a cell needs, several times each, by seed; runs
   that are there already, or releases of them, are not trained again. "mar_one"
   and "mar" are one model, drawn one token a step and several.
2. Choose each cell's guidance: SWEEP, 1 000 images of each run, the lowest mean
   Fréchet ratio. Test digits have no say in it: a third of the training digits
   stands for them, and the rest for the training digits.
3. Score 1 000 images of balanced classes of each run, with three seeds of
   generation, other than that of the sweep, against the test digits. Rows that
   are there already, of the same parameters, are skipped.
4. Once all cells are scored, draw PICTURE: ten digits of each.

Command   python -m experiments.table1 --runs out/table1
          python -m experiments.tables --write
Cost      24 trainings of 3 minutes and 40 minutes of scoring, on 2 CPU cores
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import jax
import numpy as np

from experiments import programs, rows, samplers
from marjax.cli import configs
from marjax.evaluate import run
from marjax.experiment import Experiment
from marjax.pipeline import Pipeline, load
from marjax.requests import pictures
from marjax.train.flops import training_flops

RESULTS = Path("experiments/results/table1.jsonl")
CONFIG = "configs/digits.py"

CELLS = ("ar_raster", "ar_random", "mar_one", "mar", "guided")
LOSSES = {"diffusion": "", "cross-entropy": "_ce"}
SWEEP = (1.0, 1.25, 1.5, 2.0, 3.0)
SWEEP_SEED = 100
SEEDS = (0, 1, 2)
PICTURE = Path("docs/images/table1.png")
TRAINING_MINUTES, DRAWING_MINUTES = 3.0, 0.15
"""Of one training, and of 1 000 images, on 2 CPU cores."""


def names() -> Iterator[str]:
  """All cells, by the variant of the config that each is drawn as."""
  for ending in LOSSES.values():
    yield from (f"{cell}{ending}" for cell in CELLS)


def address(name: str) -> str:
  """The config of a cell."""
  return f"{CONFIG}:{name}"


def trained_as(name: str) -> str:
  """The variant whose training a cell takes."""
  return name.replace("mar_one", "mar")


def experiment_of(name: str, folder: Path, seed: int = 0) -> Experiment:
  """What a cell is trained and drawn as, its codes in the folder of runs."""
  experiment = configs.load(address(name))
  codes = str(folder / "codes") if experiment.codec.has_params() else ""
  data = dataclasses.replace(experiment.data, seed=seed, autoencoder=codes)
  return dataclasses.replace(experiment, seed=seed, data=data)


def train(name: str, seed: int, folder: Path) -> Path:
  """The work directory of a run, trained unless it is there."""
  from marjax.train import codebook

  workdir = folder / f"{trained_as(name)}_{seed}"
  experiment = experiment_of(trained_as(name), folder, seed)
  codes = experiment.data.autoencoder
  if codes and not Path(codes).exists():
    codebook.fit(experiment.codec, experiment.data, codes)
  if not (workdir / "release.json").exists():  # a release is no run to go on
    programs.train(experiment, workdir)
  return workdir


def training_alone(real: run.Real) -> run.Real:
  """The same with training digits only: a third of them are the test digits."""
  count = len(real.train.labels)
  order = np.random.default_rng(0).permutation(count)
  test, train = np.split(order, [count // 3])

  def part(rows):
    return type(real.train)(*(column[rows] for column in real.train))

  return run.Real(part(train), part(test), real.classifier)


def score(
  name: str, pipe: Pipeline, real: run.Real, out: Path, **asked
) -> rows.Row:
  """The row of one cell, run, guidance and seed; measured if it is missing."""
  settings = configs.load(address(name)).sampling.changed(
    {"guidance_scale": asked["guidance_scale"]}
  )
  asked = {
    "cell": name,
    **asked,
    "settings": rows.as_row(settings),
    "parameters": samplers.fingerprint(pipe.params),
  }

  def measured() -> rows.Row:
    number, seed = asked["num_images"], asked["seed"]
    count = sum(leaf.size for leaf in jax.tree.leaves(pipe.params))
    scores = samplers.measure(pipe, real, settings, number, seed)
    return scores | {"num_parameters": count}

  row, _ = rows.measured(out, asked, measured)
  print(
    f"{name} {asked['run']} guidance {asked['guidance_scale']:g} seed"
    f" {asked['seed']}: Fréchet ratio {row['frechet_ratio']:.2f}, accuracy"
    f" {row['label_accuracy']:.3f}, copies {row['near_copy_rate']:.3f}",
    flush=True,
  )
  return row


def best_guidance(
  name: str, pipes: Sequence[Pipeline], real: run.Real, out: Path, number: int
) -> float:
  """That of the sweep with the lowest mean Fréchet ratio over the runs."""
  known = training_alone(real)

  def ratio(scale: float) -> float:
    each = [
      score(
        name,
        pipe,
        known,
        out,
        run=index,
        guidance_scale=scale,
        seed=SWEEP_SEED,
        num_images=number,
        judged_by="training digits",
      )
      for index, pipe in enumerate(pipes)
    ]
    return mean(row["frechet_ratio"] for row in each)

  return min(SWEEP, key=ratio)


def measure(
  name: str, folder: Path, num_runs: int, number: int, out: Path
) -> np.ndarray:
  """All rows of a cell; ten of its digits, for the picture."""
  pipes = [load(train(name, seed, folder)) for seed in range(num_runs)]
  real = run.load_real(run.known_data(pipes[0]))
  scale = best_guidance(name, pipes, real, out, number)
  for index, pipe in enumerate(pipes):
    for seed in SEEDS:
      score(
        name,
        pipe,
        real,
        out,
        run=index,
        guidance_scale=scale,
        seed=seed,
        num_images=number,
      )
  settings = configs.load(address(name)).sampling
  settings = settings.changed({"guidance_scale": scale})
  return pipes[0].generate(range(10), 0, settings)


def plan(
  asked: Sequence[str], folder: Path, num_runs: int, number: int, out: Path
) -> str:
  """What is not there yet, in words, a line for each cell and one for all."""
  lines, minutes, planned = [], 0.0, set()
  done = [row for row in rows.read(out) if row["num_images"] == number]
  for name in asked:
    runs = [f"{trained_as(name)}_{seed}" for seed in range(num_runs)]
    there = {n for n, path in enumerate(runs) if (folder / path).exists()}
    missing = {runs[n] for n in range(num_runs) if n not in there} - planned
    planned.update(runs)
    experiment = experiment_of(name, folder)
    training = experiment.training
    flops = training_flops(experiment.model) * training.batch_size
    own = sum(row["cell"] == name and row["run"] in there for row in done)
    images = number * max(0, num_runs * (len(SWEEP) + len(SEEDS)) - own)
    minutes += len(missing) * TRAINING_MINUTES
    minutes += images / 1000 * DRAWING_MINUTES
    lines.append(
      f"{name}: {len(missing)} trainings of {training.num_steps} steps,"
      f" {flops * training.num_steps / 1e12:.0f} TFLOP each, as"
      f" {trained_as(name)}; {images} images to draw and score"
    )
  lines.append(f"about {minutes:.0f} minutes on 2 CPU cores")
  return "\n".join(lines)


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → runs → rows; 2 when something about the runs is wrong."""
  parser = programs.scoring_parser(__spec__, __doc__, RESULTS, "runs")
  parser.add_argument("--cells", help="A,B of them (default: all)")
  parser.add_argument("--picture", type=Path, default=PICTURE)
  parser.add_argument("--dry_run", action="store_true", help="print the plan")
  args = parser.parse_args(argv)
  every = list(names())
  asked = programs.chosen("cell", args.cells, every) if args.cells else every
  sizes = (args.runs, args.num_runs, args.num_images, args.out)
  if args.dry_run:
    print(plan(asked, *sizes))
    return
  samplers.check_count(args.num_images, configs.load(CONFIG).data.num_classes)
  rows.make(args.out)
  drawn = [measure(name, *sizes) for name in asked]
  if asked == every:
    digits = np.concatenate(drawn)
    picture = pictures.grid(digits, 10, scale=4, row_labels=asked)
    # Drawn anew of the runs, so nothing is lost.
    pictures.save_png(args.picture, picture, overwrite=True)


if __name__ == "__main__":
  sys.exit(main())
