"""Programs of training that tests of one process have in common."""

import fnmatch

from flax.traverse_util import flatten_dict

from marjax.schema import to_dict
from marjax.train import loop

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


def _key(experiment, mesh, num_examples):
  """What decides a program."""
  fields = flatten_dict(to_dict(experiment), sep=".")
  if experiment.training.schedule == "constant":
    del fields["training.num_steps"]
  kept = {
    name: value
    for name, value in fields.items()
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in FREE)
  }
  return repr((sorted(kept.items()), mesh, num_examples))


def share_program(patch):
  """Runs, of other files too, share programs: tracing is most of a run."""
  own, make = {}, loop.make_train_program

  def make_once(experiment, mesh, num_examples, codec_params=None):
    # Of a codec's weights, which are constants in it, those of one test.
    programs = own if codec_params else _PROGRAMS
    key = "" if codec_params else _key(experiment, mesh, num_examples)
    if key not in programs:
      programs[key] = make(experiment, mesh, num_examples, codec_params)
    return programs[key]

  patch.setattr(loop, "make_train_program", make_once)
