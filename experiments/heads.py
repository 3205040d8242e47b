"""Which head, at how many evaluations: the digits drawn by each kind.

1. Train configs/digits.py and two of its variants, several times each, by seed;
   runs that are there already are not trained again.
2. Score 1 000 images of balanced classes of each run at each of its SETTINGS,
   with the config's guidance and temperature. A row that is there already, of
   the same parameters, is skipped.
3. `python -m experiments.tables` makes the table of docs/heads.md: mean and
   standard deviation over the runs.

Command   python -m experiments.heads --runs out/heads
Cost      6 minutes of training a run and 1 of scoring, on 2 CPU cores
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import programs, rows, samplers
from marjax.cli import configs
from marjax.evaluate import run
from marjax.pipeline import Pipeline, load

RESULTS = Path("experiments/results/heads.jsonl")
CONFIG = "configs/digits.py"

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
  "diffusion": ({"num_steps": 100}, {"num_steps": 10}),
  "flow": ({"num_steps": 25}, {"num_steps": 10}),
  "regression": ({},),  # the control
}
"""Of each kind of head, changes of the config's own sampling."""

VARIANTS = {"diffusion": "", "flow": ":flow", "regression": ":regression"}


def score_missing(
  pipe: Pipeline, kind: str, seed: int, num_images: int, out: Path
) -> None:
  """Adds the rows of one run that the file of results does not have."""
  real = run.load_real(run.known_data(pipe))
  for changes in SETTINGS[kind]:
    settings = pipe.settings({"head": changes})
    asked = samplers.key_of(pipe, settings, num_images, seed)
    asked["head"] = kind
    how = (pipe, real, settings, num_images, seed)
    rows.measured(out, asked, functools.partial(samplers.measure, *how))
    print(f"{kind} {seed} {changes}: done", flush=True)


def train(kind: str, seed: int, folder: Path) -> Path:
  """The work directory of a run, trained unless it is there."""
  workdir = folder / f"{kind}_{seed}"
  experiment = configs.load(f"{CONFIG}{VARIANTS[kind]}")
  data = dataclasses.replace(experiment.data, seed=seed)
  experiment = dataclasses.replace(experiment, seed=seed, data=data)
  programs.train(experiment, workdir)
  return workdir


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → runs → rows; 2 when something about the runs is wrong."""
  parser = programs.scoring_parser(__spec__, __doc__, RESULTS, "runs")
  args = parser.parse_args(argv)
  samplers.check_count(args.num_images, configs.load(CONFIG).data.num_classes)
  rows.make(args.out)
  for seed in range(args.num_runs):
    for kind in SETTINGS:
      workdir = train(kind, seed, args.runs)
      score_missing(load(workdir), kind, seed, args.num_images, args.out)


if __name__ == "__main__":
  sys.exit(main())
