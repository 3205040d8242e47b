"""Imports point one way, and importing marjax stays light."""

import ast
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "marjax"

# A module imports from modules to its left only.
ORDER = (
  "version schema outputs arrays keys linear pictures tokens latents backbone head"
  " model release generate experiment pipeline parallel data evaluate convert"
  " train cli"
).split()

# Both are left of `model`, the one place where they meet.
STRANGERS = {("head", "backbone"), ("backbone", "head")}

HEAVY = ("tensorflow", "torch", "orbax", "grain", "tensorflow_datasets")
HEAVY += ("matplotlib", "sklearn", "scipy", "PIL", "tensorboard")


def modules():
  return sorted(PACKAGE.rglob("*.py"))


def part_of(path: pathlib.Path) -> str:
  """The entry of ORDER that a file of the package belongs to."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(tree: ast.AST) -> set[str]:
  """Parts of marjax that a module imports, inside functions too."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module == "marjax":
      names |= {f"marjax.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names.add(node.module or "")
  split = [name.split(".") for name in names]
  return {name[1] for name in split if name[0] == "marjax" and len(name) > 1}


def violations(part: str, imported: set[str]) -> set[str]:
  """Those of the imported parts that `part` may not import."""
  left = ORDER[: ORDER.index(part) + 1]
  return {
    other
    for other in imported
    if other not in left or (part, other) in STRANGERS
  }


@pytest.mark.parametrize(
  "path", modules(), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_one_way(path):
  part = part_of(path)
  if part in ("__init__", "__main__"):
    return
  assert part in ORDER, f"{part} has no place in ORDER; give it one"
  tree = ast.parse(path.read_text())
  assert not any(
    isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)
  ), "write imports in full"
  wrong = violations(part, imported_parts(tree))
  assert not wrong, f"{part} may not import {', '.join(sorted(wrong))}"


def test_a_wrong_import_is_seen():
  source = "def f():\n  from marjax.parallel import mesh\nimport marjax.head.x"
  imported = imported_parts(ast.parse(source))
  assert violations("backbone", imported) == {"parallel", "head"}
  assert violations("train", imported) == set()


def test_importing_marjax_is_quick_and_light():
  code = "import sys, marjax; print(*sys.modules)"
  start = time.perf_counter()
  loaded = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split()
  seconds = time.perf_counter() - start
  heavy = {name.split(".")[0] for name in loaded} & set(HEAVY)
  assert "marjax" in loaded
  assert not heavy, f"import marjax also imports {', '.join(sorted(heavy))}"
  assert seconds < 3, f"import marjax took {seconds:.1f} s"
