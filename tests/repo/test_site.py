"""The site says what it should; that its links lead somewhere, `make docs`."""

import ast
import re
from pathlib import Path

import marjax

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CITED = re.compile(r"spec\s+sections?\s+((?:\d|,|\s|and)+)")


def cited() -> dict[str, set[str]]:
  """Section of the spec → modules whose docstrings cite it."""
  sections = {}
  for path in sorted((ROOT / "marjax").rglob("*.py")):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, documented):
        continue
      for numbers in CITED.findall(ast.get_docstring(node) or ""):
        for number in re.findall(r"\d", numbers):
          sections.setdefault(number, set()).add(path.stem)
  return sections


def test_sections_that_docstrings_cite_are_there():
  headings = re.findall(r"^## (\d)\. ", (DOCS / "spec.md").read_text(), re.M)
  assert headings == list("1234567")
  assert set(cited()) <= set(headings)
  assert {"blocks", "kl"} <= cited()["1"]


def test_every_public_name_has_its_place():
  text = "".join(path.read_text() for path in DOCS.glob("api/*.md"))
  shown = re.findall(r"^::: (\S+)$", text, re.M)
  names = {f"marjax.{name}" for name in marjax.__all__ if name[0] != "_"}
  assert names <= set(shown)
  assert len(set(shown)) == len(shown)


def test_differences_that_the_spec_names_are_rows():
  rows = re.findall(
    r"^\| `([\w-]+)` \|", (DOCS / "differences.md").read_text(), re.M
  )
  spec = (DOCS / "spec.md").read_text()
  named = re.findall(r"\((`[\w-]+`(?:, `[\w-]+`)*)\)", spec)
  assert {*re.findall(r"[\w-]+", " ".join(named))} == set(rows)
