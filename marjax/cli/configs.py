"""Config files: `PATH.py[:VARIANT]` and `--config.KEY=VALUE` → Experiment.

1. The file's `get_config(variant)` returns a ConfigDict, or a mapping. It may
   import what lies beside it, beside its folder, or where the command runs.
2. Each override sets one key of it. The value is text where the key's type is,
   else it is read as a Python literal, or else is text; `true`, `false` and
   `none` are accepted in any case.
3. `schema.from_dict` checks every key and type.
"""

import ast
import contextlib
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from marjax import outputs, schema
from marjax.experiment import Experiment
from marjax.schema import check

WORDS = {"true": True, "false": False, "none": None}
WORDS |= {word: float(word) for word in ("nan", "inf", "-inf")}

LONGEST_VALUE = 10_000
"""Characters of a value on the command line."""


def load(address: str, overrides: Sequence[str] = ()) -> Experiment:
  """The experiment that a config file describes.

  Args:
    address: path of a config file, perhaps with ":VARIANT" after it.
    overrides: "config.KEY=VALUE" with dots between nested keys.

  Raises:
    ValueError: the file is no config or fails; an unknown variant or key, or a
      value of the wrong type.
    FileNotFoundError: no such file.
  """
  mapping = _read(address)
  for override in overrides:
    _set(mapping, override)
  return schema.from_dict(Experiment, mapping, where="config")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Overrides, "config.KEY=VALUE" each, and what is left of a command line.

  `--config.KEY VALUE` is an override too.
  """
  overrides, rest, words = [], [], iter(argv)
  for word in words:
    if not word.startswith("--config."):
      rest.append(word)
      continue
    if "=" not in word:
      value = next(words, "")
      check(
        bool(value) and not value.startswith("--"),
        f"{word} has no value; write {word}=VALUE.",
      )
      word = f"{word}={value}"
    overrides.append(word.removeprefix("--"))
  return overrides, rest


def literal(text: str) -> Any:
  """The value a flag's text stands for: a Python literal, or the text.

  Raises:
    ValueError: it is too long for a value.
  """
  check(
    len(text) <= LONGEST_VALUE,
    f"a value of {len(text)} characters, {text[:20]}..., was given; expected at"
    f" most {LONGEST_VALUE}: write it into a config file.",
  )
  if text.lower() in WORDS:
    return WORDS[text.lower()]
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    return text


def _read(address: str) -> dict[str, Any]:
  """The nested mapping that the file's `get_config` returns."""
  path, variant = _path_and_variant(address)
  module = _imported(path)
  make = getattr(module, "get_config", None)
  check(
    callable(make),
    f"the config {path} has no get_config(variant); expected that function,"
    " returning a ConfigDict.",
  )
  with _explained(path):
    takes_variant = bool(inspect.signature(make).parameters)
  check(
    takes_variant or not variant,
    f"the config {path} has no variants, and {variant!r} was asked for; leave"
    f" :{variant} out.",
  )
  with _explained(path):
    config = make(variant) if takes_variant else make()
    mapping = config.to_dict() if hasattr(config, "to_dict") else config
  check(
    isinstance(mapping, Mapping),
    f"get_config of {path} returned {type(config).__name__}; expected a"
    " ConfigDict.",
  )
  return dict(mapping)


def _path_and_variant(address: str) -> tuple[Path, str]:
  """The file, and what follows the last colon unless that is part of a name."""
  path, variant = outputs.path_of(address), ""
  if not path.exists() and ":" in address:
    name, _, variant = address.rpartition(":")
    path = outputs.path_of(name)
  check(
    not path.is_dir(),
    f"the config {path} is a folder; expected a config file such as"
    " configs/digits.py.",
  )
  if not path.is_file():
    raise FileNotFoundError(
      f"the config {path} does not exist; expected the path of a config file"
      f" such as configs/digits.py, perhaps with :VARIANT after it."
    )
  return path, variant


def _imported(path: Path) -> ModuleType:
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  check(
    spec is not None,
    f"the config {path} is no Python file; name a .py file.",
  )
  module = importlib.util.module_from_spec(spec)
  folder = path.absolute().parent
  beside = [str(folder.parent), str(folder), str(Path.cwd())]
  sys.path[:0] = beside
  try:
    with _explained(path):
      spec.loader.exec_module(module)
  finally:
    del sys.path[: len(beside)]
  return module


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
  """What goes wrong inside a config, as one sentence with the line."""
  try:
    yield
  except SyntaxError as error:
    where = f"line {error.lineno}: " if error.lineno else ""
    raise ValueError(
      f"the config {error.filename or path} is not valid Python:"
      f" {where}{error.msg}; correct it."
    ) from error
  except ModuleNotFoundError as error:
    raise ValueError(
      f"the config {path} imports {error.name}, which is neither beside it, nor"
      " beside its folder, nor installed; copy what it imports along, or run"
      " marjax in the folder that holds it."
    ) from error
  except ValueError:
    raise  # a config's own refusal, of a variant it does not have
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f" at line {lines[-1]}" if lines else ""
    raise ValueError(
      f"the config {path} fails{where} ({outputs.reason(error)}); correct it."
    ) from error


def _set(mapping: dict[str, Any], override: str) -> None:
  """Sets one key of the nested mapping, making groups that are missing."""
  path, equals, text = override.partition("=")
  if not equals:
    raise ValueError(f"--{path} has no value; write --{path}=VALUE.")
  _, *groups, key = path.split(".")
  for depth, group in enumerate(groups, start=1):
    mapping = mapping.setdefault(group, {})
    if not isinstance(mapping, dict):
      parent = ".".join(["config", *groups[:depth]])
      raise ValueError(f"{parent} is a value without keys; --{path} sets one.")
  # A field that holds text keeps it, so names may look like numbers.
  mapping[key] = text if _is_text(Experiment, groups, key) else literal(text)


def _is_text(cls: Any, groups: Sequence[str], key: str) -> bool:
  """Whether a key, inside groups of a dataclass, is a text and nothing else."""
  options = typing.get_args(cls) or (cls,)
  hints = [schema.hints(one) for one in options if schema.is_config(one)]
  if groups:
    inside = [found[groups[0]] for found in hints if groups[0] in found]
    return any(_is_text(one, groups[1:], key) for one in inside)
  return any(found.get(key) is str for found in hints)
