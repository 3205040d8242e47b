"""What programs run by `python -m` share: their parser, and how errors end."""

import argparse
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from marjax.cli import interrupts
from marjax.experiment import Experiment


class _Parser(argparse.ArgumentParser):
  """One whose errors end as all others do, see `program`."""

  def error(self, message: str) -> NoReturn:
    raise ValueError(f"{message} ({self.prog} --help says more)")


def parser(spec, doc: str) -> argparse.ArgumentParser:
  """One for flags; arguments are the module's own `__spec__` and `__doc__`."""
  return _Parser(
    prog=f"python -m {spec.name}",
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
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
  flags.add_argument("--num_images", type=count, default=1000)
  flags.add_argument(
    "--out", type=Path, default=out, help="default: %(default)s"
  )
  if of == "runs":
    flags.add_argument("--num_runs", type=count, default=3)
  return flags


def chosen(what: str, asked: str, known: Iterable[str]) -> list[str]:
  """The names in "A,B", each once.

  Raises:
    ValueError: one is not known.
  """
  names = list(dict.fromkeys(asked.split(",")))
  for name in names:
    if name not in known:
      raise ValueError(
        f"there is no {what} {name!r}; expected some of {', '.join(known)}."
      )
  return names


def numbers(flag: str, text: str, kind: type = int) -> tuple[Any, ...]:
  """The numbers in "A,B", each once.

  Raises:
    ValueError: a part is no such number, or below 0.
  """
  try:
    found = tuple(dict.fromkeys(map(kind, text.split(","))))
  except ValueError:
    found = ()
  highest = 2**32 if kind is int else float("inf")
  if not found or not all(0 <= one < highest for one in found):
    what = "whole numbers below 2^32" if kind is int else "numbers"
    raise ValueError(
      f"{flag} is {text!r}; expected {what}, 0 or more, such as 1,2."
    )
  return found


def weights(text: str) -> dict[str, str]:
  """Networks and their files, of "NETWORK=FILE,NETWORK".

  The file is "" where none is named.

  Raises:
    ValueError: nothing is named.
  """
  pairs = (part.partition("=") for part in text.split(",") if part)
  named = {name: file for name, _, file in pairs}
  if not named:
    raise ValueError(
      "--weights is missing; expected NETWORK=FILE,NETWORK=FILE, or pixels,"
      " which needs no file: see docs/networks.md."
    )
  return named


def count(text: str) -> int:
  """The type of a flag that is a number of something.

  Raises:
    argparse.ArgumentTypeError: it is below 1, or no whole number.
  """
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f"it is {text!r}; expected a whole number, 1 or more"
    )
  return int(text)


def seconds(text: str) -> float:
  """The type of a flag that is a time.

  Raises:
    argparse.ArgumentTypeError: it is below 0, or no number.
  """
  try:
    found = float(text)
  except ValueError:
    found = -1.0
  if not found >= 0:
    raise argparse.ArgumentTypeError(
      f"it is {text!r}; expected seconds, 0 or more"
    )
  return found


def train(experiment: Experiment, workdir: Path) -> None:
  """Trains a run of `training.num_steps` as far as it is not.

  Raises:
    SystemExit: this machine is taken away meanwhile (SIGTERM), so that no run
      is scored that is not finished.
  """
  from marjax.train import loop

  # Rate and time left, as `marjax train` says them.
  logging.basicConfig(format="%(message)s")
  logging.getLogger("marjax").setLevel(logging.INFO)
  logging.getLogger("marjax.train.loop.parameters").setLevel(logging.WARNING)
  print(f"training {workdir}", flush=True)
  step = int(loop.train(experiment, workdir).step)
  wanted = experiment.training.num_steps
  if step < wanted:
    sys.exit(
      f"{workdir} was stopped at step {step} of {wanted}; the same command goes"
      " on there."
    )


def check_drawing() -> None:
  """Refuses, before long work, a machine without what draws pictures.

  Raises:
    ModuleNotFoundError: matplotlib is not installed.
  """
  importlib.import_module("matplotlib")


def program(main: Callable[..., int | None]) -> Callable[..., int]:
  """`main` with an exit status: 2, and a sentence, after an error to mend.

  A status of its own is passed on; a command's is 130 after an interrupt.
  """

  @functools.wraps(main)
  def run(argv=None) -> int:
    if argv is None:  # a command of its own
      interrupts.begin()
    try:
      return main(argv) or 0
    except KeyboardInterrupt:
      if argv is not None:  # whoever called it is to know
        raise
      return interrupts.answer("what is done is kept")
    except (ValueError, OSError) as error:
      text = str(error)
    except Exception as error:
      from marjax.cli.main import sentence  # imports all that verbs need

      text = sentence(error)
      if text is None:
        raise
    print(f"{main.__globals__['__spec__'].name}: {text}", file=sys.stderr)
    return 2

  return run
