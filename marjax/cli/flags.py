"""Flags, declared by the text that describes them.

--config FILE, required
  A line, or several, for its help.
--seed N, default 0
  N or I stands for a whole number, X for any; all else for a text.
--dtype float32|bfloat16
  One of these words.
--overwrite
  Without a value: true where it is there.
"""

import argparse
import re
from collections.abc import Callable
from typing import Any

PEERS = """
--coordinator_address HOST:PORT
  of several processes: where the first can be reached
--num_processes N
  of several processes: how many there are; 1 waits for no other
--process_id I
  of several processes: which this is, 0 to N - 1
"""
"""Of verbs that several processes share."""


def _type(kind: type, what: str) -> Callable[[str], Any]:
  def parse(text: str) -> Any:
    try:
      return kind(text)
    except ValueError:
      raise argparse.ArgumentTypeError(
        f"it is {text!r}; expected {what}"
      ) from None

  return parse


_WHOLE = _type(int, "a whole number")
_TYPES = {"N": _WHOLE, "I": _WHOLE, "X": _type(float, "a number")}


def add(parser: argparse._ActionsContainer, text: str) -> None:
  """Declares the flags of a text; see the module's docstring."""
  for entry in re.split(r"\n(?=--)", text.strip()):
    head, _, lines = entry.partition("\n")
    flag, _, how = head.partition(", ")
    name, _, value = flag.partition(" ")
    # argparse formats help with %, so a percent sign is doubled.
    options = {"help": " ".join(lines.split()).replace("%", "%%")}
    if not value:
      parser.add_argument(name, action="store_true", **options)
      continue
    kind = _TYPES.get(value, str)
    if how.startswith("default "):
      options["default"] = kind(how.removeprefix("default "))
      options["help"] += " (default: %(default)s)"
    if re.fullmatch(r"[a-z0-9]+(\|[a-z0-9]+)+", value):
      options["choices"] = value.split("|")
    else:
      options["metavar"] = value
    parser.add_argument(name, type=kind, required=how == "required", **options)
