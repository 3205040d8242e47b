"""A work directory belongs to one configuration and to one process."""

import dataclasses
import fnmatch
import pathlib
import re
import shlex
from dataclasses import dataclass, field

import pytest
from flax.traverse_util import flatten_dict
from train.shared import tiny

from marjax.release.json_files import read_json
from marjax.schema import to_dict
from marjax.train import workdir as workdirs
from marjax.train.workdir import claim_workdir


@dataclass(frozen=True)
class Model:
  width: int = 8


@dataclass(frozen=True)
class Training:
  num_steps: int = 10
  learning_rate: float = 0.5
  batch_size: int = 4
  log_every: int = 5
  schedule: str = "constant"


@dataclass(frozen=True)
class Run:
  """Stands in for an Experiment."""

  name: str = "run"
  seed: int = 0
  model: Model = field(default_factory=Model)
  training: Training = field(default_factory=Training)


def with_training(**changes):
  return Run(training=dataclasses.replace(Training(), **changes))


def claim(workdir, experiment):
  with claim_workdir(workdir, experiment):
    return read_json((workdir / "config.json").read_bytes(), "config.json")


def trained(workdir, experiment):
  """A work directory in which that configuration has saved a checkpoint."""
  claim(workdir, experiment)
  (workdir / "checkpoints" / "10").mkdir(parents=True)


def test_the_first_claim_writes_the_configuration(tmp_path):
  workdir = tmp_path / "new" / "run"
  assert claim(workdir, Run(seed=3)) == dataclasses.asdict(Run(seed=3))


def test_the_same_configuration_may_come_back(tmp_path):
  trained(tmp_path, Run())
  claim(tmp_path, Run())


def test_what_was_never_saved_may_be_configured_anew(tmp_path):
  claim(tmp_path, Run(seed=1))
  (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
  assert claim(tmp_path, Run(seed=2)) == dataclasses.asdict(Run(seed=2))


def test_another_model_is_one_sentence_naming_the_keys(tmp_path):
  trained(tmp_path, Run())
  other = Run(seed=1, model=Model(width=16))
  with pytest.raises(ValueError, match="made with another conf") as caught:
    claim(tmp_path, other)
  message = str(caught.value)
  assert "model.width is 8 there and 16 here" in message
  assert "seed is 0 there and 1 here" in message
  assert "\n" not in message
  assert claim(tmp_path, Run()) == dataclasses.asdict(Run())


def test_batch_size_is_part_of_what_was_trained(tmp_path):
  trained(tmp_path, Run())
  with pytest.raises(ValueError, match=r"training\.batch_size is 4 there"):
    claim(tmp_path, with_training(batch_size=8))


def test_length_and_habits_may_change_and_are_kept(tmp_path):
  trained(tmp_path, Run())
  longer = with_training(num_steps=100, log_every=1)
  assert claim(tmp_path, longer) == dataclasses.asdict(longer)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_may_grow_and_not_lose_steps(tmp_path, schedule):
  trained(tmp_path, with_training(schedule=schedule))
  longer = with_training(schedule=schedule, num_steps=20)
  assert claim(tmp_path, longer) == dataclasses.asdict(longer)
  claim(tmp_path, with_training(schedule=schedule))
  with pytest.raises(
    ValueError, match=r"ends after 9 steps, and .* has done 10; expected at le"
  ):
    claim(tmp_path, with_training(schedule=schedule, num_steps=9))
  same = with_training(schedule=schedule)
  assert claim(tmp_path, same) == dataclasses.asdict(same)


def test_an_unreadable_configuration_is_one_sentence(tmp_path):
  trained(tmp_path, Run())
  (tmp_path / "config.json").write_text('{"name": "ru')
  with pytest.raises(ValueError, match=r"config\.json cannot be read"):
    claim(tmp_path, Run())
  (tmp_path / "config.json").write_text('{"nome": "run"}')
  with pytest.raises(ValueError, match="did you mean name"):
    claim(tmp_path, Run())


def test_checkpoints_without_configuration_are_refused(tmp_path):
  (tmp_path / "checkpoints" / "10").mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match=r"no config\.json"):
    claim(tmp_path, Run())


def test_a_file_in_the_way_is_one_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="cannot be written"):
    claim(tmp_path / "file", Run())


def test_two_runs_cannot_share_a_directory(tmp_path):
  with (
    claim_workdir(tmp_path, Run()),
    pytest.raises(BlockingIOError, match="another process is training"),
  ):
    claim(tmp_path, Run())
  claim(tmp_path, Run())


def test_the_table_is_in_the_docs():
  docs = pathlib.Path(__file__).parents[2] / "docs" / "training.md"
  rows = re.findall(r"^\| `(.*)` \| (.*) \|$", docs.read_text(), re.MULTILINE)
  assert rows == list(workdirs.CHANGES.items())


def test_the_table_has_a_row_for_each_field_and_no_other():
  keys = list(flatten_dict(to_dict(tiny()), sep="."))
  rows = [
    next(row for row in workdirs.CHANGES if fnmatch.fnmatchcase(key, row))
    for key in keys
  ]
  assert set(rows) == set(workdirs.CHANGES)
  assert workdirs.rule("training.lora.rank").startswith("fixed: the updates")
  assert workdirs.rule("training.num_steps") == workdirs.MAY_GROW
  assert workdirs.rule("sampling.head") == workdirs.MAY_CHANGE


def test_a_refusal_says_what_may_change_and_its_advice_is_taken(tmp_path):
  trained(tmp_path, Run(seed=4))
  with pytest.raises(ValueError, match="change: may change: name") as caught:
    claim(tmp_path, with_training(learning_rate=0.1))
  message = str(caught.value)
  assert "not finite: training.base_learning_rate, training.lear" in message
  flags = shlex.split(re.search(r"use that \w+ \((.*?)\)", message).group(1))
  assert sorted(flags) == [
    "--config.seed=4",
    "--config.training.learning_rate=0.5",
  ]


def stop(workdir, experiment):
  with (
    pytest.raises(FloatingPointError),
    claim_workdir(workdir, experiment),
  ):
    raise FloatingPointError("loss is nan at step 12")


def test_after_a_stop_the_learning_rate_may_change(tmp_path):
  trained(tmp_path, Run())
  lower = with_training(learning_rate=0.1)
  with pytest.raises(
    ValueError, match=r"training\.learning_rate is 0\.5 there"
  ):
    claim(tmp_path, lower)
  stop(tmp_path, Run())
  with pytest.raises(ValueError, match=r"training\.batch_size is 4 there"):
    claim(tmp_path, with_training(learning_rate=0.1, batch_size=8))
  claim(tmp_path, lower)
  claim(tmp_path, with_training(learning_rate=0.01))
  workdirs.forget_stop(tmp_path)
  with pytest.raises(
    ValueError, match=r"training\.learning_rate is 0\.01 there"
  ):
    claim(tmp_path, lower)


def test_a_damaged_note_of_a_stop_is_one_sentence(tmp_path):
  trained(tmp_path, Run())
  stop(tmp_path, Run())
  path = tmp_path / workdirs.STOP
  path.write_bytes(path.read_bytes().replace(b"12", b"13"))
  with pytest.raises(ValueError, match=r"stopped\.json was changed or damaged"):
    claim(tmp_path, with_training(learning_rate=0.1))


@pytest.mark.parametrize(
  ("names", "reason"),
  [
    (["release.json"], r"is a released .*with --init "),
    (["weights-a"], "is a half-written release"),
    (["index.json", "settings.json"], "is a cache of latents; expected a new"),
    (["cat/a.png"], "is a folder of something else; expected a new or empty"),
    (["release.json", "config.json"], "at once; expected a new"),
    (["checkpoints/a.pt"], "is half a work directory"),
    (["config.json", "model.bin"], r"config\.json cannot be read as a conf"),
  ],
)
def test_what_is_no_work_directory_is_left_alone(tmp_path, names, reason):
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('{"model_type": "bert"}')
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises((ValueError, OSError), match=reason) as caught:
    claim(tmp_path, Run())
  assert "choose another --workdir" in str(caught.value)
  after = [p for p in sorted(tmp_path.rglob("*")) if p.name != ".lock"]
  assert after == before
  for name in names:
    assert (tmp_path / name).read_text() == '{"model_type": "bert"}'


def test_a_changed_configuration_is_one_sentence(tmp_path):
  trained(tmp_path, Run())
  path = tmp_path / "config.json"
  path.write_bytes(path.read_bytes().replace(b"10", b"11"))
  with pytest.raises(ValueError, match="changed or damaged since"):
    claim(tmp_path, Run())
