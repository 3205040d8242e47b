"""A flag for each field of a dataclass of settings, and back.

A field that is a dataclass itself, or one of several, has flags --FIELD.NAME.

The help of a flag is what the dataclass's docstring says of the field, so a
new field is a new flag without a change here.
"""

import argparse
import dataclasses
import inspect
import re
import typing

from flax.traverse_util import unflatten_dict

from marjax import schema
from marjax.cli.configs import literal

T = typing.TypeVar("T")
NONE = type(None)


def add_flags(parser: argparse._ActionsContainer, cls: type) -> None:
  """Declares `--FIELD VALUE` for every field of `cls`."""
  for name, (metavar, text) in _flags(cls).items():
    # argparse formats help with %, so a percent sign is doubled.
    parser.add_argument(
      f"--{name}", metavar=metavar, help=text.replace("%", "%%")
    )


def _flags(cls: type) -> dict[str, tuple[str, str]]:
  """Name → placeholder and help, of fields and of those inside them."""
  descriptions, hints, flags = describe(cls), typing.get_type_hints(cls), {}
  for field in dataclasses.fields(cls):
    groups = filter(schema.is_config, schema.options(hints[field.name]))
    inner = {}
    for group in groups:
      inner |= _flags(group) | inner
    inner.pop("kind", None)
    flags |= {f"{field.name}.{name}": flag for name, flag in inner.items()}
    if not inner:
      text = descriptions.get(field.name, "")
      flags[field.name] = (placeholder(hints[field.name]), text)
  return flags


def names(cls: type) -> list[str]:
  """Of the flags that `add_flags` declares."""
  return list(_flags(cls))


def from_flags(cls: type[T], args: argparse.Namespace) -> T:
  """The dataclass of the flags that were given; the others keep defaults.

  Raises:
    ValueError: a value of the wrong type or out of range.
  """
  return schema.from_dict(cls, changes(cls, args), where="settings")


def changes(cls: type, args: argparse.Namespace) -> dict[str, typing.Any]:
  """The flags that were given, as a mapping nested as `cls` is.

  Raises:
    ValueError: a value of the wrong type or out of range, for any kind of it.
  """
  values = {
    name: literal(value)
    for name in _flags(cls)
    if (value := getattr(args, name)) is not None
  }
  mapping = unflatten_dict(values, sep=".")
  hints = schema.hints(cls)
  alone = {
    name: value
    for name, value in mapping.items()
    if not isinstance(value, dict)
  }
  schema.from_dict(cls, alone, where="settings")
  for group in mapping.keys() - alone.keys():
    _check_any(schema.options(hints[group]), mapping[group], group)
  return mapping


def _check_any(kinds: tuple, mapping: dict, where: str) -> None:
  """Refuses what none of several dataclasses takes.

  The first that has all these fields says why, or else the first of all.
  """
  errors = []
  for kind in filter(schema.is_config, kinds):
    try:
      schema.from_dict(kind, mapping, where)
      return
    except ValueError as error:
      is_unknown = not mapping.keys() <= schema.hints(kind).keys()
      errors.append((is_unknown, error))
  raise min(errors, key=lambda entry: entry[0])[1]


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
