"""Advice of messages names what there is: flags, settings, verbs, extras.

Every text of the package that a user may read is searched, wherever it stands:
a message that is never shown in a test may still be followed one day.
tests/cli/test_advice.py follows some.
"""

import ast
import dataclasses
import functools
import re
import typing
from pathlib import Path

from marjax import schema
from marjax.cli import main
from marjax.experiment import Experiment

ROOT = Path(__file__).parents[2]
GROUPS = "data|codec|model|mesh|training|sampling"

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z_]+)\b(?!\.)")
KEY = re.compile(rf"(?<![\w./])(?:config\.)?((?:{GROUPS})(?:\.[a-z_]+)+)(?!\()")
VERB = re.compile(r"(?<![\w.])marjax (?!of\b|is\b)([a-z][a-z-]+)")
EXTRA = re.compile(r"marjax\[(\w+)\]")
VARIABLE = re.compile(r"\bMARJAX_[A-Z]+\b")

# After "marjax" in a sentence about it, not in a command.
WORDS = {"exported", "made", "wrote", "was", "in", "release", "latents"}
WORDS |= {"images"}

# Of other programs: TensorBoard, libtpu.
FOREIGN = {"logdir", "fibers_default_thread_stack_size"}


def texts(source: str) -> list[tuple[int, str]]:
  """Line and text of all strings but docstrings; {} stands for a value."""
  tree = ast.parse(source)
  skipped = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      skipped.add(node.value)
    if isinstance(node, ast.JoinedStr):
      skipped.update(node.values)
  found = []
  for node in ast.walk(tree):
    if node in skipped:
      continue
    if isinstance(node, ast.JoinedStr):
      parts = [getattr(part, "value", "") for part in node.values]
      text = "".join(p if isinstance(p, str) else "{}" for p in parts)
      found.append((node.lineno, text))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      found.append((node.lineno, node.value))
  return found


def hints(cls) -> dict:
  """Fields of a dataclass, or of all that a field of that type may hold."""
  found = {}
  for option in schema.options(cls):
    if dataclasses.is_dataclass(option):
      found |= typing.get_type_hints(option)
  return found


def is_key(key: str) -> bool:
  """Whether an experiment has the setting, such as training.num_steps."""
  cls = Experiment
  for name in key.split("."):
    fields = hints(cls)
    if name not in fields:
      return False
    cls = fields[name]
  return True


@functools.cache
def flags() -> set[str]:
  """The flags of all verbs."""
  shown = []
  parser = main.build_parser()
  for action in parser._subparsers._group_actions:
    shown += [verb.format_help() for verb in action.choices.values()]
  return {*re.findall(r"--([a-z_]+)", " ".join(shown)), "version"} | FOREIGN


@functools.cache
def extras() -> dict[str, list[str]]:
  """What the extras of the package install."""
  tree = ast.parse((ROOT / "setup.py").read_text())
  (found,) = (
    ast.literal_eval(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword) and node.arg == "extras_require"
  )
  return found


@functools.cache
def variables() -> set[str]:
  """Environment variables that are read."""
  sources = "".join(
    path.read_text() for path in (ROOT / "marjax").rglob("*.py")
  )
  reads = r'(?:environ\.get|environ|_folder)[\[(]\s*"(MARJAX_\w+)"'
  return set(re.findall(reads, sources))


def wrong_advice(text: str) -> list[str]:
  """What a text names that is not there."""
  wrong = [f"--{flag}" for flag in FLAG.findall(text) if flag not in flags()]
  if " " in text:
    wrong += [key for key in KEY.findall(text) if not is_key(key)]
  wrong += [
    f"marjax {verb}"
    for verb in VERB.findall(text)
    if verb not in main.VERBS and verb not in WORDS
  ]
  wrong += [
    f"[{extra}]" for extra in EXTRA.findall(text) if extra not in extras()
  ]
  return wrong + [v for v in VARIABLE.findall(text) if v not in variables()]


def test_what_messages_name_is_there():
  wrong = [
    f"{path.relative_to(ROOT)}:{line}: {', '.join(names)} in {text!r}"
    for path in sorted((ROOT / "marjax").rglob("*.py"))
    for line, text in texts(path.read_text())
    if (names := wrong_advice(text))
  ]
  assert not wrong, "\n".join(["advice that cannot be followed:", *wrong])


def test_modules_that_are_missing_come_with_an_extra():
  packages = {"sklearn": "scikit-learn", "libtpu": "jax[tpu]"}
  packages |= {"jax_cuda12_plugin": "jax[cuda12]"}
  for module, extra in main.EXTRAS.items():
    installs = [re.split(r"[>=;]", name)[0] for name in extras()[extra]]
    wanted = packages.get(module, module)
    assert wanted in installs, f"marjax[{extra}] does not install {module}"


def test_wrong_advice_is_seen():
  assert wrong_advice("pass --overwrite; lower training.batch_size") == []
  assert wrong_advice("pass --overrite") == ["--overrite"]
  assert wrong_advice("set config.training.steps") == ["training.steps"]
  assert wrong_advice("set model.backbone.condition.num_classes") == []
  old = "model.backbone.num_classes"
  assert wrong_advice(f"set {old}") == [old]
  assert wrong_advice("run marjax trian") == ["marjax trian"]
  assert wrong_advice('pip install "marjax[gpu]"') == ["[gpu]"]
  assert wrong_advice("set MARJAX_HOME") == ["MARJAX_HOME"]
  source = 'raise ValueError(f"pass --{name} or" " --x")'
  assert texts(source) == [(1, "pass --{} or --x")]
