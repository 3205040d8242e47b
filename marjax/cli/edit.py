"""Draw a part of an image anew and keep the rest.

The mask is an image of the same size, white where to draw anew, or one of the
words left, right, top, bottom. It is rounded outwards to whole tokens. Writes
what `marjax generate` writes; a .npz file holds `mask` and `latents`, too.
"""

import argparse

import numpy as np

from marjax import outputs
from marjax.cli import flags, generate, settings
from marjax.generate.settings import Settings
from marjax.schema import counted

SIDES = ("left", "right", "top", "bottom")

FLAGS = """
--image FILE, required
  the image, of model size
--mask FILE, required
  white where to draw anew, or left, right, top, bottom
--labels CLASS, default none
  class of the result, a number or a name
--num_images N, default 1
  results, each drawn differently
--keep_pixels
  put the image's own pixels back outside the mask
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax edit`."""
  flags.add(parser, FLAGS)
  generate.add_run_flags(parser)


def run(args: argparse.Namespace) -> None:
  """Flags → image, mask, Settings → edit → one file."""
  from marjax.backbone.classes import name_of
  from marjax.requests import showing
  from marjax.tokens import regions

  generate.check_count(args.num_images)
  out = generate.checked_out(args.out, args.overwrite)
  chosen = settings.changes(Settings, args)
  pipe, chosen = generate.load(args, chosen)
  codec, labels = pipe.card.codec, read_class(pipe, args.labels)
  image = read_image(args.image, codec.channels)
  if args.mask in SIDES:
    mask = regions.half(codec.image_size, args.mask)
  else:
    words = f", or one of {', '.join(SIDES)}"
    mask = read_image(args.mask, 1, words) > 127
  edited = pipe.edit(
    image,
    mask,
    labels,
    args.seed,
    chosen,
    num_images=args.num_images,
    batch_size=args.batch_size,
    keep_pixels=args.keep_pixels,
    progress=True,
  )
  labels = [int(labels[0])] * len(edited.images)
  names = [name_of(label, pipe.card.class_names) for label in labels]
  arrays = {
    "labels": np.asarray(labels, np.int32),
    "mask": edited.mask,
    "latents": edited.latents,
  }
  overwrite = args.overwrite
  showing.save(edited.images, out, names, overwrite=overwrite, arrays=arrays)
  print(f"{counted(len(edited.images), 'images')}: {outputs.shown(out)}")


def read_class(pipe, text: str):
  """The label of one class, whose name may hold commas.

  Raises:
    ValueError: it is none, or several.
  """
  try:
    return pipe.labels(text)
  except ValueError as error:
    if "," not in text:
      raise
    raise ValueError(
      f"--labels is {text!r}; expected one class, that of all results: edit"
      " once for each."
    ) from error


def read_image(name: str, channels: int, words: str = ""):
  """An image file as uint8 [H, W, C], as training reads it.

  `words` are what else it could have been, for the message.

  Raises:
    ValueError: it cannot be decoded. FileNotFoundError: it is not there.
  """
  from marjax.data import decoding

  path = outputs.path_of(name)
  try:
    return decoding.read(path, "L" if channels == 1 else "RGB")
  except FileNotFoundError:
    raise FileNotFoundError(
      f"{outputs.shown(path)} does not exist; expected an image file such as"
      f" .png or .jpg{words}."
    ) from None
