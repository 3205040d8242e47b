"""Fit the codes of a patch codebook to the training images of a config.

The config's codec is of kind "codebook": k-means finds its code vectors in the
patches of the training images. OUT is a released codec; name it in the config
as data.autoencoder, and train. A report is printed.
"""

import argparse

from marjax.cli import configs, flags, settings
from marjax.train import codebook

FLAGS = """
--config FILE.py[:VARIANT], required
  whose codec is fitted, to whose data
--out FOLDER, required
  the release to make
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax fit-codebook`."""
  flags.add(parser, FLAGS)
  settings.add_flags(parser, codebook.Choices)


def run(args: argparse.Namespace) -> None:
  """Config file and flags → fit → the report."""
  experiment = configs.load(args.config, args.overrides)
  report = codebook.fit(
    experiment.codec,
    experiment.data,
    args.out,
    settings.from_flags(codebook.Choices, args),
    name=f"{experiment.name}-codebook",
    progress=True,
  )
  print(report)
