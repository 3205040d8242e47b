"""The run of tiny.py, what it leaves, and programs that runs have in common."""

import fnmatch
import itertools
import json
import pathlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from marjax.cli import configs
from marjax.release.digest import digest
from marjax.schema import to_dict
from marjax.train import loop

CONFIG = str(pathlib.Path(__file__).with_name("tiny.py"))

FREE = ("name", "data.*", "evaluation.*", "sampling.*")
FREE += tuple(
  f"training.{name}"
  for name in (
    *("log_every", "log_ids", "checkpoint_every", "keep_checkpoints"),
    *("checksums", "sample_every", "evaluate_every", "init_*"),
  )
)
"""What of an experiment its program does not depend on."""

_PROGRAMS = {}


def tiny(*changes, **training):
  """The experiment of tiny.py.

  Args:
    changes: such as "seed=5". training: fields of its recipe.
  """
  recipe = [f"training.{name}={value}" for name, value in training.items()]
  return configs.load(CONFIG, [f"config.{c}" for c in (*changes, *recipe)])


def rows(path):
  """The lines of a .jsonl file."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def losses(workdir):
  """(step, loss) of each report."""
  lines = rows(workdir / "metrics.jsonl")
  return [(row["step"], row["loss"]) for row in lines if "loss" in row]


def assert_same(state, other):
  """Every bit of two trees of arrays."""
  jax.tree.map(np.testing.assert_array_equal, state, other)


def at_batch(monkeypatch, number, act):
  """Has the loop call act(batch) before its `number`-th batch is placed.

  `act`: gives another batch to take in its place, or None.
  """
  place, count = loop.place, itertools.count(1)

  def placed(batch, mesh):
    if next(count) == number:
      batch = act(batch) or batch
    return place(batch, mesh)

  monkeypatch.setattr(loop, "place", placed)


def share_programs(patch):
  """Runs, of other files too, share programs: tracing is most of a run."""
  make = loop.make_train_program

  def make_once(experiment, mesh, num_examples, codec_params):
    key = _key(experiment, mesh, num_examples), digest(codec_params)
    if key not in _PROGRAMS:
      _PROGRAMS[key] = make(experiment, mesh, num_examples, codec_params)
    return _PROGRAMS[key]

  patch.setattr(loop, "make_train_program", make_once)


def _key(experiment, mesh, num_examples):
  """What decides a program, but for a codec's weights."""
  fields = flatten_dict(to_dict(experiment), sep=".")
  if experiment.training.schedule == "constant":
    del fields["training.num_steps"]
  kept = {
    name: value
    for name, value in fields.items()
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in FREE)
  }
  return repr((sorted(kept.items()), mesh, num_examples))
