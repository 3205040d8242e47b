"""What benchmarks share: flags, their checks, and where a row was measured."""

import argparse
import datetime
from pathlib import Path

from marjax.evaluate import environment


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
  """Declares --out, the file that rows are appended to."""
  parser.add_argument(
    "--out",
    type=Path,
    default=Path(f"benchmarks/results/{name}.jsonl"),
    help="JSON lines, appended to (default: %(default)s)",
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
