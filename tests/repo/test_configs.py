"""Every config is a short document, and builds with its variants."""

import ast
import re
from pathlib import Path

import pytest

from marjax.cli import configs

ROOT = Path(__file__).parents[2]
CONFIGS = [
  path
  for path in sorted((ROOT / "configs").glob("*.py"))
  if "def get_config(" in path.read_text()  # others are what configs share
]


def variants(path: Path) -> list[str]:
  """The names after a colon that open a line of the docstring."""
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  return re.findall(r"(?:^|\s{2,}):(\w+)\s", docstring)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_says_what_it_is(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  for heading in ("Command", "Cost", "Expected", "Variants"):
    assert re.search(rf"^{heading} +\S", docstring, re.MULTILINE), heading
  assert "laptop" in variants(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_and_its_variants_build(path):
  experiments = {
    variant: configs.load(f"{path}:{variant}")
    for variant in ["", *variants(path)]
  }
  assert experiments[""].name == path.stem
  assert len(set(experiments.values())) == len(experiments)
  for experiment in experiments.values():
    hash(experiment)
    experiment.model.build()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_unknown_variant_is_refused(path):
  with pytest.raises(ValueError, match="no variant 'nonsense'; expected"):
    configs.load(f"{path}:nonsense")
