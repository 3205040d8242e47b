"""Imports point one way, and importing marjax stays light."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "marjax"

# A module imports what stands above it only.
ORDER = [
  "version",
  "schema",
  "ticks",
  "outputs",
  "arrays",
  "keys",
  "protocols",
  "layers",
  "tokens",
  "latents",
  "backbone",
  "head",
  "model",
  "generate",
  "experiment",
  "parallel",
  "release",
  "requests",
  "convert",
  "pipeline",
  "data",
  "evaluate",
  "train",
  "preflight",
  "app",
  "cli",
]

# Head and backbone meet in `model` only; models only name their axes, and where
# arrays live is settled by those who load, train and generate.
STRANGERS = {
  ("head", "backbone"),
  ("backbone", "head"),
  ("generate", "parallel"),
}

HEAVY = ("tensorflow", "torch", "orbax", "grain", "tensorflow_datasets")
HEAVY += ("safetensors", "requests", "tqdm", "gradio")
HEAVY += ("matplotlib", "sklearn", "scipy", "PIL", "tensorboard")
MAX_MODULES = 1500


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
  above = ORDER[: ORDER.index(part) + 1]
  return {
    other
    for other in imported
    if other not in above or (part, other) in STRANGERS
  }


def test_imports_point_one_way():
  wrong = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    part = part_of(path)
    if part in ("__init__", "__main__"):
      continue
    assert part in ORDER, f"{part} has no place in ORDER; give it one"
    found = violations(part, imported_parts(ast.parse(path.read_text())))
    if found:
      wrong[str(path.relative_to(PACKAGE))] = found
  assert wrong == {}, "a module may import what is above it in ORDER only"


def test_imports_are_written_in_full():
  relative = [
    str(path.relative_to(PACKAGE))
    for path in sorted(PACKAGE.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ImportFrom) and node.level
  ]
  assert relative == []


def test_a_wrong_import_is_seen():
  source = "def f():\n  from marjax.parallel import mesh\nimport marjax.head.x"
  imported = imported_parts(ast.parse(source))
  assert violations("backbone", imported) == {"parallel", "head"}
  assert violations("train", imported) == set()


def test_importing_marjax_is_light():
  code = "import sys; from marjax import *; print(*sys.modules)"
  shown = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  loaded = shown.split()
  heavy = {name.split(".")[0] for name in loaded} & set(HEAVY)
  assert "marjax.pipeline" in loaded
  assert not heavy, f"import marjax also imports {', '.join(sorted(heavy))}"
  assert len(loaded) < MAX_MODULES, f"import marjax imports {len(loaded)}"


def test_a_command_begins_at_once():
  code = "import sys, marjax.__main__; print(*sys.modules)"
  command = [sys.executable, "-c", code]
  shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  loaded = shown.stdout.decode().split()
  assert "marjax.cli.interrupts" in loaded
  assert not {"jax", "numpy", "flax"} & set(loaded)
