"""What benchmarks share: flags, their checks, and where a row was measured."""

import argparse
import datetime
from pathlib import Path

from experiments import programs
from marjax.evaluate import environment


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
  """Declares --out, the file that rows are appended to."""
  parser.add_argument(
    "--out",
    type=Path,
    default=Path(f"benchmarks/results/{name}.jsonl"),
    help="JSON lines, appended to (default: %(default)s)",
  )


def add_repeats(parser: argparse.ArgumentParser, default: int = 5) -> None:
  """Declares --repeats, of what is timed."""
  parser.add_argument(
    "--repeats", type=programs.count, default=default, help="timed rounds"
  )


def where(*packages: str) -> dict:
  """Columns of a row that say when, on what and with what it was measured.

  `packages`: to be named beside those that always are.
  """
  return {
    "date": datetime.date.today().isoformat(),
    "device": environment.device(),
    "versions": environment.versions(*packages),
  }
