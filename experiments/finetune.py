"""Does a trained model learn new classes faster than a new one? On digits.

1. Write the digits into two folders of pictures, of the classes 0 to 4 and 5 to
   9, with the split of `marjax.data.digits`.
2. For each seed train configs/digits.py, made SMALLER, on the first folder.
   Then train on the second, for as many steps each: from nothing (`nothing`),
   from that model with a new table of classes (`init`), and from it with
   low-rank updates beside attention and head, all else frozen but classes and
   norms (`lora`). Seed, batches, draws and schedule are the same in all three.
3. Score them on the test images of the second folder, which nobody was trained
   on: the loss of the averaged weights, at DRAWS draws of order and noise each,
   the same for all; with --num_images also `marjax evaluate`'s scores of so
   many generated digits.
4. Print the paired differences, init or lora minus nothing.

Command   python -m experiments.finetune --runs out/finetune
Cost      5 minutes on 2 CPU cores
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import paired, programs, rows, samplers
from marjax import keys
from marjax.cli import configs
from marjax.data import batches
from marjax.evaluate import run
from marjax.experiment import DataConfig
from marjax.model import draw
from marjax.pipeline import Pipeline, load

RESULTS = Path("experiments/results/finetune.jsonl")
CONFIG = "configs/digits.py"
STEPS = 200  # of each training
DRAWS = 16

SMALLER = (
  "config.model.backbone.width=32",
  "config.model.backbone.encoder_depth=1",
  "config.model.backbone.decoder_depth=1",
  "config.model.head.width=64",
  "config.model.head.depth=2",
  "config.training.batch_size=32",
)

FIRST, SECOND = "first", "second"
HALVES = {FIRST: range(5), SECOND: range(5, 10)}

ARMS = {
  "nothing": (),
  "init": ("init_from={before}",),
  "lora": (
    "init_from={before}",
    "lora.rank=8",
    'factors=[("*class_embedding*", 1.0), ("*norm*", 1.0)]',
  ),
}
"""What each training on the second half differs in; `before`: the first's."""

SCORES = ("test_loss", "frechet_ratio", "label_accuracy")


def write_halves(folder: Path) -> None:
  """FOLDER/HALF/SPLIT/CLASS/ID.png, unless they are there."""
  from PIL import Image

  if folder.exists():
    return
  data = configs.load(CONFIG).data
  partial = folder.with_name(f"{folder.name}-partial")
  for split in (data.train_split, data.test_split):
    columns = batches.load_all(data, split)
    for image, label, number in zip(
      columns.images, columns.labels, columns.ids, strict=True
    ):
      half = FIRST if label in HALVES[FIRST] else SECOND
      path = partial / half / split / str(label) / f"{number:04}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image[..., 0]).save(path)
  partial.rename(folder)


def train(folder: Path, half: str, name: str, seed: int, *changes: str) -> Path:
  """The work directory of a run on one half, trained unless it is there."""
  fields = {
    "seed": seed,
    "data.seed": seed,
    "data.source": "folder",
    "data.data_dir": folder / "pictures" / half,
    "data.num_classes": len(HALVES[half]),
    "model.backbone.condition.num_classes": len(HALVES[half]),
    "training.num_steps": STEPS,
    "training.warmup_steps": STEPS // 5,
    "training.sample_every": 0,
  }
  overrides = [*SMALLER]
  overrides += [f"config.{key}={value}" for key, value in fields.items()]
  overrides += [f"config.training.{change}" for change in changes]
  workdir = folder / f"{name}_{seed}"
  programs.train(configs.load(CONFIG, overrides), workdir)
  return workdir


def loss_of(pipe: Pipeline, data: DataConfig) -> float:
  """The mean loss of test images over DRAWS draws each."""
  model, test = pipe.card.model, batches.load_all(data, data.test_split)
  images, tokens = test.images, pipe.tokenise(test.images)
  # Batches are multiples of the masks' strata.
  count = len(images) - len(images) % model.backbone.batch_multiple
  tokens, labels = tokens[:count], jnp.asarray(test.labels[:count])

  @jax.jit
  def loss(params, index):
    numbers = keys.at(keys.root(0), index, jnp.arange(count))
    return model.build().apply(
      {"params": params},
      tokens,
      draw(model, numbers, labels),
      deterministic=True,
      method="loss",
    )["loss"]

  return float(np.mean([loss(pipe.params, index) for index in range(DRAWS)]))


def score_missing(
  workdir: Path, arm: str, seed: int, num_images: int, out: Path
) -> None:
  """Adds the row of one run, unless the file of results has it."""
  pipe = load(workdir)
  asked = {
    "arm": arm,
    "seed": seed,
    "steps_before": 0 if arm == "nothing" else STEPS,
    "steps_trained": pipe.card.step,
    "num_images": num_images,
    "parameters": samplers.fingerprint(pipe.params),
  }

  def measured() -> rows.Row:
    data = run.known_data(pipe)
    scores = {"test_loss": loss_of(pipe, data)}
    if num_images:
      real, settings = run.load_real(data), pipe.settings()
      scores |= samplers.measure(pipe, real, settings, num_images, seed)
    return scores

  rows.measured(out, asked, measured)
  print(f"{arm} {seed}: done", flush=True)


def summary(found: list[dict[str, Any]]) -> str:
  """Means of each arm, and its paired differences from `nothing`."""
  scores = {
    (arm, score): {
      r["seed"]: r[score] for r in found if r["arm"] == arm and score in r
    }
    for arm in ARMS
    for score in SCORES
  }
  lines = []
  for (arm, score), own in scores.items():
    if not own:
      continue
    line = f"{arm:<8}{score:<16}{np.mean(list(own.values())):8.4f}"
    others = scores["nothing", score]
    shared = sorted(own.keys() & others.keys())
    if arm != "nothing" and len(shared) > 1:
      pairs = [own[i] for i in shared], [others[i] for i in shared]
      gap = paired.difference(*pairs)
      line += (
        f"  difference {gap.mean:8.4f}, 95 % from {gap.low:.4f} to"
        f" {gap.high:.4f}, {gap.count} seeds"
      )
    lines.append(line)
  return "\n".join(lines)


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → runs → rows; 2 when something about the runs is wrong."""
  parser = programs.scoring_parser(__spec__, __doc__, RESULTS, "runs")
  parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
  parser.set_defaults(num_images=0)
  args = parser.parse_args(argv)
  if args.num_images:
    samplers.check_count(args.num_images, len(HALVES[SECOND]))
  rows.make(args.out)
  write_halves(args.runs / "pictures")
  for seed in range(args.num_runs):
    before = train(args.runs, FIRST, "before", seed)
    for arm in args.arms:
      own = [change.format(before=before) for change in ARMS[arm]]
      workdir = train(args.runs, SECOND, arm, seed, *own)
      score_missing(workdir, arm, seed, args.num_images, args.out)
  print(summary(rows.read(args.out)))


if __name__ == "__main__":
  sys.exit(main())
