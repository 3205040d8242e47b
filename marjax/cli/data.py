"""Look at pictures as training would see them.

Prints pictures per class and split, sizes, modes, what is skipped and why, mean
and deviation of the pixels, and draws a page of them after crop and flip. What
is printed stands at the start of a run, too.
"""

import argparse
import itertools

from marjax import outputs
from marjax.cli import flags
from marjax.outputs import AnyPath

FLAGS = """
--image_size N
  pixels of a side after the crop; without it, what fits the pictures
--out FILE.png
  the page of pictures (default: pictures.png, or with a number where one is)
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

  asked = {"data_dir": args.pictures, "image_size": args.image_size}
  asked |= {"flip": True, "skip_unreadable": True}
  config, _ = survey.complete(asked)
  out = page(args.out, args.overwrite)
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


def page(name: str | None, overwrite: bool) -> AnyPath:
  """The file to write; where nobody names one, one that no other look wrote.

  Raises:
    FileExistsError: it was named, and exists. OSError: it cannot be written.
  """
  numbers = map("pictures-{}.png".format, itertools.count(2))
  names = [name] if name else itertools.chain(["pictures.png"], numbers)
  paths = (outputs.path_of(each) for each in names)
  out = next(path for path in paths if name or overwrite or not path.exists())
  outputs.check_free([out], overwrite)
  return out
