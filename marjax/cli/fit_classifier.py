"""Train a small classifier on a config's data, to score labels with.

It learns the training images, and its accuracy on the test images stands in
OUT. An evaluation with --network label --weights OUT says how many images show
the class that was asked for. A report is printed.
"""

import argparse

from marjax.cli import configs, flags, settings
from marjax.train import classifier

FLAGS = """
--config FILE.py[:VARIANT], required
  on whose data it is trained
--out FILE, required
  the .safetensors file to make
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax fit-classifier`."""
  flags.add(parser, FLAGS)
  settings.add_flags(parser, classifier.Choices)


def run(args: argparse.Namespace) -> None:
  """Config file and flags → fit → the report."""
  experiment = configs.load(args.config, args.overrides)
  choices = settings.from_flags(classifier.Choices, args)
  print(classifier.fit(experiment.data, args.out, choices, progress=True))
