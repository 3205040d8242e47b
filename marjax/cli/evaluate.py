"""Generate images from a checkpoint, draw them and score them.

Writes samples.png, reveal.png, loss.png and report.json.
"""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax evaluate`."""
  parser.add_argument(
    "--checkpoint",
    required=True,
    metavar="FOLDER",
    help="a work directory, or a released checkpoint",
  )
  parser.add_argument(
    "--out", required=True, metavar="FOLDER", help="where the results go"
  )
  parser.add_argument(
    "--num_images",
    type=int,
    default=1000,
    metavar="N",
    help="images to generate and score (default: %(default)s)",
  )
  parser.add_argument(
    "--split",
    default="",
    metavar="NAME",
    help="of the real images to test against (default: data.test_split of the"
    " checkpoint)",
  )
  parser.add_argument(
    "--data_dir",
    default="",
    metavar="FOLDER",
    help="of the real images (default: data.data_dir of the checkpoint)",
  )
  parser.add_argument(
    "--overwrite",
    action="store_true",
    help="replace these four files where they exist",
  )


def run(args: argparse.Namespace) -> None:
  """Flags → evaluate."""
  from marjax.evaluate import run as evaluation

  evaluation.evaluate(
    args.checkpoint,
    args.out,
    num_images=args.num_images,
    overwrite=args.overwrite,
    split=args.split,
    data_dir=args.data_dir,
  )
