"""Generate images from a checkpoint, draw them and score them.

Writes samples.png, reveal.png, loss.png and report.json.
"""

import argparse

from marjax.cli import flags

FLAGS = """
--checkpoint FOLDER, required
  a work directory, or a released checkpoint
--out FOLDER, required
  where the results go
--num_images N, default 1000
  images to generate and score
--split NAME
  of the real images to test against (default: data.test_split of the
  checkpoint)
--data_dir FOLDER
  of the real images (default: data.data_dir of the checkpoint)
--overwrite
  replace these four files where they exist
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax evaluate`."""
  flags.add(parser, FLAGS)


def run(args: argparse.Namespace) -> None:
  """Flags → evaluate."""
  from marjax.evaluate import run as evaluation

  evaluation.evaluate(
    args.checkpoint,
    args.out,
    num_images=args.num_images,
    overwrite=args.overwrite,
    split=args.split or "",
    data_dir=args.data_dir or "",
  )
