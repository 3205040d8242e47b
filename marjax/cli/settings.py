"""A flag for each field of a dataclass of settings, and back.

The help of a flag is what the dataclass's docstring says of the field, so a
new field is a new flag without a change here.
"""

import argparse
import dataclasses
import inspect
import re
import typing

from marjax import schema
from marjax.cli.configs import literal

T = typing.TypeVar("T")
NONE = type(None)


def add_flags(parser: argparse._ActionsContainer, cls: type) -> None:
  """Declares `--FIELD VALUE` for every field of `cls`."""
  descriptions, hints = describe(cls), typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    parser.add_argument(
      f"--{field.name}",
      metavar=placeholder(hints[field.name]),
      # argparse formats help with %, so a percent sign is doubled.
      help=descriptions.get(field.name, "").replace("%", "%%"),
    )


def from_flags(cls: type[T], args: argparse.Namespace) -> T:
  """The dataclass of the flags that were given; the others keep defaults.

  Raises:
    ValueError: a value of the wrong type or out of range.
  """
  given = {
    field.name: literal(getattr(args, field.name))
    for field in dataclasses.fields(cls)
    if getattr(args, field.name) is not None
  }
  return schema.from_dict(cls, given, where="settings")


def placeholder(hint) -> str:
  """What stands for a value of that type in the help: N, X or its choices."""
  if typing.get_origin(hint) is typing.Literal:
    return "|".join(map(str, typing.get_args(hint)))
  options = [option for option in typing.get_args(hint) if option is not NONE]
  if options:
    return "|".join(placeholder(option) for option in options)
  return {int: "N", float: "X"}.get(hint, "VALUE")


def describe(cls: type) -> dict[str, str]:
  """What the docstring's "name: text" entries say of each field."""
  names = "|".join(field.name for field in dataclasses.fields(cls))
  docstring = inspect.getdoc(cls) or ""
  _, *entries = re.split(rf"(?<!\w)({names}): ", docstring)
  texts = (" ".join(text.split()).rstrip(".") for text in entries[1::2])
  return dict(zip(entries[::2], texts, strict=True))
