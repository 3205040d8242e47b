"""Config files and overrides: what is accepted, and what is said otherwise."""

import math

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
  assert configs.load(DIGITS, ["config.name=123"]).name == "123"


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
    ("a.py", "import not_there", "imports not_there, which is neither beside"),
    ("a.py", "\n1 / 0", r"a.py fails at line 2 \(ZeroDivisionError: division"),
    ("a.py", "get_config = 3", r"has no get_config\(variant\)"),
    ("a.py", "def get_config(v):\n  return v.x", "fails at line 2 .*Attribute"),
    ("a.py", "def get_config(v):\n  return (1,)", "returned tuple; expected a"),
    ("a.py", "def get_config(v):\n  return {}", "config.name is missing"),
    ("a.py", "x = '\\N{nothing}'", "is not valid Python"),
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
  with pytest.raises(ValueError, match="is a folder; expected a config file"):
    configs.load(str(tmp_path))


def test_a_config_without_variants(tmp_path):
  (tmp_path / "a.py").write_text("def get_config():\n  return {'name': 'a'}")
  with pytest.raises(ValueError, match=r"config\.codec is missing"):
    configs.load(str(tmp_path / "a.py"))
  with pytest.raises(ValueError, match="has no variants, and 'big' was asked"):
    configs.load(f"{tmp_path}/a.py:big")
