"""Config files: `PATH.py[:VARIANT]` and `--config.KEY=VALUE` → Experiment.

1. The file's `get_config(variant)` returns a ConfigDict.
2. Each override sets one key of it. The value is read as a Python literal, or
   else is a string; `true`, `false` and `none` are accepted in any case.
3. `schema.from_dict` checks every key and type.
"""

import ast
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marjax import schema
from marjax.experiment import Experiment

WORDS = {"true": True, "false": False, "none": None}
WORDS |= {word: float(word) for word in ("nan", "inf", "-inf")}


def load(address: str, overrides: Sequence[str] = ()) -> Experiment:
  """The experiment that a config file describes.

  Args:
    address: path of a config file, perhaps with ":VARIANT" after it.
    overrides: "config.KEY=VALUE" with dots between nested keys.

  Raises:
    ValueError: unknown variant or key, or a value of the wrong type.
    FileNotFoundError: no such file.
  """
  mapping = _read(address)
  for override in overrides:
    _set(mapping, override)
  return schema.from_dict(Experiment, mapping, where="config")


def literal(text: str) -> Any:
  """The value a flag's text stands for: a Python literal, or the text."""
  if text.lower() in WORDS:
    return WORDS[text.lower()]
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def _read(address: str) -> dict[str, Any]:
  """The nested mapping that the file's `get_config` returns."""
  name, _, variant = address.partition(":")
  path = Path(name)
  if not path.is_file():
    raise FileNotFoundError(
      f"the config {name} does not exist; expected the path of a config file"
      f" such as configs/digits.py, perhaps with :VARIANT after it."
    )
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if spec is None:
    raise ValueError(f"the config {name} is no Python file; name a .py file.")
  module = importlib.util.module_from_spec(spec)
  # So that configs in one folder can share a base: `from FOLDER import base`.
  sys.path.insert(0, str(path.absolute().parents[1]))
  try:
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise ValueError(
      f"the config {name} is not valid Python: line {error.lineno}:"
      f" {error.msg}; correct it."
    ) from error
  finally:
    sys.path.pop(0)
  if not hasattr(module, "get_config"):
    raise ValueError(
      f"the config {name} has no get_config(variant); expected that function,"
      " returning a ConfigDict."
    )
  return module.get_config(variant).to_dict()


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
  is_text = isinstance(mapping.get(key), str)
  mapping[key] = text if is_text else literal(text)
