"""Train a model, or resume a run that was stopped.

The config is a file such as configs/digits.py; any of its fields can be set
with --config.KEY=VALUE, as in --config.training.num_steps=100. The same command
resumes from the work directory's latest checkpoint, and goes on with more
steps where the config now has more.

On several hosts start it once on each, with one work directory that all of them
see. On TPU pods, GKE and SLURM the processes find each other; elsewhere tell
them with --coordinator_address, --num_processes and --process_id.
"""

import argparse

from marjax.cli import configs, flags

FLAGS = """
--config FILE.py[:VARIANT], required
  what to train; every config has a variant :laptop that is tiny
--workdir FOLDER, required
  where checkpoints, metrics and samples go; also gs://BUCKET/NAME
--init FROM
  a new run starts from the weights of this work directory, release or published
  model; the same as --config.training.init_from=FROM
--profile_steps A:B
  trace the steps A to B - 1 into WORKDIR/profile/A
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax train`."""
  flags.add(parser, FLAGS)
  flags.add(parser, flags.PEERS)


def run(args: argparse.Namespace) -> None:
  """Config file and overrides → Experiment → train."""
  overrides = args.overrides
  if args.init is not None:
    overrides = [*overrides, f"config.training.init_from={args.init}"]
  mapping = configs.read(args.config, overrides)
  # What needs no device is refused before the processes meet.
  experiment = None if configs.is_open(mapping) else configs.build(mapping)

  from marjax.parallel import hosts
  from marjax.train import loop, profile

  profile_steps = profile.parse(args.profile_steps)

  peers = (args.coordinator_address, args.num_processes, args.process_id)
  with hosts.joined(*peers):
    experiment = experiment or configs.build(mapping, args.workdir)
    loop.train(experiment, args.workdir, profile_steps)
