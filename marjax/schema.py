"""Plain mappings to frozen dataclasses and back, with one sentence per error.

1. A config file, a command line or a checkpoint's JSON is a nested mapping.
2. `from_dict` walks the dataclass's type hints, converts each value and refuses
   what does not fit, naming the path of the key.
3. A field that may hold one of several dataclasses is told apart by their
   `kind` field, the first if it is left out; dict[str, X] is a mapping of names
   that are open.
4. A number's range stands in its type, `Annotated[int, Range(1, 1000)]`. A
   dataclass made by `config` checks types and ranges whoever makes it: a file,
   a flag or a Python call. No float is NaN or infinite.
5. `register` makes a dataclass one of those that a field which is a protocol
   may hold, by its `kind`.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import re
import reprlib
import types
import typing
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import numpy as np

T = TypeVar("T")

_KINDS: dict[type, dict[str, type]] = {}
"""Of a protocol, the configs that were registered, by their kind."""

_UNIONS = (typing.Union, types.UnionType)


SYNONYMS = {
  "cfg": "guidance_scale",
  "cfg_scale": "guidance_scale",
  "guidance": "guidance_scale",
  "cfg_schedule": "guidance_schedule",
  "steps": "num_ar_steps",
  "num_iter": "num_ar_steps",
  "num_sampling_steps": "head.num_steps",
  "num_diffusion_steps": "head.num_steps",
  "final_diffusion_steps": "head.final_num_steps",
  "start_timestep": "head.start",
  "sampler": "head.sampler",
  "spacing": "head.spacing",
  "ddim_eta": "head.ddim_eta",
  "eta": "head.ddim_eta",
  "num_classes": "condition.num_classes",
  "label_dropout": "condition.dropout",
  "masking": "backbone.masking",
  "lr": "learning_rate",
  "blr": "base_learning_rate",
  "epochs": "total_epochs",
  "grad_clip": "clip_norm",
}
"""What other programs call a field."""

LONGEST_SHOWN = 120
"""Characters of a value in a message."""

WORDS = {
  int: "a whole number",
  float: "a number",
  bool: "true or false",
  str: "text",
  type(None): "none",
}

DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Characters that turn the order of those after them."""


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers from `low` to `high`.

  Without `low` itself if `is_open`, without `high` itself if `is_below`. A
  `note` ends what is said of others: what bounds the number besides.
  """

  low: int | float = -math.inf
  high: int | float = math.inf
  is_open: bool = False
  is_below: bool = False
  note: str = ""

  def __contains__(self, number: int | float) -> bool:
    above = self.low < number if self.is_open else self.low <= number
    below = number < self.high if self.is_below else number <= self.high
    return above and below

  def __str__(self) -> str:
    low, high = f"{self.low:.10g}", f"{self.high:.10g}"
    if not (self.is_open or self.is_below):
      return f"{low} or more" if self.high == math.inf else f"{low} to {high}"
    first = f"more than {low}" if self.is_open else f"{low} or more"
    if self.high == math.inf:
      return first
    return f"{first}, and {'below' if self.is_below else 'at most'} {high}"


Size = Annotated[int, Range(1, 2**16)]
"""Entries of an axis, layers, steps of a loop: what programs are made of."""

Count = Annotated[int, Range(0, 10**15)]
Positive = Annotated[int, Range(1, 2**31 - 1)]
"""Numbers of steps, images, classes: what is counted on the way."""

Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0, 1, is_below=True)]
"""A part of a whole that is never all of it: rates of dropout, of averages."""


@typing.dataclass_transform(frozen_default=True)
def config(cls: type[T] | None = None, *, kw_only: bool = False) -> Any:
  """Makes a frozen dataclass whose fields are checked against their types.

  What can be converted is (a list to a tuple, 3 to 3.0 for a float, numpy's
  numbers to Python's); a wrong type, a number out of its range and a name that
  is no field are a ValueError of one sentence. `__post_init__` runs after.
  """
  if cls is None:
    return functools.partial(config, kw_only=kw_only)
  own = cls.__dict__.get("__post_init__")

  def __post_init__(self):
    for name, hint in hints(cls).items():
      value = _convert(hint, getattr(self, name), name)
      object.__setattr__(self, name, value)
    if own:
      own(self)

  cls.__post_init__ = __post_init__
  made = dataclasses.dataclass(frozen=True, kw_only=kw_only)(cls)
  init = made.__init__

  @functools.wraps(init)
  def __init__(self, *args, **fields):
    for key in fields:
      if key not in hints(cls):
        raise ValueError(_unknown("", key, list(hints(cls))))
    try:
      inspect.signature(init).bind(self, *args, **fields)
    except TypeError as error:
      names = ", ".join(hints(cls))
      raise ValueError(
        f"{cls.__name__}: {error}; its fields are {names}."
      ) from None
    init(self, *args, **fields)

  made.__init__ = __init__
  return made


def register(protocol: type, *configs: type) -> None:
  """Makes configs known by their `kind` wherever a field is a `protocol`.

  Args:
    protocol: of `marjax.protocols`. configs: made by `config`, each with a
      field `kind` whose default is its name; one of that name is replaced.
  """
  kinds = _KINDS.setdefault(protocol, {})
  kinds.update({config.kind: config for config in configs})


def options(hint: Any) -> tuple[Any, ...]:
  """What a field of that type may hold: the parts of a union, or a protocol."""
  parts = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else ()
  if parts:
    return tuple(option for part in parts for option in options(part))
  return tuple(_KINDS.get(hint, {}).values()) or (hint,)


def from_dict(cls: type[T], mapping: Any, where: str = "config") -> T:
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
      f"{where} is {shown(mapping)}; expected a mapping with the fields of"
      f" {cls.__name__}: {', '.join(hints(cls))}."
    )
  for key in mapping:
    if key not in hints(cls):
      raise ValueError(_unknown(where, str(key), list(hints(cls))))
  values = {
    key: _convert(hints(cls)[key], value, f"{where}.{key}")
    for key, value in mapping.items()
  }
  for name, parameter in inspect.signature(cls).parameters.items():
    if name not in values and parameter.default is parameter.empty:
      raise ValueError(f"{where}.{name} is missing; give it a value.")
  return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
  """The nested, JSON-able mapping that `from_dict` reads back."""
  return dataclasses.asdict(config)


def counted(count: int, things: str) -> str:
  """ "2 images", of things "images"; "1 image" of one."""
  if count == 1:
    things = re.sub(r"(?<=ss)es\b|(?<=[^s])s\b", "", things, count=1)
  return f"{count} {things}"


def printable(text: str) -> str:
  """The text with what a terminal obeys, as escapes: controls, directions."""
  if text.isprintable():
    return text
  return "".join(
    char.encode("unicode_escape").decode()
    if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
    or unicodedata.bidirectional(char) in DIRECTIONS
    else char
    for char in text
  )


def shown(value: Any) -> str:
  """A value in a sentence: type and shape of an array, else a short repr."""
  if getattr(value, "shape", None):
    return f"{value.dtype} [{', '.join(map(str, value.shape))}]"
  try:
    text = printable(" ".join(reprlib.repr(value).split()))
  except Exception:  # of somebody's own class
    text = "a value"
  if len(text) > LONGEST_SHOWN:
    text = f"{text[: LONGEST_SHOWN // 2]}...{text[-LONGEST_SHOWN // 4 :]}"
  is_plain = value is None or type(value) in (str, int)
  return text if is_plain else f"{text} ({type(value).__name__})"


def check(condition: bool, message: str) -> None:
  """Raises ValueError(message) unless the condition holds."""
  if not condition:
    raise ValueError(message)


def is_config(cls: Any) -> bool:
  """Whether it is a dataclass, whose `hints` can be asked for."""
  return isinstance(cls, type) and dataclasses.is_dataclass(cls)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
  """Field → type, with its range."""
  types_of = typing.get_type_hints(cls, include_extras=True)
  return {field.name: types_of[field.name] for field in dataclasses.fields(cls)}


def _unknown(where: str, key: str, names: list[str]) -> str:
  near = difflib.get_close_matches(key[:LONGEST_SHOWN], names, n=1)
  synonym = SYNONYMS.get(key, "")
  near = [synonym] if synonym.partition(".")[0] in names else near
  hint = f"did you mean {near[0]}? " if near else ""
  place = f"{where}." if where else ""
  return (
    f"{place}{printable(key)[:LONGEST_SHOWN]} is not a known key; {hint}Known:"
    f" {', '.join(names)}."
  )


def _convert(hint: Any, value: Any, where: str) -> Any:
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return _in_range(args[1], _convert(args[0], value, where), where)
  if origin in _UNIONS:
    args = tuple(part for part in args if part is not type(None))
    if value is None and type(None) in typing.get_args(hint):
      return None
    if len(args) == 1:
      return _convert(args[0], value, where)
  if origin in _UNIONS or hint in _KINDS:
    return _convert_kind(hint, value, where)
  if origin is typing.Literal:
    value = value.item() if isinstance(value, np.generic) else value
    # True is 1, and is no number of channels.
    if not any(type(value) is type(one) and value == one for one in args):
      allowed = ", ".join(repr(option) for option in args)
      words = f"one of {allowed}" if len(args) > 1 else allowed
      raise ValueError(f"{where} is {shown(value)}; expected {words}.")
    return value
  if origin is tuple:
    return _convert_tuple(args, value, where)
  if origin is dict:
    if not isinstance(value, Mapping):
      raise ValueError(f"{where} is {shown(value)}; expected a mapping.")
    return {
      str(key): _convert(args[1], entry, f"{where}.{printable(str(key))}")
      for key, entry in value.items()
    }
  if dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else from_dict(hint, value, where)
  return _convert_scalar(hint, value, where)


def _convert_tuple(items: tuple, value: Any, where: str) -> tuple:
  if not isinstance(value, list | tuple):
    raise ValueError(f"{where} is {shown(value)}; expected a list.")
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


def _convert_kind(hint: Any, value: Any, where: str) -> Any:
  """One of several configs: those of a union, or those of a protocol."""
  is_open, parts = hint in _KINDS, options(hint)
  # Of a protocol also one that nobody registered: it has all with it.
  if isinstance(value, hint if is_open else parts):
    return value
  kinds = {option.kind: option for option in parts}
  if not isinstance(value, Mapping):
    raise ValueError(
      f"{where} is {shown(value)}; expected a mapping, or a config of kind"
      f" {' or '.join(kinds)}."
    )
  kind = value.get("kind", parts[0].kind)
  if not isinstance(kind, str) or kind not in kinds:
    own = ", or name the file that registers it, by --parts" if is_open else ""
    raise ValueError(
      f"{where}.kind is {shown(kind)}; expected one of {', '.join(kinds)}{own}."
    )
  return from_dict(kinds[kind], value, where)


def _in_range(allowed: Range, number: Any, where: str) -> Any:
  if number is not None and number not in allowed:
    expected = f"{allowed}{allowed.note}"
    raise ValueError(f"{where} is {_number(number)}; expected {expected}.")
  return number


def _number(number: int | float) -> str:
  # str of a whole number of thousands of digits is an error of Python's.
  is_huge = isinstance(number, int) and abs(number) >= 10**20
  return f"about 10^{math.log10(abs(number)):.0f}" if is_huge else f"{number}"


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
  if isinstance(value, np.generic):
    value = value.item()
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError:
      raise ValueError(
        f"{where} is {_number(value)}; expected a finite number."
      ) from None
  is_bool_for_int = isinstance(value, bool) and hint is not bool
  if not isinstance(value, hint) or is_bool_for_int:
    raise ValueError(f"{where} is {shown(value)}; expected {WORDS[hint]}.")
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{where} is {value}; expected a finite number.")
  return value
