"""Every path of every verb, and of Python, goes through `outputs.path_of`."""

import argparse
import re
from pathlib import Path

import pytest

import marjax
from marjax import outputs
from marjax.cli import main
from marjax.convert import fetching
from marjax.release import loading

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests/train/tiny.py")

# A command for each flag that is a path; PATH stands for it. The others are
# right as far as that flag is looked at.
EYE = ("--network", "mobilenet")

FLAGS = {
  ("train", "config"): ["--config", "PATH", "--workdir", "w"],
  ("train", "workdir"): ["--config", TINY, "--workdir", "PATH"],
  ("fit-codebook", "config"): ["--config", "PATH", "--out", "o"],
  ("fit-codebook", "out"): ["--config", TINY, "--out", "PATH"],
  ("preflight", "config"): ["--config", "PATH", "--topology", "here"],
  ("preflight", "out"): [
    *("--config", TINY, "--topology", "here", "--out", "PATH"),
  ],
  ("generate", "checkpoint"): [
    *("--checkpoint", "PATH", "--labels", "0", "--out", "a.png"),
  ],
  ("generate", "out"): [
    *("--checkpoint", "x", "--labels", "0", "--out", "PATH.png"),
  ],
  ("edit", "checkpoint"): [
    *("--checkpoint", "PATH", "--image", "i.png", "--mask", "left"),
    *("--out", "a.png"),
  ],
  ("edit", "out"): [
    *("--checkpoint", "x", "--image", "i.png", "--mask", "left"),
    *("--out", "PATH.png"),
  ],
  ("app", "checkpoint"): ["--checkpoint", "PATH"],
  ("evaluate", "checkpoint"): ["--checkpoint", "PATH", "--out", "o"],
  ("evaluate", "out"): ["--checkpoint", "x", "--out", "PATH"],
  ("convert", "source"): ["PATH", "--out", "o"],
  ("convert", "out"): ["x.pth", "--out", "PATH"],
  ("convert", "class_names"): ["x.pth", "--out", "o", "--class_names", "PATH"],
  ("convert", "autoencoder"): ["i.png", "--out", "o", "--autoencoder", "PATH"],
  ("export", "checkpoint"): ["--checkpoint", "PATH", "--out", "o"],
  ("export", "out"): ["--checkpoint", "x", "--out", "PATH"],
  ("fit-classifier", "config"): ["--config", "PATH", "--out", "o"],
  ("fit-classifier", "out"): ["--config", TINY, "--out", "PATH"],
  ("convert", "file"): ["mobilenet", "PATH", "--out", "o"],
  ("cache-latents", "out"): ["--verify", "--out", "PATH"],
  ("score", "images"): ["PATH", *EYE, "--weights", "i.png"],
  ("score", "against"): [
    *("i.png", "--against", "PATH", *EYE, "--weights", "i.png"),
  ],
  ("score", "control"): [
    *("i.png", "--control", "PATH", *EYE, "--weights", "i.png"),
  ],
  ("score", "weights"): ["i.png", *EYE, "--weights", "PATH"],
  ("score", "out"): [
    *("i.png", "--out", "PATH", *EYE, "--weights", "i.png"),
  ],
  ("statistics", "images"): [
    *("PATH", "--out", "o", *EYE, "--weights", "i.png"),
  ],
  ("statistics", "weights"): [
    *("i.png", "--out", "o", *EYE, "--weights", "PATH"),
  ],
  ("statistics", "out"): [
    *("i.png", "--out", "PATH", *EYE, "--weights", "i.png"),
  ],
}

# Their files are read only when weights are loaded or data are: the functions
# that read them are looked at by name.
LATER = {
  ("data", "out"): "cli/data.py",
  ("edit", "image"): "cli/edit.py",
  ("edit", "mask"): "cli/edit.py",
  ("evaluate", "data_dir"): "data/folders.py",
  ("evaluate", "weights"): "evaluate/networks/weights.py",
  ("push", "picture"): "convert/hub.py",
  ("push", "report"): "convert/hub.py",
  ("cache-latents", "data_dir"): "data/folders.py",
  ("cache-latents", "autoencoder"): "convert/fetching.py",
}
IS_PATH = re.compile(r"^(FILE|FOLDER|PATH|CACHE|SOURCE|PLACE|IMAGES)")


def path_flags():
  """(verb, name) of each argument whose placeholder is one of a path."""
  return {
    (verb, action.dest)
    for verb, module in main.VERBS.items()
    for action in declared(module)
    if IS_PATH.match(action.metavar or "")
  }


def declared(module):
  parser = argparse.ArgumentParser()
  module.add_flags(parser)
  return parser._actions


def said(argv, capsys):
  assert main.main(argv) == 2
  (line,) = capsys.readouterr().err.splitlines()[-1:]
  return line


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """A home folder that holds a file `f`, and another folder to run in."""
  (tmp_path / "home").mkdir()
  (tmp_path / "home/f").write_text("f")
  (tmp_path / "here").mkdir()
  (tmp_path / "here/i.png").write_text("i")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path / "here")
  return tmp_path / "home"


def test_every_flag_that_is_a_path_is_listed():
  assert path_flags() == {*FLAGS, *LATER}
  for name in LATER.values():
    text = (ROOT / "marjax" / name).read_text()
    assert re.search(r"\b(path_of|local)\(", text), name


@pytest.mark.parametrize(("verb", "flag"), FLAGS)
def test_a_path_is_expanded(verb, flag, home, capsys):
  """What is below a file can be neither read nor written: it is named."""
  argv = [word.replace("PATH", "~/f/x") for word in FLAGS[verb, flag]]
  line = said([verb, *argv], capsys)
  assert str(home / "f") in line or "~/f/x" in line, line
  assert not (home.parent / "here/~").exists()


@pytest.mark.parametrize("name", ["", "a\0b"])
@pytest.mark.parametrize(("verb", "flag"), FLAGS)
def test_no_name_is_refused(verb, flag, name, capsys):
  words = FLAGS[verb, flag]
  if name == "" and not any(word == "PATH" for word in words):
    pytest.skip("an ending is a name")
  argv = [name if w == "PATH" else w.replace("PATH", name) for w in words]
  line = said([verb, *argv], capsys)
  assert "expected" in line
  assert len(line) < 700
  assert line.isprintable()


def test_python_expands_too(home):
  release = home / "f"
  for call in (
    lambda: marjax.load("~/f"),
    lambda: fetching.convert("~/none", "~/out", progress=False),
    lambda: loading.export("~/none", "~/out"),
  ):
    with pytest.raises((ValueError, OSError)) as caught:
      call()
    assert "here/~" not in str(caught.value)
  assert fetching.find("~/f") == release
  assert outputs.local("~/f") == release


@pytest.mark.parametrize("name", ["MARJAX_MODELS", "MARJAX_DOWNLOADS"])
def test_variables_are_expanded(name, home, monkeypatch):
  monkeypatch.setenv(name, "~/m")
  folder = {
    "MARJAX_MODELS": fetching.models_dir,
    "MARJAX_DOWNLOADS": fetching.downloads_dir,
  }[name]
  assert folder() == home / "m"


def test_nobody_else_expands():
  expanding = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "marjax").rglob("*.py")
    if "expanduser" in path.read_text()
  ]
  assert expanding == ["marjax/outputs.py"]
