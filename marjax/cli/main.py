"""`marjax VERB`: one parser, one place where errors become sentences.

1. `--config.KEY=VALUE` flags are set apart: their names are open.
2. argparse reads the rest; each verb's module declares its own flags.
3. The verb runs. What a user can mend comes out as one sentence on stderr with
   exit code 2; --debug, or MARJAX_DEBUG=1, shows where it was raised. The same
   kinds of error from inside another library are a defect of ours and keep
   their traceback, but for those of files, memory, modules and devices, which
   are the user's.
"""

import argparse
import difflib
import gc
import io
import itertools
import logging
import os
import re
import select
import sys
from collections.abc import Sequence

from marjax import outputs
from marjax.cli import (
  app,
  cache_latents,
  configs,
  convert,
  data,
  edit,
  evaluate,
  export,
  fit_classifier,
  fit_codebook,
  flags,
  generate,
  interrupts,
  preflight,
  push,
  score,
  statistics,
  train,
)
from marjax.version import __version__

VERBS = {
  "data": data,
  "cache-latents": cache_latents,
  "fit-classifier": fit_classifier,
  "fit-codebook": fit_codebook,
  "preflight": preflight,
  "train": train,
  "generate": generate,
  "edit": edit,
  "app": app,
  "evaluate": evaluate,
  "score": score,
  "statistics": statistics,
  "convert": convert,
  "export": export,
  "push": push,
}

# Those that read a config.
CONFIGURED = ("train", "preflight", "fit-codebook", "fit-classifier")

# Those whose compiling is worth keeping.
COMPILING = ("train", "generate", "edit", "app", "evaluate")
COMPILING += ("score", "statistics", "fit-classifier")

SMALLER = (
  "expected a smaller batch: lower --batch_size, or of a training"
  " training.batch_size, or raise training.num_microbatches"
)

# Modules that only an extra of the package installs.
EXTRAS = {
  "sklearn": "demo",
  "gcsfs": "gcs",
  "fsspec": "gcs",
  "libtpu": "tpu",
  "jax_cuda12_plugin": "cuda",
  "matplotlib": "demo",
  "pyarrow": "parquet",
  "tensorflow": "tensorflow",
  "torch": "convert",
  "requests": "convert",
  "huggingface_hub": "hub",
  "gradio": "app",
}

FLAGS = """
--parts FILE
  a Python file that registers parts of your own, such as a head
--debug
  show a traceback with an error
"""
"""Of every verb."""

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
    text = f"{self.prog}: {message}{self._near(message)}"
    self.exit(2, f"{outputs.one_line(text)}; see {self.prog} --help.\n")

  def parse_known_args(self, args=None, namespace=None):
    """As argparse's, but of a verb an unknown flag is told before others.

    argparse would first ask for the flag that was misspelt.
    """
    if self._subparsers is None and not {"-h", "--help"} & {*args}:
      for word in itertools.takewhile(lambda word: word != "--", args):
        name = word.partition("=")[0]
        if name.startswith("--") and name not in self._option_string_actions:
          self.error(f"unrecognized arguments: {name}")
    return super().parse_known_args(args, namespace)

  def _near(self, message: str) -> str:
    """What was meant by a wrong choice or flag, perhaps."""
    wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
    flag = re.match(r"unrecognized arguments: (--\S+)", message)
    if not (wrong or flag):
      return ""
    choices = list(self._option_string_actions)
    if wrong:
      choices = re.findall(r"[\w-]+", wrong[2])
    near = difflib.get_close_matches((wrong or flag)[1], choices, n=1)
    return f": did you mean {near[0]}?" if near else ""


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
    flags.add(verb, FLAGS)
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
  if overrides and args.verb not in CONFIGURED:
    parser.error(f"--{overrides[0]} is not a flag of {args.verb}")
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code.

  0, or 2 after an error that a user can mend, 130 after an interrupt, 141
  where whoever read the output left. Anything else is a defect, and raised.
  """
  _prepare_streams()
  args = None
  try:
    args = parse(sys.argv[1:] if argv is None else argv)
    _prepare_logs(args)
    _run(args)
    if sys.stdout:
      sys.stdout.flush()
  except KeyboardInterrupt as error:
    return interrupts.answer(str(error))
  except Exception as error:
    if isinstance(error, BrokenPipeError) and _is_reader_gone():
      return 141
    text = sentence(error)
    if text is None or is_debugging(args):
      raise
    print(f"marjax: {outputs.one_line(text)}", file=sys.stderr)
    return 2
  return 0


def is_debugging(args: argparse.Namespace | None) -> bool:
  """Whether tracebacks and other libraries' logs are asked for."""
  return getattr(args, "debug", False) or os.environ.get("MARJAX_DEBUG") == "1"


def sentence(error: Exception) -> str | None:
  """What a user can do about an error; None for a defect of ours."""
  message = str(error) or type(error).__name__
  if isinstance(error, ModuleNotFoundError):
    return _missing_module(error)
  if isinstance(error, UnicodeError):
    return (
      f"a text that should be UTF-8 is not ({message}); expected files and"
      " names in UTF-8: save them as that."
    )
  if isinstance(error, OSError):
    return _operating_system(error, message)
  if isinstance(error, ValueError | FloatingPointError):
    return message if _raised_in(error, "marjax") else None
  if isinstance(error, MemoryError):
    return f"this machine's memory is full ({message}); {SMALLER}."
  if isinstance(error, RecursionError):
    return (
      "something is nested too deeply to be read or computed; expected files"
      " that marjax wrote, and no config inside itself."
    )
  if "RESOURCE_EXHAUSTED" in message:
    return f"the device's memory is full ({_first_line(message)}); {SMALLER}."
  if _raised_in(error, "jax._src.xla_bridge"):
    cause = _first_line(str(error)).partition(" (set JAX_")[0] or "none found"
    return (
      f"jax has no device to run on ({cause}); JAX_PLATFORMS is"
      f" {os.environ.get('JAX_PLATFORMS', '')!r}: unset it, or set it to cpu,"
      " or install what the device needs."
    )
  return None


def _run(args: argparse.Namespace) -> None:
  try:
    os.getcwd()
  except FileNotFoundError:
    raise FileNotFoundError(
      "the folder in which marjax was started was removed; expected one that"
      " exists: change to another."
    ) from None
  if args.verb in COMPILING:
    from marjax.requests.kept_programs import keep_programs

    # Tracing makes many small objects, and they stay: to look for garbage among
    # them as often as Python does takes a fifth of a start.
    gc.set_threshold(50_000, 20)
    keep_programs()
  if args.parts:
    configs.run_file(args.parts)
  VERBS[args.verb].run(args)


def _prepare_streams() -> None:
  """Lets any name be printed, whatever the terminal's encoding is."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


def _prepare_logs(args: argparse.Namespace) -> None:
  handler = logging.StreamHandler()
  handler.setFormatter(_Formatter())
  logging.basicConfig(handlers=[handler])
  logging.getLogger("marjax").setLevel(logging.INFO)
  if not is_debugging(args):
    # They log, with tracebacks, what they raise.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)
    handler.addFilter(_is_to_be_told)


def _is_to_be_told(record: logging.LogRecord) -> bool:
  """False of what orbax's threads log with tracebacks: an error tells it."""
  return "orbax" not in record.pathname and record.name != "asyncio"


class _Formatter(logging.Formatter):
  """Messages alone, each of their lines fit for print."""

  def formatMessage(self, record: logging.LogRecord) -> str:
    return "\n".join(map(outputs.shown, record.getMessage().split("\n")))


def _is_reader_gone() -> bool:
  """Whether what is written to stdout has no reader; from then on it has."""
  try:
    place = sys.stdout.fileno()
  except (OSError, AttributeError):
    return False
  state = select.poll()
  state.register(place, select.POLLOUT)
  if not any(event & select.POLLERR for _, event in state.poll(0)):
    return False
  # Python flushes once more as it ends.
  with open(os.devnull, "w") as nothing:
    os.dup2(nothing.fileno(), place)
  return True


def _missing_module(error: ModuleNotFoundError) -> str | None:
  if not error.name:
    return str(error)
  module = error.name.split(".")[0]
  if module not in EXTRAS:
    return None
  return (
    f"{module} is not installed; install it with"
    f' pip install "marjax[{EXTRAS[module]}]".'
  )


def _operating_system(error: OSError, message: str) -> str:
  """Ours say all; others have a number, and often the name of a file."""
  if not error.strerror:
    return message
  if error.filename:
    return f"{error.filename}: {error.strerror.lower()}."
  return f"{error.strerror.lower()}; add --debug to see where that was."


def _raised_in(error: Exception, *modules: str) -> bool:
  """Whether a module whose name begins so raised it."""
  last = error.__traceback__
  while last.tb_next:
    last = last.tb_next
  return last.tb_frame.f_globals.get("__name__", "").startswith(modules)


def _first_line(text: str) -> str:
  return (text.splitlines() or [""])[0]
