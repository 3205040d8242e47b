"""Train a model, or resume a run that was stopped.

The config is a file such as configs/digits.py; any of its fields can be set
with --config.KEY=VALUE, as in --config.training.num_steps=100. The same command
resumes from the work directory's latest checkpoint.
"""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax train`."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE.py[:VARIANT]",
    help="what to train; every config has a variant :laptop that is tiny",
  )
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="FOLDER",
    help="where checkpoints, metrics and samples go",
  )


def run(args: argparse.Namespace) -> None:
  """Config file and overrides → Experiment → train."""
  from marjax.cli import configs

  experiment = configs.load(args.config, args.overrides)

  from marjax.train import loop

  loop.train(experiment, args.workdir)
