"""Copy a released checkpoint, or the weights of a training run, to a folder.

The copy has the autoencoder where it is found, and all that is needed to load
it: marjax.load takes it as it is.
"""

import argparse

from marjax import outputs
from marjax.cli import flags

FLAGS = """
--checkpoint FOLDER, required
  a released checkpoint, or a work directory
--out FOLDER, required
  the folder to make
--weights_dtype float32|bfloat16, default float32
  of the weights in the file; bfloat16 is half of it, rounded
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax export`."""
  flags.add(parser, FLAGS)


def run(args: argparse.Namespace) -> None:
  """Flags → export."""
  from marjax.convert import fetching
  from marjax.release import directory, loading

  # A checkpoint of that name may have to be fetched first.
  directory.check_free(outputs.local(args.out))
  checkpoint = fetching.find(args.checkpoint)
  manifest = loading.export(checkpoint, args.out, args.weights_dtype)
  num_bytes = sum(record.num_bytes for record in manifest.files.values())
  print(f"{num_bytes:,} bytes: {outputs.shown(args.out)}")
