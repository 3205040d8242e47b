"""What programs run by `python -m` share: their parser, and how errors end."""

import argparse
import functools
import sys
from collections.abc import Callable, Iterable
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


def chosen(what: str, asked: str, known: Iterable[str]) -> list[str]:
  """The names in "A,B".

  Raises:
    ValueError: one is not known.
  """
  names = asked.split(",")
  for name in names:
    if name not in known:
      raise ValueError(
        f"there is no {what} {name}; expected some of {', '.join(known)}."
      )
  return names


def program(main: Callable[..., int | None]) -> Callable[..., int]:
  """`main` with an exit status: 2, and a sentence, after an error to mend.

  A status of its own is passed on.
  """

  @functools.wraps(main)
  def run(argv=None) -> int:
    try:
      return main(argv) or 0
    except (ValueError, OSError) as error:
      name = main.__globals__["__spec__"].name
      print(f"{name}: {error}", file=sys.stderr)
      return 2

  return run
