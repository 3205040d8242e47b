"""Make a released checkpoint of published or trained weights.

SOURCE is one of the names mar-base, mar-large, mar-huge and kl16, fetched from
where their authors published them; an http address; a .pth, .ckpt or
.safetensors file; or a work directory of marjax train. PyTorch files are read
with PyTorch's restricted reader: nothing in them is run. A report is printed.
"""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax convert`."""
  parser.add_argument("source", metavar="SOURCE", help="what to convert")
  parser.add_argument(
    "--out",
    metavar="FOLDER",
    help="the release to make; may be left out for a name, which then is found"
    " by it",
  )
  parser.add_argument(
    "--weights",
    choices=("ema", "raw"),
    help="the averaged or the raw weights of a training file (default: the"
    " averaged ones where there are some)",
  )
  parser.add_argument(
    "--autoencoder",
    metavar="PATH",
    help="a released autoencoder, a file of one, or kl16, to be copied into"
    " the release (default: the release names the folder ../kl16 beside it)",
  )
  parser.add_argument(
    "--num_heads",
    type=int,
    metavar="N",
    help="attention heads, for widths other than the published ones",
  )
  parser.add_argument(
    "--latent_scale",
    type=float,
    metavar="X",
    help="1 / standard deviation of the latents, for an autoencoder other than"
    " KL-16",
  )
  parser.add_argument(
    "--class_names",
    metavar="FILE",
    help="names of the classes, a line each, or `none` (default: ImageNet's"
    " for 1000 classes)",
  )
  parser.add_argument("--name", metavar="NAME", help="what to call it")
  parser.add_argument(
    "--licence", metavar="TEXT", help="of the weights, for the record"
  )


def run(args: argparse.Namespace) -> None:
  """Flags → Choices → convert → the report."""
  from marjax.convert import fetching
  from marjax.convert.run import Choices

  choices = Choices(
    weights=args.weights,
    autoencoder=args.autoencoder,
    num_heads=args.num_heads,
    latent_scale=args.latent_scale,
    class_names=read_names(args.class_names),
    name=args.name,
    licence=args.licence,
  )
  if args.out is None and not fetching.is_name(args.source):
    raise ValueError(
      "--out is missing; name the folder of the release to make."
    )
  print(fetching.convert(args.source, args.out, choices))


def read_names(file: str | None) -> tuple[str, ...] | None:
  """The lines of a file of class names; () for "none", None for None.

  Raises:
    FileNotFoundError: there is no such file.
  """
  if file is None:
    return None
  if file == "none":
    return ()
  from marjax import outputs

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
