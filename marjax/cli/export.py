"""Write a released checkpoint as one .safetensors file.

The file holds the weights, the autoencoder where it is found, and all that is
needed to load them: marjax.load takes it as it is, and marjax convert makes a
release of it again.
"""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax export`."""
  parser.add_argument(
    "--checkpoint",
    required=True,
    metavar="FOLDER",
    help="a released checkpoint, or a work directory",
  )
  parser.add_argument(
    "--out", required=True, metavar="FILE.safetensors", help="the file to write"
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace FILE where it exists"
  )


def run(args: argparse.Namespace) -> None:
  """Flags → export."""
  from marjax import outputs
  from marjax.convert import fetching
  from marjax.release import exporting

  # A checkpoint of that name may have to be fetched first.
  outputs.check_free([args.out], args.overwrite)
  checkpoint = fetching.find(args.checkpoint)
  num_bytes = exporting.export(checkpoint, args.out, args.overwrite)
  print(f"{num_bytes:,} bytes: {outputs.shown(args.out)}")
