"""Plain mappings to frozen dataclasses and back, with one sentence per error.

1. A config file, a command line or a checkpoint's JSON is a nested mapping.
2. `from_dict` walks the dataclass's type hints, converts each value and refuses
   what does not fit, naming the path of the key.
3. A field that may hold one of several dataclasses is told apart by their
   `kind` field, the first if it is left out; dict[str, X] is a mapping of names
   that are open.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def from_dict(cls: type[T], mapping: Mapping, where: str = "config") -> T:
  """Builds the frozen dataclass `cls` from a nested mapping.

  Args:
    cls: a dataclass; nested dataclasses, optionals, tuples, dicts and unions
      of dataclasses (told apart by `kind`) are followed.
    mapping: field name to value; fields left out keep their defaults.
    where: path of the mapping, for messages.

  Raises:
    ValueError: unknown or missing key, or a value of the wrong type.
  """
  if not isinstance(mapping, Mapping):
    raise ValueError(
      f"{where} is {_shown(mapping)}; expected a mapping with the fields of"
      f" {cls.__name__}: {', '.join(_field_names(cls))}."
    )
  hints = typing.get_type_hints(cls)
  names = _field_names(cls)
  for key in mapping:
    if key not in names:
      raise ValueError(_unknown(f"{where}.{key}", str(key), names))
  values = {
    key: _convert(hints[key], value, f"{where}.{key}")
    for key, value in mapping.items()
  }
  missing = [
    field.name
    for field in dataclasses.fields(cls)
    if field.name not in values
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  ]
  if missing:
    raise ValueError(f"{where}.{missing[0]} is missing; give it a value.")
  return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
  """The nested, JSON-able mapping that `from_dict` reads back."""
  return dataclasses.asdict(config)


def check(condition: bool, message: str) -> None:
  """Raises ValueError(message) unless the condition holds."""
  if not condition:
    raise ValueError(message)


def _field_names(cls: type) -> list[str]:
  return [field.name for field in dataclasses.fields(cls)]


def _shown(value: Any) -> str:
  return f"{value!r} ({type(value).__name__})"


def _unknown(where: str, key: str, names: list[str]) -> str:
  near = difflib.get_close_matches(key, names, n=1)
  hint = f"did you mean {near[0]}? " if near else ""
  return f"{where} is not a known key; {hint}Known: {', '.join(names)}."


def _convert(hint: Any, value: Any, where: str) -> Any:
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return _convert_union(args, value, where)
  if origin is typing.Literal:
    if value not in args:
      allowed = ", ".join(repr(option) for option in args)
      raise ValueError(f"{where} is {value!r}; expected one of {allowed}.")
    return value
  if origin is tuple:
    return _convert_tuple(args, value, where)
  if origin is dict:
    if not isinstance(value, Mapping):
      raise ValueError(f"{where} is {_shown(value)}; expected a mapping.")
    return {
      str(key): _convert(args[1], entry, f"{where}.{key}")
      for key, entry in value.items()
    }
  if dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else from_dict(hint, value, where)
  return _convert_scalar(hint, value, where)


def _convert_tuple(items: tuple, value: Any, where: str) -> tuple:
  if not isinstance(value, list | tuple):
    raise ValueError(f"{where} is {_shown(value)}; expected a list.")
  if Ellipsis in items:
    items = items[:1] * len(value)
  if len(items) != len(value):
    raise ValueError(
      f"{where} has {len(value)} entries; expected {len(items)}."
    )
  return tuple(
    _convert(item, entry, f"{where}[{i}]")
    for i, (item, entry) in enumerate(zip(items, value, strict=True))
  )


def _convert_union(options: tuple, value: Any, where: str) -> Any:
  if value is None and type(None) in options:
    return None
  options = tuple(option for option in options if option is not type(None))
  if len(options) == 1:
    return _convert(options[0], value, where)
  if isinstance(value, options):
    return value
  kinds = {option.kind: option for option in options}
  first = options[0].kind
  kind = value.get("kind", first) if isinstance(value, Mapping) else None
  if kind not in kinds:
    raise ValueError(
      f"{where}.kind is {kind!r}; expected one of {', '.join(kinds)}."
    )
  return from_dict(kinds[kind], value, where)


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  is_bool_for_int = isinstance(value, bool) and hint is not bool
  if not isinstance(value, hint) or is_bool_for_int:
    raise ValueError(f"{where} is {_shown(value)}; expected {hint.__name__}.")
  return value
