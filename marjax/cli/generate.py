"""Generate images from a checkpoint.

Writes a PNG grid, or with --out FILE.npy the uint8 array [N, H, W, C], or with
--out FILE.npz the arrays `images` and `labels`.
"""

import argparse
import itertools

from marjax import outputs
from marjax.cli import flags, settings
from marjax.generate.settings import Settings
from marjax.outputs import AnyPath
from marjax.schema import check, counted

MOST_IMAGES = 1_000_000


FLAGS = """
--labels 0,1,2
  one class per image, in turn: numbers or names; `none` for no class, which is
  meant where a model has no classes
--num_images N
  images to generate, not fewer than labels, which are gone through again and
  again (default: one per label)
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax generate`."""
  flags.add(parser, FLAGS)
  add_run_flags(parser)


RUN_FLAGS = """
--checkpoint FOLDER, required
  a released checkpoint, a work directory, or a published name
--out FILE, required
  the result: .png, .npy or .npz
--overwrite
  replace FILE where it exists
--seed N, default 0
  the same seed gives the same images
--dtype float32|bfloat16
  of the model's matmuls (default: as the checkpoint says)
--batch_size N
  images per device call, if memory is short; changes no image
--preset NAME
  settings of that name in the checkpoint, or `quick`; flags below change them
"""


def add_run_flags(parser: argparse.ArgumentParser) -> None:
  """Declares what is loaded, how it draws, and where the result goes."""
  flags.add(parser, RUN_FLAGS)
  group = parser.add_argument_group(
    "settings", "What is left out is as the checkpoint says."
  )
  settings.add_flags(group, Settings)


def run(args: argparse.Namespace) -> None:
  """Flags → settings → generate → one file."""
  from marjax.backbone.classes import name_of
  from marjax.requests import showing

  asked = "none" if args.labels is None else args.labels
  labels = read_labels(asked, args.num_images)
  chosen = settings.changes(Settings, args)
  out = checked_out(args.out, args.overwrite)
  pipe, chosen = load(args, chosen)
  check(
    args.labels is not None or pipe.card.num_classes == 0,
    f"--labels is missing, and {pipe.card.name} has {pipe.card.num_classes}"
    " classes; expected numbers or names of some, with commas between them, or"
    " none for no class.",
  )
  labels = pipe.labels(labels)
  images = pipe.generate(
    labels, args.seed, chosen, batch_size=args.batch_size, progress=True
  )
  names = [name_of(label, pipe.card.class_names) for label in labels]
  arrays = {"labels": labels}
  showing.save(images, out, names, overwrite=args.overwrite, arrays=arrays)
  print(f"{counted(len(images), 'images')}: {outputs.shown(out)}")


def load(args: argparse.Namespace, chosen: dict):
  """The pipeline of the flags, and the settings over those of their preset."""
  import marjax

  pipe = marjax.load(args.checkpoint, dtype=args.dtype)
  named = pipe.settings(args.preset)
  return pipe, pipe.settings(named.changed(chosen))


def checked_out(name: str, overwrite: bool) -> AnyPath:
  """The file to write, of a known format and free.

  Raises:
    ValueError: another ending. FileExistsError: it exists.
  """
  from marjax.requests import showing

  out = showing.check_path(name, "--out")
  outputs.check_free([out], overwrite)
  return out


def check_count(num_images: int) -> None:
  """Raises ValueError where one file cannot hold that many images."""
  if not 1 <= num_images <= MOST_IMAGES:
    raise ValueError(
      f"--num_images is {num_images}; expected 1 to {MOST_IMAGES}: for more,"
      " run again with another --seed."
    )


def read_labels(text: str, num_images: int | None) -> list[str]:
  """ "0,otter,none" to its entries, repeated up to `num_images` if given.

  Raises:
    ValueError: an entry is empty, or there are more than images.
  """
  labels = [entry.strip() for entry in text.split(",")]
  if not all(labels):
    raise ValueError(
      f"--labels is {text!r}; expected class numbers or names with commas"
      " between them, such as 0,1,2, or none."
    )
  if num_images is None:
    return labels
  check_count(num_images)
  if num_images < len(labels):
    raise ValueError(
      f"--num_images is {num_images}, and there are {len(labels)} labels;"
      f" expected {len(labels)} or more: name fewer labels."
    )
  return list(itertools.islice(itertools.cycle(labels), num_images))
