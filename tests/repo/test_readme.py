"""What README and the pages of docs say is so: Python runs, commands exist.

Every ```python block of a page runs, in order and in one namespace, in a folder
where out/digits holds a tiny trained model. What a page trains long it trains
here for a few steps: what it prints is not looked at. The commands of ```sh
blocks are parsed, not run: `marjax` lines by the command line's own parser,
`make` lines against the Makefile.
"""

import re
import shlex
from pathlib import Path

import pytest

from marjax import protocols, schema
from marjax.backbone.conditions import ClassesConfig
from marjax.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_README = 180
LONG, SHORT = "num_steps=1000", "num_steps=4"

of_each_page = pytest.mark.parametrize(
  "page", PAGES, ids=lambda page: page.stem
)


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
  """Where README's Python runs: out/digits is trained, mar-large a stand-in."""
  folder = tmp_path_factory.mktemp("readme")
  config = ROOT / "configs" / "digits.py"
  workdir = folder / "out" / "digits"
  flags = ["--config", f"{config}:laptop", "--workdir", str(workdir)]
  assert main.main(["train", *flags]) == 0
  save_stand_ins(folder / "models")
  return folder


def save_stand_ins(models: Path) -> None:
  """A small model of ImageNet's classes, where "mar-large" is looked for."""
  import dataclasses

  import jax
  import small
  from flax import linen as nn

  from marjax.backbone import classes
  from marjax.model import init_params
  from marjax.release import directory
  from marjax.release.card import Card

  backbone = dataclasses.replace(
    small.MODEL.backbone, condition=ClassesConfig(1000)
  )
  model = dataclasses.replace(small.MODEL, backbone=backbone)
  card = small.card(
    model=model,
    class_names=classes.imagenet(),
    presets={"published": small.EXPERIMENT.sampling},
    autoencoder="../kl16",
  )
  params = jax.jit(lambda key: nn.unbox(init_params(model, key)))
  directory.save(models / "mar-large", card, params(jax.random.key(0)))
  kl16 = Card("KL-16", small.CODEC)
  directory.save(models / "kl16", kl16, small.codec_params())


@pytest.mark.slow
@pytest.mark.parametrize(
  "page",
  [page for page in PAGES if blocks(page.read_text(), "python")],
  ids=lambda page: page.stem,
)
def test_python_runs(page, folder, monkeypatch):
  monkeypatch.chdir(folder)
  monkeypatch.setenv("MARJAX_MODELS", str(folder / "models"))
  # What a page registers is not there for other tests.
  kinds = {protocol: {**known} for protocol, known in schema._KINDS.items()}
  monkeypatch.setattr(schema, "_KINDS", kinds)
  namespace = {}
  for block in blocks(page.read_text(), "python"):
    exec(compile(block.replace(LONG, SHORT), page.name, "exec"), namespace)


def test_a_page_trains_long():
  pages = [page for page in PAGES if LONG in page.read_text()]
  assert [page.stem for page in pages] == ["head_library", "heads"]


@of_each_page
def test_commands_exist(page):
  makefile = (ROOT / "Makefile").read_text()
  for program, *words in commands(page.read_text()):
    if program == "make":
      assert re.search(rf"^{words[0]}:", makefile, re.M), words[0]
    elif program == "marjax":
      assert main.parse(words).verb == words[0]
    elif [program, *words[:2]] == ["python", "-m", "marjax"]:
      assert main.parse(words[2:]).verb == words[2]


@of_each_page
def test_configs_and_links_exist(page):
  text = page.read_text()
  configs = set(re.findall(r"configs/\w+\.py", text))
  assert [name for name in sorted(configs) if not (ROOT / name).exists()] == []
  links = set(re.findall(r"\]\((?!http)([^)#]+)", text))
  assert [to for to in sorted(links) if not (page.parent / to).exists()] == []


def test_readme_is_one_page():
  assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README
  assert blocks((ROOT / "README.md").read_text(), "python")
  assert commands((ROOT / "README.md").read_text())


@of_each_page
def test_pages_are_reached_from_readme(page):
  text = (ROOT / "README.md").read_text()
  assert page.stem == "README" or f"](docs/{page.name})" in text


@pytest.mark.parametrize(
  "name", ["Codec", "Condition", "BackboneConfig", "HeadConfig"]
)
def test_the_table_of_protocols_names_every_kind(name):
  text = (ROOT / "docs" / "architecture.md").read_text()
  (row,) = re.findall(rf"^\| `{name}`.*\|(.*)\|$", text, re.M)
  kinds = {part.kind for part in schema.options(getattr(protocols, name))}
  assert set(re.findall(r"`(\w+)`", row)) == kinds


def test_blocks_and_commands_are_recognised():
  text = "```sh\n$ marjax train \\\n  --config a.py  # long\n```\n"
  assert commands(text) == [["marjax", "train", "--config", "a.py"]]
  with pytest.raises(SystemExit):
    main.parse(["train", "--config", "a.py", "--workdirs", "b"])
