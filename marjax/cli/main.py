"""`marjax VERB`: one parser, one place where errors become sentences.

1. `--config.KEY=VALUE` flags are set apart: their names are open.
2. argparse reads the rest; each verb's module declares its own flags.
3. The verb runs. What a user can mend comes out as one sentence on stderr with
   exit code 2; --debug, or MARJAX_DEBUG=1, shows where it was raised.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from marjax.cli import (
  cache_latents,
  configs,
  convert,
  edit,
  evaluate,
  export,
  generate,
  preflight,
  train,
)
from marjax.cli.programs import keep_programs
from marjax.version import __version__

VERBS = {
  "cache-latents": cache_latents,
  "preflight": preflight,
  "train": train,
  "generate": generate,
  "edit": edit,
  "evaluate": evaluate,
  "convert": convert,
  "export": export,
}

# Those whose compiling is worth keeping.
COMPILING = ("train", "generate", "edit", "evaluate")

# Raised with a message for users. The same kinds of error from inside another
# library are a defect of ours and keep their traceback, but for OSError: files
# are the user's, and so is what is installed.
USER_ERRORS = (ValueError, OSError, FloatingPointError, ModuleNotFoundError)

# Modules that only an extra of the package installs.
EXTRAS = {
  "sklearn": "demo",
  "gcsfs": "gcs",
  "fsspec": "gcs",
  "libtpu": "tpu",
  "jax_cuda12_plugin": "cuda",
  "matplotlib": "demo",
  "tensorflow": "tensorflow",
  "torch": "convert",
  "pycurl": "convert",
  "safetensors": "convert",
}

EPILOG = """\
example:
  marjax train --config configs/digits.py --workdir out/digits
  marjax generate --checkpoint out/digits --labels 0,1,2 --out grid.png
  marjax evaluate --checkpoint out/digits --out out/digits
  marjax convert mar-large
  marjax generate --checkpoint mar-large --labels otter --out otter.png

marjax VERB --help lists the flags of a verb.
"""


class Parser(argparse.ArgumentParser):
  """An ArgumentParser whose errors are one sentence and a hint."""

  def error(self, message: str):
    """Prints the message and exits with code 2."""
    self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


def build_parser() -> Parser:
  """The parser of every verb."""
  parser = Parser(
    prog="marjax",
    description="Image generation with continuous tokens (MAR).",
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--version", action="version", version=f"marjax {__version__}"
  )
  verbs = parser.add_subparsers(
    title="verbs", dest="verb", metavar="VERB", required=True
  )
  for name, module in VERBS.items():
    summary, _, details = module.__doc__.partition("\n\n")
    verb = verbs.add_parser(
      name,
      help=summary.rstrip(".").lower(),
      description=f"{summary}\n\n{details}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    module.add_flags(verb)
    verb.add_argument(
      "--debug", action="store_true", help="show a traceback with an error"
    )
  return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Flags of one command; wrong ones exit with code 2.

  `overrides` of the result holds the `--config.KEY=VALUE` flags.
  """
  parser = build_parser()
  try:
    overrides, rest = configs.split(argv)
  except ValueError as error:
    parser.error(str(error).rstrip("."))
  args = parser.parse_args(rest)
  args.overrides = overrides
  if overrides and args.verb not in ("train", "preflight"):
    parser.error(f"--{overrides[0]} is not a flag of {args.verb}")
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code: 0, or 2 after a user's error."""
  args = parse(sys.argv[1:] if argv is None else argv)
  logging.basicConfig(format="%(message)s")
  logging.getLogger("marjax").setLevel(logging.INFO)
  if args.verb in COMPILING:
    keep_programs()
  try:
    VERBS[args.verb].run(args)
  except KeyboardInterrupt as error:
    kept = f": {error}" if str(error) else ""
    print(f"marjax: interrupted{kept}.", file=sys.stderr)
    return 130
  except USER_ERRORS as error:
    is_debugging = args.debug or os.environ.get("MARJAX_DEBUG") == "1"
    if is_debugging or not is_for_users(error):
      raise
    print(f"marjax: {sentence(error)}", file=sys.stderr)
    return 2
  return 0


def is_for_users(error: Exception) -> bool:
  """Whether the error is of the user's machine, or raised by marjax's check."""
  if isinstance(error, OSError):
    return True
  if isinstance(error, ModuleNotFoundError):
    return not error.name or error.name.split(".")[0] in EXTRAS
  last = error.__traceback__
  while last.tb_next:
    last = last.tb_next
  module = last.tb_frame.f_globals.get("__name__", "")
  return module.startswith(("marjax", "config_"))


def sentence(error: Exception) -> str:
  """An error's message as one line."""
  if isinstance(error, OSError) and error.strerror and error.filename:
    return f"{error.filename}: {error.strerror.lower()}."
  if isinstance(error, ModuleNotFoundError) and error.name:
    module = error.name.split(".")[0]
    return (
      f"{module} is not installed; install it with"
      f' pip install "marjax[{EXTRAS[module]}]".'
    )
  return " ".join(str(error).split()) or type(error).__name__
