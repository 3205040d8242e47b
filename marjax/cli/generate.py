"""Generate images from a checkpoint.

Writes a PNG grid, or with --out FILE.npy the uint8 array [N, H, W, C], or with
--out FILE.npz the arrays `images` and `labels`.
"""

import argparse
import io
import itertools
from pathlib import Path

from marjax.cli import settings
from marjax.settings import Settings

FORMATS = (".png", ".npy", ".npz")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax generate`."""
  parser.add_argument(
    "--checkpoint",
    required=True,
    metavar="FOLDER",
    help="a work directory, or a released checkpoint",
  )
  parser.add_argument(
    "--labels",
    required=True,
    metavar="0,1,2",
    help="one class per image, in turn; `none` for no class",
  )
  parser.add_argument(
    "--num_images",
    type=int,
    metavar="N",
    help="images to generate, going through the labels again and again"
    " (default: one per label)",
  )
  parser.add_argument(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="the same seed gives the same images (default: %(default)s)",
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help="the result: .png, .npy or .npz",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace FILE where it exists"
  )
  group = parser.add_argument_group(
    "settings", "What is left out is as the checkpoint says."
  )
  settings.add_flags(group, Settings)


def run(args: argparse.Namespace) -> None:
  """Flags → Settings → generate → one file."""
  import marjax
  from marjax import outputs

  labels = read_labels(args.labels, args.num_images)
  chosen = settings.from_flags(Settings, args)
  out = Path(args.out)
  if out.suffix not in FORMATS:
    raise ValueError(
      f"--out is {out}; expected a name that ends in {', '.join(FORMATS)}."
    )
  outputs.check_free([out], args.overwrite)
  pipe = marjax.load(args.checkpoint)
  images = pipe.generate(labels=labels, seed=args.seed, settings=chosen)
  save(out, images, labels, args.overwrite)
  print(f"{len(images)} images: {out}")


def read_labels(text: str, num_images: int | None) -> list[int]:
  """ "0,1,none" to [0, 1, -1], repeated or cut to `num_images` if given.

  Raises:
    ValueError: an entry is neither a class number nor `none`.
  """
  from marjax.arrays import NO_LABEL

  labels = []
  for entry in text.split(","):
    entry = entry.strip().lower()
    if entry != "none" and not entry.isdecimal():
      raise ValueError(
        f"--labels is {text!r}; expected class numbers with commas between"
        " them, such as 0,1,2, or none."
      )
    labels.append(NO_LABEL if entry == "none" else int(entry))
  if num_images is None:
    return labels
  if num_images < 1:
    raise ValueError(f"--num_images is {num_images}; expected 1 or more.")
  return list(itertools.islice(itertools.cycle(labels), num_images))


def save(path: Path, images, labels: list[int], overwrite: bool) -> None:
  """Writes the images in the format that the file's name asks for."""
  import numpy as np

  from marjax import outputs, pictures

  if path.suffix == ".png":
    page = pictures.grid(
      images,
      columns=min(10, len(images)),
      scale=max(1, 64 // images.shape[1]),
      labels=["none" if label < 0 else label for label in labels],
    )
    pictures.save_png(path, page, overwrite)
    return
  buffer = io.BytesIO()
  if path.suffix == ".npy":
    np.save(buffer, images)
  else:
    np.savez(buffer, images=images, labels=np.array(labels, np.int32))
  outputs.write(path, buffer.getvalue(), overwrite)
