"""Advice that messages give is followed, until the command is accepted.

Each case is a command that goes wrong. What its message advises is taken out of
the message, done, and the command given again, a few times if another message
comes. A message without advice that can be followed fails the test by name.
"""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image

from marjax.cli import main
from marjax.parallel import hosts
from marjax.release import json_files
from marjax.train import loop, profile
from marjax.train.state import TrainState

TINY = str(Path(__file__).parents[1] / "train/tiny.py")
TRAIN = ["train", "--config", TINY, "--workdir", "run"]
TRAIN += ["--config.training.num_steps=2"]
PICTURES = ["--config.data.source=folder", "--config.data.data_dir=pictures"]
GENERATE = ["generate", "--checkpoint", "release", "--labels", "0"]
GENERATE += ["--num_ar_steps", "2", "--head.num_steps", "2"]

MOST_ROUNDS = 4


def changed(argv, flag, value):
  """The command with --FLAG=VALUE, in place of what it said of that flag."""
  rest = [word for word in argv if not word.startswith(f"{flag}=")]
  return [*rest, f"{flag}={value}"]


def setting(argv, found):
  return changed(argv, f"--config.{found[1]}", found[2])


def multiple(argv, found):
  """The next size below that is a multiple, or the least one."""
  size, part = int(found[2]), int(found[3])
  return changed(argv, f"--config.{found[1]}", max(part, size // part * part))


def flag(argv, found):
  return [*argv, *shlex.split(found[1])]


def instead(argv, found):
  """Another command altogether; capitals stand for what a person chooses."""
  words = shlex.split(found[1].replace("FOLDER", "made"))
  return words[1:]


def meant(argv, found):
  return [found[2] if word == found[1] else word for word in argv]


def steps(argv, found):
  start = argv.index("--profile_steps")
  return [*argv[: start + 1], found[1], *argv[start + 2 :]]


def one_of_two(argv, found):
  return changed(argv, f"--config.{found[2]}", "none")


# What messages say → what a person then does.
RULES = [
  (r"pass (--[a-z_]+(?: \d+)?)", flag),
  (r"set ((?:data|training|mesh)\.[a-z_]+) to (\d+)", setting),
  (r"lower (training\.batch_size) to (\d+)", setting),
  (r"(model\.[a-z_.]+) is \d+; expected 0 or data\.\w+ = (\d+)", setting),
  (r"(training\.batch_size) is (\d+); expected a multiple of (\d+)", multiple),
  (
    r"or '\.' if the class folders lie directly in",
    lambda argv, _: changed(argv, "--config.data.train_split", "."),
  ),
  (
    r"mesh .* with one (-1) for the rest",
    lambda argv, found: changed(argv, "--config.mesh.data", found[1]),
  ),
  (r"(training\.\w+) and (training\.\w+): give exactly one", one_of_two),
  (r"expected steps within (\d+:\d+)", steps),
  (r"(marjax (?:convert|export) .* --out \S+?)\.?$", instead),
  (r"invalid choice: '([\w-]+)' .*: did you mean ([\w-]+)\?", meant),
]


def pictures(folder):
  for name in ("a", "b", "c"):
    (folder / name).mkdir(parents=True)
    for index in range(3):
      pixels = np.full((4, 4), 80 * index, np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{index}.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
  """Pictures of three classes, a small release; commands run there."""
  monkeypatch.chdir(tmp_path)
  pictures(tmp_path / "pictures" / "train")
  return tmp_path


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  return small.save_release(tmp_path_factory.mktemp("release") / "release")


class AcceptedError(Exception):
  """Training would take its first step."""


@pytest.fixture(autouse=True)
def training(monkeypatch):
  """Ends where the first step would be taken: all checks are before it."""

  def take(*args):
    raise AcceptedError

  nothing = TrainState(None, {}, {}, ())
  monkeypatch.setattr(loop, "restore_or_init", lambda *args: (nothing, 0))
  monkeypatch.setattr(profile.Profile, "run", take)


def run(argv, capsys):
  """Exit code and what was said last."""
  try:
    code = main.main(argv)
  except AcceptedError:
    code = 0
  except SystemExit as stop:
    code = stop.code
  lines = capsys.readouterr().err.splitlines()
  return code, (lines or [""])[-1]


def followed(argv, capsys):
  """Follows advice until the command is accepted; the rules that did it."""
  used, heard = [], []
  for _ in range(MOST_ROUNDS):
    code, said = run(argv, capsys)
    if code == 0:
      return used
    matches = [(re.search(rule, said), rule, do) for rule, do in RULES]
    matches = [match for match in matches if match[0]]
    assert matches, f"no advice that can be followed: {said}"
    found, rule, do = matches[0]
    assert said not in heard, f"followed, and not accepted: {said}"
    heard.append(said)
    used.append(rule)
    argv = do(argv, found)
  raise AssertionError(f"advice leads nowhere: {said}")


@pytest.mark.parametrize(
  ("argv", "rounds"),
  [
    ([*TRAIN, *PICTURES], 2),
    ([*TRAIN, "--config.training.batch_size=200"], 1),
    ([*TRAIN, "--config.mesh.data=3"], 1),
    ([*TRAIN, "--config.training.total_epochs=1"], 1),
    ([*TRAIN, "--config.training.num_microbatches=3"], 2),
    ([*TRAIN, "--profile_steps", "1:9"], 1),
    (["trian", *TRAIN[1:]], 1),
  ],
)
def test_training_goes_on_as_advised(argv, rounds, place, capsys):
  assert len(followed(argv, capsys)) == rounds


def test_class_folders_without_a_split(place, capsys):
  (place / "pictures/train").rename(place / "all")
  argv = [*TRAIN, "--config.data.source=folder", "--config.data.data_dir=all"]
  argv += ["--config.data.num_classes=3"]
  argv += ["--config.model.backbone.condition.num_classes=3"]
  assert len(followed(argv, capsys)) == 1


@pytest.mark.slow
def test_results_that_are_there(place, release, capsys):
  (place / "release").symlink_to(release)
  verbs = {
    "a.npy": GENERATE,
    "preflight.json": [
      *("preflight", "--config", TINY, "--topology", "here"),
    ],
  }
  for name, argv in verbs.items():
    (place / name).write_text("precious")
    out = "." if name.endswith(".json") else name
    assert len(followed([*argv, "--out", out], capsys)) == 1
    assert (place / name).read_bytes() != b"precious"


def test_a_file_that_is_no_release(place, capsys):
  """The command that its message gives is one that can be typed."""
  (place / "my file.safetensors").write_bytes(b"nothing")
  argv = [*GENERATE, "--out", "a.npy"]
  argv[argv.index("release")] = "my file.safetensors"
  code, said = run(argv, capsys)
  assert code == 2
  command = shlex.split(re.search(r"(marjax convert .*)\.$", said)[1])
  assert main.parse(command[1:]).source.endswith("my file.safetensors")


def test_a_json_file_that_was_changed_on_purpose():
  text = json_files.write_json({"one": 1, "two": 2})
  edited = text.replace(b'"two": 2', b'"two": 3')
  with pytest.raises(ValueError, match="delete its line") as caught:
    json_files.read_json(edited, "a.json")
  name = re.search(r"delete its line (\w+)\.", str(caught.value))[1]
  lines = [line for line in edited.split(b"\n") if name.encode() not in line]
  assert len(lines) == edited.count(b"\n")
  assert json_files.read_json(b"\n".join(lines), "a.json") == {
    "one": 1,
    "two": 3,
  }


def test_one_process_where_several_were_announced(monkeypatch, place, capsys):
  said = []
  monkeypatch.setattr(hosts.log, "info", lambda text, *a: said.append(text % a))
  monkeypatch.setattr(hosts, "may_be_pod", lambda: False)
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
  initialize = functools.partial(setattr, hosts, "MEET_SECONDS", 300)
  monkeypatch.setattr(
    hosts.jax.distributed, "initialize", lambda *_, **__: initialize()
  )
  with hosts.joined():
    pass
  monkeypatch.setattr(hosts, "_last_words", [""])
  advice = re.search(r"pass (--\w+ \d)", said[0])[1]
  assert run([*TRAIN, *advice.split()], capsys)[0] == 0
  assert len(said) == 1


def test_a_platform_that_is_not_there(place):
  command = [sys.executable, "-m", "marjax", *TRAIN]
  environment = {**main.os.environ, "JAX_PLATFORMS": "abacus"}
  root = str(Path(TINY).parents[2])
  done = subprocess.run(
    command,
    env=environment | {"PYTHONPATH": root},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "JAX_PLATFORMS is 'abacus'" in line
  # The platform of these tests.
  assert re.search(r"set it to (\w+)", line)[1] == "cpu"
