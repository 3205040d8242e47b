"""The control: the same model with a plain L2 loss instead of Diffusion Loss.

    python -m experiments.control_l2 --checkpoint out/digits

1. The first row scores the checkpoint given, trained with Diffusion Loss.
2. The second trains configs/digits.py:regression, for as many steps, in a work
   directory of its own (resuming it if it was stopped), and scores it the same
   way: same seed, same number of images, same real images.
3. Rows already there, of the same steps, are skipped.

The L2 head predicts the mean of a token given the others, so it draws blurred
digits; the paper reports a FID above 100 (arXiv 2406.11838, section 5.1).
"""

import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import programs, rows
from marjax.cli import configs
from marjax.evaluate import run
from marjax.pipeline import Pipeline, load

RESULTS = Path("experiments/results/control_l2.jsonl")
CONFIG = "configs/digits.py:regression"


def measure(
  checkpoint: Path, pipe: Pipeline, num_images: int, seed: int
) -> dict[str, Any]:
  """Scores of a checkpoint with its own settings."""
  labels = run.balanced_labels(num_images, pipe.card.data.num_classes)
  start = time.perf_counter()
  images = pipe.generate(labels, seed, progress=True)
  seconds = time.perf_counter() - start
  real = run.load_real(run.known_data(pipe))
  return {
    **run.score(images, labels, real),
    "seconds": seconds,
    "settings": dataclasses.asdict(pipe.settings()),
    "training": run.training_record(pipe, checkpoint),
  }


def add_row(
  checkpoint: Path, head: str, num_images: int, seed: int, out: Path
) -> rows.Row:
  """Scores a checkpoint, unless its row is there, and prints it.

  Raises:
    ValueError: the checkpoint's head is of another kind.
  """
  pipe = load(checkpoint)
  found = pipe.card.model.head.kind
  if found != head:
    raise ValueError(
      f"{checkpoint} has a {found} head; expected a {head} head: name the work"
      " directory of another run."
    )
  asked = {
    "head": head,
    "steps_trained": pipe.card.step,
    "num_images": num_images,
    "seed": seed,
  }
  how = functools.partial(measure, checkpoint, pipe, num_images, seed)
  row, _ = rows.measured(out, asked, how)
  print(
    f"{head} head, {pipe.card.step} steps:"
    f" accuracy {row['label_accuracy']:.3f},"
    f" Fréchet ratio {row['frechet_ratio']:.2f},"
    f" near copies {row['near_copy_rate']:.3f}"
  )
  return row


def train_control(checkpoint: Path, workdir: Path) -> None:
  """Trains the control for as many steps as the checkpoint has."""
  from marjax.train import loop

  steps = load(checkpoint).card.step
  control = configs.load(CONFIG, [f"config.training.num_steps={steps}"])
  loop.train(control, workdir)


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Scores the checkpoint, trains the control, scores it."""
  parser = programs.scoring_parser(__spec__, __doc__, RESULTS)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--workdir",
    type=Path,
    default=Path("out/digits_l2"),
    help="of the control (default: %(default)s)",
  )
  args = parser.parse_args(argv)
  logging.basicConfig(level=logging.INFO, format="%(message)s")
  rest = (args.num_images, args.seed, args.out)
  add_row(args.checkpoint, "diffusion", *rest)
  train_control(args.checkpoint, args.workdir)
  add_row(args.workdir, "regression", *rest)


if __name__ == "__main__":
  sys.exit(main())
