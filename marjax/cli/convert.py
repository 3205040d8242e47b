"""Make a released checkpoint of published or trained weights.

SOURCE is one of the names mar-base, mar-large, mar-huge and kl16, fetched from
where their authors published them; an http address; a .pth, .ckpt or
.safetensors file; or a work directory of marjax train. PyTorch files are read
with PyTorch's restricted reader: nothing in them is run. A report is printed.

SOURCE may also be a network that scores are computed with, inception,
mobilenet, squeezenet, dinov2 or clip, and FILE a published file of its weights
or its address: --out is then the .safetensors file to make. Without FILE it is
told where to get it.
"""

import argparse

from marjax import outputs, schema
from marjax.cli import flags

FLAGS = """
--out FOLDER
  the release to make; may be left out for a name, which then is found by it;
  for a network the file to make (default: NETWORK.safetensors)
--sha256 HEX
  of a network's FILE: another one is refused
--weights ema|raw
  the averaged or the raw weights of a training file (default: the averaged
  ones where there are some)
--autoencoder PATH
  a released autoencoder, a file of one, or kl16, to be copied into the release
  (default: the release names the folder ../kl16 beside it)
--num_heads N
  attention heads, for widths other than the published ones
--latent_scale X
  1 / standard deviation of the latents, for an autoencoder other than KL-16;
  of a VQ autoencoder it makes tokens floats, those that codes are chosen by
--class_names FILE
  names of the classes, a line each, or `none` (default: ImageNet's for 1000
  classes)
--name NAME
  what to call it
--licence TEXT
  of the weights, for the record
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax convert`."""
  parser.add_argument("source", metavar="SOURCE", help="what to convert")
  words = "a network's weights, a path or an address"
  parser.add_argument("file", metavar="FILE", nargs="?", help=words)
  flags.add(parser, FLAGS)


def run(args: argparse.Namespace) -> None:
  """Flags → Choices → convert → the report."""
  from marjax.convert import fetching
  from marjax.convert.run import Choices
  from marjax.evaluate.networks import conversion

  chosen = [n for n in schema.hints(Choices) if getattr(args, n) is not None]
  if conversion.is_name(args.source):
    _refuse(chosen, f"{args.source} is a network, which has no such choice")
    name, file, out = args.source, args.file, args.out
    print(conversion.convert(name, file, out, args.sha256))
    return
  others = [n for n in ("file", "sha256") if getattr(args, n) is not None]
  _refuse(others, f"{args.source} is none of the networks of scores")
  choices = {name: getattr(args, name) for name in schema.hints(Choices)}
  choices = Choices(**choices | {"class_names": read_names(args.class_names)})
  if args.out is None and not fetching.is_name(args.source):
    raise ValueError(
      "--out is missing; name the folder of the release to make."
    )
  print(fetching.convert(args.source, args.out, choices))


def _refuse(names: list[str], why: str) -> None:
  """ValueError if there are any: flags, or FILE, that do not belong here."""
  shown = ", ".join("FILE" if n == "file" else f"--{n}" for n in names)
  schema.check(not names, f"{why}; expected no {shown}: leave it out.")


def read_names(file: str | None) -> tuple[str, ...] | None:
  """The lines of a file of class names; () for "none", None for None.

  Raises:
    FileNotFoundError: there is no such file.
  """
  if file is None:
    return None
  if file == "none":
    return ()
  path = outputs.local(file)
  if not path.is_file():
    raise FileNotFoundError(
      f"--class_names is {file}, which is no file; expected a text file with"
      " one class a line."
    )
  try:
    return tuple(path.read_text(encoding="utf-8").splitlines())
  except UnicodeDecodeError:
    raise ValueError(
      f"--class_names is {file}, which is no UTF-8 text; save it as one."
    ) from None
