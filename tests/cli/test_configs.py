"""Config files and overrides: what is accepted, and what is said otherwise."""

import functools
import math
import shutil
import subprocess
import sys
import zipfile

import pytest

from marjax.cli import configs

DIGITS = "configs/digits.py"


@pytest.fixture(autouse=True)
def at_root(monkeypatch, pytestconfig):
  monkeypatch.chdir(pytestconfig.rootpath)


def test_an_override_sets_a_key():
  experiment = configs.load(
    f"{DIGITS}:laptop", ["config.training.num_steps=7", "config.seed=3"]
  )
  assert experiment.training.num_steps == 7
  assert experiment.seed == 3


def test_an_override_reaches_fields_that_the_file_leaves_out():
  experiment = configs.load(
    DIGITS, ["config.mesh.fsdp=2", "config.sampling.temperature=1"]
  )
  assert experiment.mesh.fsdp == 2
  assert experiment.sampling.temperature == 1.0


def test_text_stays_text():
  overrides = ["name=123", "data.data_dir=1e3=x", "model.backbone.remat=none"]
  experiment = configs.load(DIGITS, [f"config.{text}" for text in overrides])
  assert experiment.name == "123"
  assert experiment.data.data_dir == "1e3=x"
  assert experiment.model.backbone.remat == "none"


def test_numbers_as_python_writes_them():
  overrides = [
    "config.training.num_steps=1_000",
    "config.sampling.num_buckets=none",
  ]
  experiment = configs.load(DIGITS, overrides)
  assert experiment.training.num_steps == 1000
  assert experiment.sampling.num_buckets is None


def test_of_two_overrides_the_last_counts():
  """So a command can be given again with one more."""
  assert configs.load(DIGITS, ["config.seed=1", "config.seed=2"]).seed == 2


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("3", 3),
    ("1e-4", 1e-4),
    ("true", True),
    ("False", False),
    ("none", None),
    ("(1, 2)", (1, 2)),
    ("cosine", "cosine"),
    ("a.b/c", "a.b/c"),
    ("inf", math.inf),
  ],
)
def test_literals(text, value):
  assert configs.literal(text) == value


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("config.training.num_step=3", r"num_step is not .* did you mean num_st"),
    ("config.trainin.num_steps=3", r"trainin is not .* did you mean training"),
    (
      "config.training.num_steps=x",
      "num_steps is 'x'; expected a whole number",
    ),
    (
      "config.training.num_steps=1.5",
      r"num_steps is 1.5 \(float\); expected a whole",
    ),
    ("config.training.schedule=up", r"schedule is 'up'; expected one of 'cons"),
    ("config.name.x=3", r"config.name is a value without keys"),
    ("config.training.num_steps=1e3", r"is 1000.0 \(float\); expected a whole"),
    ("config.training.num_steps=", r"num_steps is ''; expected a whole"),
    (
      "config.training.num_steps={1, 2}",
      r"is {1, 2} \(set\); expected a whole",
    ),
    (
      "config.training={'num_steps': 3}",
      r"set them one by one, as in --config.t",
    ),
    ("config.sampling=quick", r"as in --config.sampling.num_ar_steps=VALUE"),
    ("config..x=3", r"config. is not a known key"),
    ("config.\x1b=3", r"^config.\\x1b is not a known key"),
    ("config.name", r"--config.name has no value; write --config.name=VALUE"),
  ],
)
def test_a_wrong_override_is_explained(override, message):
  with pytest.raises(ValueError, match=message):
    configs.load(DIGITS, [override])


def test_text_that_the_file_leaves_out_stays_text_too():
  overrides = ["config.data.data_dir=2024", "config.data.test_split=none"]
  data = configs.load(DIGITS, overrides).data
  assert (data.data_dir, data.test_split) == ("2024", "none")


def test_an_override_may_be_two_words():
  assert configs.split(["train", "--config.seed", "3", "--config", "a.py"]) == (
    ["config.seed=3"],
    ["train", "--config", "a.py"],
  )
  for argv in (["--config.seed"], ["--config.seed", "--debug"]):
    with pytest.raises(ValueError, match=r"--config\.seed has no value; write"):
      configs.split(argv)


@pytest.mark.parametrize("text", ["[" * 9000, "9" * 9000, "x" * 20_000])
def test_a_value_that_is_none_is_told(text):
  with pytest.raises(ValueError, match=r"expected at most|expected a whole"):
    configs.load(DIGITS, [f"config.training.num_steps={text}"])


CONFIG = """
from ml_collections import ConfigDict
from configs import digits
import {neighbour}
def get_config(variant):
  config = digits.get_config(variant)
  config.unlock()
  config.name = {neighbour}.NAME
  return config
"""


def test_a_copied_config_finds_its_neighbours(tmp_path):
  (tmp_path / "beside_it.py").write_text("NAME = 'copied'")
  path = tmp_path / "con:fig.py"
  path.write_text(CONFIG.format(neighbour="beside_it"))
  assert configs.load(str(path)).name == "copied"
  assert configs.load(f"{path}:laptop").name == "copied"


def test_an_unknown_variant_is_explained():
  with pytest.raises(ValueError, match="no variant 'huge'; expected laptop"):
    configs.load(f"{DIGITS}:huge")


def test_a_missing_file_is_explained():
  with pytest.raises(FileNotFoundError, match=r"digit.py does not exist; expe"):
    configs.load("configs/digit.py")


@pytest.mark.parametrize(
  ("name", "source", "message"),
  [
    ("a.py", "x = (", r"a.py is not valid Python: line 1"),
    ("a.py", "x = 1", r"has no get_config\(variant\)"),
    ("a.txt", "x = 1", r"is no Python file"),
    (
      "a.py",
      "import not_there",
      r"No module named 'not_there'; what it imports",
    ),
    ("a.py", "\n1 / 0", r"a.py fails: line 2: ZeroDivisionError: division"),
    ("a.py", "get_config = 3", r"has no get_config\(variant\)"),
    ("a.py", "def get_config(v):\n  return v.x", "fails: line 2: Attribute"),
    ("a.py", "def get_config(v):\n  return (1,)", "returns tuple; expected a"),
    ("a.py", "def get_config(v):\n  return {}", "config.name is missing"),
    ("a.py", "x = '\\N{nothing}'", "is not valid Python"),
    ("a.py", "x = 1\0", r"a.py.*null bytes"),
    ("a.py", "x = " + "(" * 500, r"a.py is not valid Python: line 1: too many"),
    ("a.py", "exit(3)", r"a.py fails: line 1: SystemExit: 3; correct"),
    (
      "a.py",
      "def get_config(v):\n  import no",
      r"line 2: No module named 'no'",
    ),
    ("a.py", "from math import no", r"a.py cannot .*: cannot import name 'no'"),
    ("a.py", "def get_config(v): int('x')", r"a.py: line 1: invalid literal"),
    (
      "a.py",
      "def get_config(v): return {3: 4}",
      r"config.3 is not a known key",
    ),
    ("a.py", "def get_config(a, b): pass", r"be called with a variant alone"),
    ("a.py", "raise KeyError('\x1b' * 10**6)", r"KeyError: '[^\x1b]{9,310}; c"),
  ],
)
def test_a_file_that_is_no_config_is_explained(tmp_path, name, source, message):
  (tmp_path / name).write_text(source)
  with pytest.raises(ValueError, match=message) as told:
    configs.load(str(tmp_path / name))
  assert "\n" not in str(told.value)


def test_a_file_that_is_no_text_or_a_folder_is_explained(tmp_path):
  (tmp_path / "a.py").write_bytes(b"x = '\xff\xfe'")
  with pytest.raises(ValueError, match=r"a.py is not valid Python"):
    configs.load(str(tmp_path / "a.py"))
  with pytest.raises(ValueError, match="is a folder; name a file in it"):
    configs.load(str(tmp_path))


def test_a_config_without_variants(tmp_path):
  (tmp_path / "a.py").write_text("def get_config():\n  return {'name': 'a'}")
  with pytest.raises(ValueError, match=r"config\.codec is missing"):
    configs.load(str(tmp_path / "a.py"))
  with pytest.raises(ValueError, match="be called with a variant alone"):
    configs.load(f"{tmp_path}/a.py:big")


BASE = """
from ml_collections import ConfigDict
def base():
  return ConfigDict({
    "name": NAME,
    "data": {"source": "synthetic", "image_size": 8, "num_classes": 2},
    "codec": {"image_size": 8, "patch": 4},
    "model": {
      "backbone": {"num_tokens": 4, "token_dim": 48, "width": 8,
                   "num_heads": 1, "condition": {"num_classes": 2}},
      "head": {"token_dim": 48},
    },
    "training": {"batch_size": 8, "num_steps": 1},
  })
"""


def test_a_config_imports_its_neighbour(tmp_path, monkeypatch):
  lines = {
    "one": "import shared",
    "two": "from two import shared",
    "six:six": "import shared",
  }
  before = sys.modules.copy(), sys.path[:]
  for name, line in lines.items():
    folder = tmp_path / name
    folder.mkdir()
    (folder / "shared.py").write_text(BASE.replace("NAME", repr(name)))
    source = f"{line}\ndef get_config():\n  return shared.base()"
    (folder / "a:b.py").write_text(source)
    # Each has its own neighbour, although the names are the same.
    assert configs.load(str(folder / "a:b.py")).name == name
    with pytest.raises(ValueError, match="called with a variant alone"):
      configs.load(str(folder / "a:b.py:laptop"))
  assert (sys.modules, sys.path) == before
  (tmp_path / "one" / "shared.py").write_text("\n\nx = y")
  with pytest.raises(ValueError, match=r"shared.py fails: line 3: NameError"):
    configs.load(str(tmp_path / "one" / "a:b.py"))
  (tmp_path / "one" / "shared.py").write_text("\n  x = 1")
  with pytest.raises(
    ValueError, match=r"shared.py is not valid Python: line 2"
  ):
    configs.load(str(tmp_path / "one" / "a:b.py"))
  monkeypatch.setenv("HOME", str(tmp_path))
  assert configs.load("~/two/a:b.py").name == "two"


@pytest.mark.parametrize(
  ("epochs", "message"),
  [
    ("1e-3", r"total_epochs is 0.001, which is less than one step of 64 imag"),
    ("1e6", r"total_epochs is 1e\+06, which is 15625000000 steps .*: lower it"),
  ],
)
def test_epochs_are_a_number_of_steps_that_can_be_counted(epochs, message):
  overrides = [f"total_epochs={epochs}", "num_steps=none"]
  training = configs.load(
    DIGITS, [f"config.training.{text}" for text in overrides]
  ).training
  with pytest.raises(ValueError, match=message):
    training.steps(1000 if epochs == "1e-3" else 10**6)


def test_configs_that_come_along_have_names(tmp_path, monkeypatch):
  here = configs.load(f"{DIGITS}:laptop", ["config.seed=3"])
  monkeypatch.chdir(tmp_path)
  assert configs.load("marjax://digits:laptop", ["config.seed=3"]) == here
  with pytest.raises(ValueError, match=r"expected one of .*digits, .*mar_b"):
    configs.load("marjax://digit")
  with pytest.raises(ValueError, match="the config marjax://cells does not"):
    configs.load("marjax://cells")


def cloned(root, source):
  for name in ("marjax", "configs"):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / name, source / name, ignore=ignored)
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(root / name, source)


@pytest.mark.slow
def test_a_clone_is_found_from_the_folder_that_holds_it(tmp_path, pytestconfig):
  cloned(pytestconfig.rootpath, clone := tmp_path / "marjax")
  build = "from setuptools import build_meta; build_meta.build_editable('.')"
  run = functools.partial(
    subprocess.run, check=True, capture_output=True, text=True
  )
  run([sys.executable, "-c", build], cwd=clone)
  (wheel,) = clone.glob("marjax-*.whl")
  zipfile.ZipFile(wheel).extractall(tmp_path / "site")
  code = (
    "import site; site.addsitedir('site'); from importlib import util;"
    "print(util.find_spec('marjax').origin)"
  )
  alone = [sys.executable, "-S", "-c", code]
  found = run(alone, cwd=tmp_path, env={}).stdout.strip()
  assert found == str(clone / "marjax" / "__init__.py")


@pytest.mark.slow
def test_a_wheel_has_the_configs(tmp_path, pytestconfig):
  source, wheels = tmp_path / "source", tmp_path / "wheels"
  cloned(pytestconfig.rootpath, source)
  build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
  subprocess.run(
    [sys.executable, *build, "--wheel-dir", wheels, source], check=True
  )
  (wheel,) = wheels.glob("marjax-*.whl")
  zipfile.ZipFile(wheel).extractall(tmp_path / "site")
  code = (
    "import marjax; from marjax.cli import configs;"
    "print(marjax.__file__, configs.load('marjax://table1:mar,laptop').name)"
  )
  shown = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path / "site",
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  assert shown.split() == [
    str(tmp_path / "site" / "marjax" / "__init__.py"),
    "table1_mar",
  ]
  assert (tmp_path / "site" / "marjax" / "py.typed").is_file()
