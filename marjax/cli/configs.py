"""Config files: `PATH.py[:VARIANT]` and `--config.KEY=VALUE` → Experiment.

`marjax://NAME[:VARIANT]` is a config that comes with the library, of a checkout
configs/NAME.py.

1. A path may hold colons: the longest part of it that is a file is the config.
2. The file's `get_config(variant)` returns a ConfigDict. While it runs it can
   import what lies beside it, beside its folder, or where the command runs;
   afterwards its neighbours are forgotten, since another folder has others.
3. Each override sets one field, once. A field of text keeps the value as it is;
   any other is read as a Python literal, and `true`, `false` and `none` are
   accepted in any case.
4. `schema.from_dict` checks every key and type. A config of one's own pictures
   leaves values open, which `train.derived` fills in before.
"""

import ast
import contextlib
import importlib
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import marjax
from marjax import outputs, schema
from marjax.experiment import Experiment
from marjax.schema import check

WORDS = {"true": True, "false": False, "none": None}
WORDS |= {word: float(word) for word in ("nan", "inf", "-inf")}

OURS = "marjax://"
"""What the names of configs begin with that come with the library."""

LONGEST_VALUE = 10_000
"""Characters of a value on the command line."""

LONGEST_REASON = 300
"""Characters of what a config file raises."""


def load(
  address: str, overrides: Sequence[str] = (), workdir: str = ""
) -> Experiment:
  """The experiment that a config file describes.

  Args:
    address: path of a config file, perhaps with ":VARIANT" after it.
    overrides: "config.KEY=VALUE" with dots between nested keys.
    workdir: of a run, whose values a config that leaves some open takes.

  Raises:
    ValueError: a file that fails, an unknown variant or key, or a value of the
      wrong type; pictures that do not do for a config that leaves values open.
    FileNotFoundError: no such file.
  """
  return build(read(address, overrides), workdir)


def read(address: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
  """The nested mapping of a config file; see `load`."""
  mapping = _read(*_split(address))
  for override in overrides:
    _set(mapping, override)
  return mapping


def is_open(mapping: Mapping[str, Any]) -> bool:
  """Whether devices are needed to know the experiment: see `train.derived`."""
  return "image_size" in mapping


def build(mapping: Mapping[str, Any], workdir: str = "") -> Experiment:
  """The experiment of a nested mapping; see `load`."""
  if is_open(mapping):
    from marjax.train import derived

    return derived.fill(mapping, workdir)
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
    f"a value of {len(text)} characters, {schema.printable(text[:20])}..., was"
    f" given; expected at most {LONGEST_VALUE}: write it into a config file.",
  )
  if text.lower() in WORDS:
    return WORDS[text.lower()]
  try:
    return ast.literal_eval(text)
  # The last two come of thousands of brackets inside each other.
  except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
    return text


def _split(address: str) -> tuple[Path, str]:
  """The config's path and the variant; the path may hold colons."""
  name = schema.printable(address)
  if address.startswith(OURS):
    name, _, variant = address.removeprefix(OURS).partition(":")
    return _shipped(name), variant
  check(
    "://" not in address,
    f"the config {name} is not on this machine; copy it here, and name the"
    " copy.",
  )
  parts = address.split(":")
  for count in range(len(parts), 0, -1):
    path = outputs.path_of(":".join(parts[:count]))
    if path.is_file():
      return path, ":".join(parts[count:])
  check(
    not path.is_dir(),
    f"the config {name} is a folder; name a file in it, as in"
    " configs/digits.py.",
  )
  raise FileNotFoundError(
    f"the config {name} does not exist; expected the path of a config file such"
    " as configs/digits.py, perhaps with :VARIANT after it."
  )


def _shipped(name: str) -> Path:
  """A config of the library's own: in a wheel's folder, or of a checkout."""
  package = Path(marjax.__file__).parent
  folders = (package / "shipped" / "configs", package.parent / "configs")
  paths = {
    path.stem: path
    for folder in folders
    for path in sorted(folder.glob("[!_]*.py"))
    if "def get_config" in path.read_text(encoding="utf-8")
  }
  check(
    name in paths,
    f"the config {OURS}{schema.printable(name)} does not exist; expected one of"
    f" {', '.join(sorted(paths))}, with {OURS} before it.",
  )
  return paths[name]


def _read(path: Path, variant: str) -> dict[str, Any]:
  """The nested mapping that the file's `get_config` returns."""
  name = f"the config {schema.printable(str(path))}"
  check(path.suffix == ".py", f"{name} is no Python file; name a .py file.")
  config = arguments = None
  with _executed(path) as module:
    get_config = getattr(module, "get_config", None)
    if callable(get_config):
      arguments = _arguments(get_config, variant)
    if arguments is not None:
      config = get_config(*arguments)
    if isinstance(config, ConfigDict):
      config = config.to_dict()
  check(
    callable(get_config),
    f"{name} has no get_config(variant); expected that function, returning a"
    " ConfigDict.",
  )
  check(
    arguments is not None,
    f"{name} has a get_config that cannot be called with a variant alone; write"
    ' it as def get_config(variant="").',
  )
  check(
    isinstance(config, Mapping),
    f"{name} has a get_config that returns {type(config).__name__}; expected a"
    " ConfigDict.",
  )
  return {str(key): value for key, value in config.items()}


def run_file(name: str) -> None:
  """Executes a Python file, which may register parts of its own.

  Raises:
    FileNotFoundError: there is no such file. ValueError: it fails.
  """
  path = outputs.path_of(name)
  if not path.is_file():
    raise FileNotFoundError(
      f"--parts is {schema.printable(name)}: there is no such file; name the"
      " Python file that registers your parts."
    )
  with _executed(path):
    pass


@contextlib.contextmanager
def _executed(path: Path) -> Iterator[types.ModuleType]:
  """The module that a file is, as long as what lies beside it is importable."""
  module = types.ModuleType(f"config_{path.stem}")
  module.__file__ = str(path)
  with _explained(path), _neighbours(path.absolute().parent, module):
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    yield module


def _arguments(get_config: Callable, variant: str) -> tuple[str, ...] | None:
  """What to call it with; without a variant it need not take one."""
  for arguments in ((variant,), ()) if not variant else ((variant,),):
    with contextlib.suppress(TypeError):
      inspect.signature(get_config).bind(*arguments)
      return arguments
  return None


@contextlib.contextmanager
def _neighbours(folder: Path, module: types.ModuleType) -> Iterator[None]:
  """Lets a config import the files beside it, for as long as it is read."""
  paths, modules = sys.path[:], set(sys.modules)
  roots = (folder.parent, folder, Path.cwd())
  # The folder itself late, so that none of its files hides a package.
  sys.path[:] = [str(roots[0]), *paths, *map(str, roots[1:])]
  sys.modules[module.__name__] = module
  importlib.invalidate_caches()
  try:
    yield
  finally:
    sys.path[:] = paths
    new = set(sys.modules) - modules
    for name in [name for name in new if _is_local(name, roots)]:
      del sys.modules[name]


def _is_local(name: str, roots: Sequence[Path]) -> bool:
  """Whether a module is a file in one of the folders, or in a folder in it."""
  top = sys.modules.get(name.partition(".")[0])
  file = getattr(top, "__file__", None)
  places = [file] if file else getattr(top, "__path__", [])
  return any(Path(place).absolute().parent in roots for place in places)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
  """Makes one sentence of what a config raises, with file and line."""
  try:
    yield
  except (Exception, SystemExit) as error:
    raise ValueError(_reason(path, error)) from error


def _reason(path: Path, error: BaseException) -> str:
  """What went wrong, and in which line of the config or of a neighbour."""
  folder, place, line = path.absolute().parent, path, 0
  for frame in traceback.extract_tb(error.__traceback__):
    if Path(frame.filename).absolute().parent == folder:
      place, line = Path(frame.filename), frame.lineno
  text = schema.printable(" ".join(str(error).split()))[:LONGEST_REASON]
  if isinstance(error, SyntaxError):
    place, line = Path(error.filename or path), error.lineno or 0
    text = schema.printable(error.msg)[:LONGEST_REASON]
  name = f"the config {schema.printable(str(place))}"
  at = f"line {line}: " if line else ""
  if isinstance(error, SyntaxError):
    return f"{name} is not valid Python: {at}{text}; correct it."
  if isinstance(error, ImportError):
    return (
      f"{name} cannot import what it needs: {at}{text}; what it imports"
      " must lie beside it or beside its folder, or be installed: copy that"
      " along, or run the command in the folder that holds it."
    )
  if isinstance(error, ValueError):
    return f"{name}: {at}{text}"
  return f"{name} fails: {at}{type(error).__name__}: {text}; correct it."


def _set(mapping: dict[str, Any], override: str) -> None:
  """Sets one key of the nested mapping, making groups that are missing."""
  path, equals, text = override.partition("=")
  name = schema.printable(f"--{path}")
  if not equals:
    raise ValueError(f"{name} has no value; write {name}=VALUE.")
  _, *groups, key = path.split(".")
  hints = _types([*groups, key])
  for group in filter(schema.is_config, hints):
    first = next(iter(schema.hints(group)))
    raise ValueError(
      f"{name} is a group of fields; set them one by one, as in"
      f" {name}.{first}=VALUE."
    )
  for depth, group in enumerate(groups, start=1):
    mapping = mapping.setdefault(group, {})
    if not isinstance(mapping, dict):
      parent = schema.printable(".".join(["config", *groups[:depth]]))
      raise ValueError(f"{parent} is a value without keys; {name} sets one.")
  # A field that holds text keeps it: names may look like numbers, or be "none".
  is_text = hints and all(one is str or isinstance(one, str) for one in hints)
  mapping[key] = text if is_text else literal(text)


def _unfolded(hint: Any) -> tuple[Any, ...]:
  """What a field may hold: words too, and every kind of part."""
  return tuple(
    option
    for part in schema.options(hint)
    for option in typing.get_args(part) or (part,)
  )


def _types(path: Sequence[str]) -> list[Any]:
  """The types, and the words, that a field of an experiment may have."""
  options: list[Any] = [Experiment]
  for name in path:
    hints = [
      schema.hints(option).get(name)
      for option in options
      if schema.is_config(option)
    ]
    options = [
      option for hint in hints if hint is not None for option in _unfolded(hint)
    ]
  return options
