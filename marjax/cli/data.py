"""Look at pictures as training would see them.

Prints pictures per class and split, sizes, modes, what is skipped and why, mean
and deviation of the pixels, and draws a page of them after crop and flip. What
is printed stands at the start of a run, too.
"""

import argparse

from marjax import outputs
from marjax.cli import flags

FLAGS = """
--image_size N
  pixels of a side after the crop; without it, what fits the pictures
--out FILE.png, default pictures.png
  the page of pictures
--overwrite
  replace the page, if it exists
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax data`."""
  parser.add_argument(
    "pictures",
    metavar="PICTURES",
    help="a folder, .zip, .tar or .parquet file, or a prepared data set",
  )
  flags.add(parser, FLAGS)


def run(args: argparse.Namespace) -> None:
  """Survey → report → page."""
  from marjax.data import survey
  from marjax.requests import pictures

  out = outputs.path_of(args.out)
  outputs.check_free([out], args.overwrite)
  asked = {"data_dir": args.pictures, "image_size": args.image_size}
  asked |= {"flip": True, "skip_unreadable": True}
  config, _ = survey.complete(asked)
  names = survey.names_of(config)
  print(survey.report(config, config.train_split, names), flush=True)
  if survey.has_split(config, config.test_split):
    print(survey.report(config, config.test_split), flush=True)
  mean, deviation = survey.statistics(config, names)
  size, channels = config.image_size, config.channels
  print(
    f"training sees {size}×{size} pixels of {channels}; mean {mean:g},"
    f" deviation {deviation:g} in [-1, 1]"
  )
  pictures.save_png(out, survey.sheet(config, names), args.overwrite)
  print(f"a page of them: {outputs.shown(str(out))}")
