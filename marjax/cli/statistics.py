"""Write the statistics of real images that Fréchet distances compare with.

IMAGES is a folder of images (or of class folders), an .npz file with arr_0, a
folder of saved images, or a config file, PATH.py[:VARIANT], whose data source
is meant. The .npz has mu and sigma, and mu_s and sigma_s where the network has
a second map, as other programs read them; and the network, source, crop, count
and hashes.
"""

import argparse

from marjax import outputs
from marjax.cli import flags, score
from marjax.evaluate import set_statistics

FLAGS = """
--out FILE, required
  the .npz to write
--num_samples N, default 0
  images to put into it as arr_0, from which precision and recall are taken
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax statistics`."""
  parser.add_argument("images", metavar="IMAGES", help="real ones")
  flags.add(parser, FLAGS)
  score.add_eye_flags(parser)


def run(args: argparse.Namespace) -> None:
  """Flags → set_statistics.write → a line."""
  images, out = score.place(args.images), outputs.local(args.out)
  outputs.check_free([out], args.overwrite)
  eye, taken = score.eye_and_taken(args)
  made = set_statistics.write(
    images,
    eye,
    out,
    taken,
    args.num_samples,
    args.overwrite,
    progress=True,
  )
  print(f"{out}: {len(made.mean)} features of {made.about.source}")
