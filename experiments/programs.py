"""What programs run by `python -m` share: their parser, and how errors end."""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path


def parser(spec, doc: str) -> argparse.ArgumentParser:
  """One for flags; arguments are the module's own `__spec__` and `__doc__`."""
  return argparse.ArgumentParser(
    prog=f"python -m {spec.name}", description=doc.partition("\n")[0]
  )


def scoring_parser(
  spec, doc: str, out: Path, of: str = "checkpoint"
) -> argparse.ArgumentParser:
  """That of a program which adds rows of scores to `out`.

  Args:
    of: "checkpoint", or "runs" for a folder of several, trained if missing.
  """
  flags = parser(spec, doc)
  what = "a work directory" if of == "checkpoint" else "folder of runs"
  flags.add_argument(f"--{of}", type=Path, required=True, help=what)
  flags.add_argument("--num_images", type=int, default=1000)
  flags.add_argument(
    "--out", type=Path, default=out, help="default: %(default)s"
  )
  if of == "runs":
    flags.add_argument("--num_runs", type=int, default=3)
  return flags


def program(main: Callable[..., None]) -> Callable[..., int]:
  """`main` with an exit status: 2, and a sentence, after an error to mend."""

  @functools.wraps(main)
  def run(argv=None) -> int:
    try:
      main(argv)
    except (ValueError, OSError) as error:
      name = main.__globals__["__spec__"].name
      print(f"{name}: {error}", file=sys.stderr)
      return 2
    return 0

  return run
