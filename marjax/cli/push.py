"""Share a model on the Hugging Face Hub.

NAME is USER/NAME, or USER/NAME@BRANCH. The model then loads by hf://USER/NAME.
Its page is made of what is known of it: samples, scores, settings, data.
"""

import argparse

from marjax.cli import flags
from marjax.ticks import ticking

FLAGS = """
--private
  a new repository is for its owner alone
--picture FILE
  a PNG for the page (default: the last samples of the checkpoint)
--report FILE
  scores for the page (default: report.json of the checkpoint)
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax push`."""
  parser.add_argument(
    "checkpoint",
    metavar="CHECKPOINT",
    help="a released checkpoint, or a work directory",
  )
  parser.add_argument("name", metavar="NAME", help="USER/NAME on the Hub")
  flags.add(parser, FLAGS)


def run(args: argparse.Namespace) -> None:
  """Flags → push → the address."""
  with ticking("pushing"):
    from marjax.convert import fetching, hub

    url = hub.push(
      fetching.find(args.checkpoint),
      args.name,
      is_private=args.private,
      picture=args.picture,
      report=args.report,
    )
  address = hub.parse(args.name)
  print(f'{url}\nload it with marjax.load("{address}")')
