"""What differs from the published program: tags in the code = rows in the docs.

In the code      DIFFERS: name. and a sentence, in a comment or a docstring
In the docs      a row of docs/differences.md whose first cell is `name`
"""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TAG = re.compile(r"DIFFERS: ([a-z0-9-]+)\.")
BARE = re.compile(r"DIFFERS(?!: [a-z0-9-]+\.)")
ROW = re.compile(r"^\|\s*`([a-z0-9-]+)`\s*\|", re.MULTILINE)


def sources() -> dict[Path, str]:
  return {
    path: path.read_text() for path in sorted((ROOT / "marjax").rglob("*.py"))
  }


def test_every_tag_has_a_name():
  bare = [path.name for path, text in sources().items() if BARE.search(text)]
  assert not bare, f"write DIFFERS: name. in {', '.join(bare)}"


def test_code_and_docs_list_the_same_differences():
  tags = Counter(TAG.findall("\n".join(sources().values())))
  rows = Counter(ROW.findall((ROOT / "docs" / "differences.md").read_text()))
  assert set(tags) == set(rows)
  twice = [name for name, count in (tags + rows).items() if count != 2]
  assert not twice, f"tagged or listed more than once: {', '.join(twice)}"


def test_tags_and_rows_are_recognised():
  assert TAG.findall("DIFFERS: mask-ratio. The program") == ["mask-ratio"]
  assert BARE.search("DIFFERS the program")
  assert ROW.findall("| name |\n|---|\n| `order` | a |") == ["order"]
