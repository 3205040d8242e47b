"""What README says is so: its Python runs, its commands exist.

Every ```python block runs, in order and in one namespace, in a folder where
out/digits holds a tiny trained model. The commands of ```sh blocks are parsed,
not run: `marjax` lines by the command line's own parser, `make` lines against
the Makefile.
"""

import re
import shlex
from pathlib import Path

import pytest

from marjax.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
  """The fenced blocks of one language."""
  return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(text: str) -> list[list[str]]:
  """Words of every command in the sh blocks; a backslash continues a line."""
  lines = "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
  words = [
    shlex.split(line.removeprefix("$ "), comments=True) for line in lines
  ]
  return [command for command in words if command]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where README's Python runs: out/digits is a trained model."""
  folder = tmp_path_factory.mktemp("readme")
  config = ROOT / "configs" / "digits.py"
  workdir = folder / "out" / "digits"
  flags = ["--config", f"{config}:laptop", "--workdir", str(workdir)]
  assert main.main(["train", *flags]) == 0
  return folder


def test_python_runs(folder, monkeypatch):
  monkeypatch.chdir(folder)
  namespace = {}
  assert blocks(README, "python")
  for block in blocks(README, "python"):
    exec(compile(block, "README.md", "exec"), namespace)


def test_commands_exist():
  makefile = (ROOT / "Makefile").read_text()
  assert commands(README)
  for program, *words in commands(README):
    if program == "make":
      assert re.search(rf"^{words[0]}:", makefile, re.M), words[0]
    elif program == "marjax":
      assert main.parse(words).verb == words[0]
    elif [program, *words[:2]] == ["python", "-m", "marjax"]:
      assert main.parse(words[2:]).verb == words[2]


def test_configs_and_links_exist():
  named = set(re.findall(r"configs/\w+\.py", README))
  named |= set(re.findall(r"\]\((?!http)([^)#]+)", README))
  assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_blocks_and_commands_are_recognised():
  text = "```sh\n$ marjax train \\\n  --config a.py  # long\n```\n"
  assert commands(text) == [["marjax", "train", "--config", "a.py"]]
  with pytest.raises(SystemExit):
    main.parse(["train", "--config", "a.py", "--workdirs", "b"])
