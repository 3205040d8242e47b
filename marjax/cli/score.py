"""Score images that are there, whoever made them, against real ones.

IMAGES and the others are folders of images (or of class folders), .npz files
with arr_0, folders of saved images, or config files, PATH.py[:VARIANT], whose
data source is meant; real ones may also be a file of statistics. A table is
printed; what real images score in place of IMAGES stands beside each score.
"""

import argparse

from marjax import outputs
from marjax.cli import configs, flags, settings
from marjax.evaluate import score_set, sets
from marjax.evaluate.scores.options import Options
from marjax.evaluate.seen import Taken, load_eye

PLACES = """
--network NAME, required
  that sees the images, as inception or mobilenet; pixels needs no weights
--weights FILE
  of the network, as marjax convert makes them (default: NETWORK.safetensors)
--overwrite
  replace the file that is written
"""

FLAGS = """
--against PLACE
  real images, or statistics of them
--control PLACE
  other real images, to be scored in place of IMAGES (default: those of
  --against that are left)
--scores LIST
  as fid,kid,pr (default: those that suit what is there)
--out FILE
  the report as JSON, with settings and hashes (default: the table only)
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax score`."""
  parser.add_argument("images", metavar="IMAGES", help="to be scored")
  flags.add(parser, FLAGS)
  add_eye_flags(parser)


def add_eye_flags(parser: argparse.ArgumentParser) -> None:
  """Declares flags of a network and of what it is shown."""
  flags.add(parser, PLACES)
  settings.add_flags(parser.add_argument_group("images"), Taken)
  settings.add_flags(parser.add_argument_group("scores"), Options)


def run(args: argparse.Namespace) -> None:
  """Flags → score → the table."""
  names = (args.images, args.against, args.control)
  images, against, control = (
    None if name is None else place(name) for name in names
  )
  out = None if args.out is None else outputs.local(args.out)
  if out:
    outputs.check_free([out], args.overwrite)
  eye, taken = eye_and_taken(args)
  report = score_set.score(
    images, against, eye, args.scores or "", control, taken, progress=True
  )
  print(score_set.table(report))
  if out:
    score_set.write_report(out, report, args.overwrite)


def eye_and_taken(args: argparse.Namespace):
  """The network of the flags, and which images to show it."""
  taken = settings.from_flags(Taken, args)
  options = settings.from_flags(Options, args)
  return load_eye(args.network, args.weights or "", options), taken


def place(name: str):
  """A path of this machine that is there, or the data of a config."""
  if name.partition(":")[0].endswith(".py"):
    return configs.load(name).data
  path = outputs.local(name)
  sets.check_there(path)
  return path
