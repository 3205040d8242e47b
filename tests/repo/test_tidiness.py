"""Sizes, docstrings, names: what keeps the sources good to live in."""

import ast
import io
import re
import statistics
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_FILE, MAX_FUNCTION, MAX_LONG_FUNCTION = 450, 60, 120
MAX_MEDIAN = 150

# A train loop or a config is read from top to bottom, and may be longer.
LONG_FUNCTIONS = {("marjax/train/loop.py", "train")}

VAGUE_NAMES = {"utils", "util", "common", "core", "helpers", "misc", "lib"}

SUPPRESSIONS = re.compile(
  r"#\s*(noqa|type: *ignore|pylint:|fmt: *off|pragma:|ruff:|pyright:)"
)

FOLDERS = ("marjax", "configs", "experiments", "benchmarks", "tests")


def sources(*folders: str) -> dict[str, str]:
  """Python sources below the folders: path from the root → text."""
  paths = [path for name in folders for path in (ROOT / name).rglob("*.py")]
  return {
    str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)
  }


def functions(tree: ast.AST):
  """Every function and method of a module."""
  return [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  ]


def undocumented(body: list[ast.stmt], prefix: str = "") -> list[str]:
  """Public functions, classes and methods without a docstring.

  linen calls `setup`; `__call__` and its like are described by their class.
  """
  missing = []
  for node in body:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
      continue
    if node.name.startswith("_") or node.name == "setup":
      continue
    if not ast.get_docstring(node):
      missing.append(prefix + node.name)
    if isinstance(node, ast.ClassDef):
      missing += undocumented(node.body, f"{prefix}{node.name}.")
  return missing


def longest(name: str, function: str) -> int:
  """Lines that a function of that file may have."""
  is_read_through = name.startswith("configs/")
  is_read_through |= (name, function) in LONG_FUNCTIONS
  return MAX_LONG_FUNCTION if is_read_through else MAX_FUNCTION


def test_files_are_short():
  lengths = {
    name: len(text.splitlines()) for name, text in sources(*FOLDERS).items()
  }
  assert lengths
  assert {n: k for n, k in lengths.items() if k > MAX_FILE} == {}
  assert statistics.median(lengths.values()) <= MAX_MEDIAN


def test_functions_are_short():
  lengths = {
    (name, function.name): function.end_lineno - function.lineno + 1
    for name, text in sources(*FOLDERS).items()
    for function in functions(ast.parse(text))
  }
  assert lengths
  assert {at: k for at, k in lengths.items() if k > longest(*at)} == {}


def test_modules_say_what_they_do():
  silent = [
    name
    for name, text in sources(*FOLDERS).items()
    if not ast.get_docstring(ast.parse(text))
  ]
  assert silent == []


def test_public_names_are_documented():
  missing = [
    f"{name}: {what}"
    for name, text in sources("marjax").items()
    for what in undocumented(ast.parse(text).body)
  ]
  assert missing == []


def test_modules_are_named_for_what_they_hold():
  parts = {
    name: {*Path(name).with_suffix("").parts} for name in sources(*FOLDERS)
  }
  assert [name for name in parts if parts[name] & VAGUE_NAMES] == []


def test_nothing_is_suppressed_inline():
  found = [
    f"{name}:{token.start[0]}"
    for name, text in sources(*FOLDERS).items()
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type == tokenize.COMMENT and SUPPRESSIONS.search(token.string)
  ]
  assert found == [], "mend the cause, or switch the rule off in pyproject.toml"


def test_what_is_wrong_is_seen():
  source = "class A:\n  def f(self): pass\n  def _g(self): pass\ndef h(): pass"
  assert undocumented(ast.parse(source).body) == ["A", "A.f", "h"]
  assert SUPPRESSIONS.search("x = 1  # noqa: E501")
  assert not SUPPRESSIONS.search("# a comment that gives a reason")


def test_arguments_are_not_packed():
  """`call(*(a, b))` says no more than `call(a, b)`."""
  packed = [
    f"{path}:{argument.lineno}"
    for path, text in sources(*FOLDERS).items()
    for call in ast.walk(ast.parse(text))
    if isinstance(call, ast.Call)
    for argument in call.args
    if isinstance(argument, ast.Starred)
    and isinstance(argument.value, ast.Tuple | ast.List)
  ]
  assert packed == []
