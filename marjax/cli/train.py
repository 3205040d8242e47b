"""Train a model, or resume a run that was stopped.

The config is a file such as configs/digits.py; any of its fields can be set
with --config.KEY=VALUE, as in --config.training.num_steps=100. The same command
resumes from the work directory's latest checkpoint.

On several hosts start it once on each, with one work directory that all of them
see. On TPU pods, GKE and SLURM the processes find each other; elsewhere tell
them with --coordinator_address, --num_processes and --process_id.
"""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax train`."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE.py[:VARIANT]",
    help="what to train; every config has a variant :laptop that is tiny",
  )
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="FOLDER",
    help="where checkpoints, metrics and samples go; also gs://BUCKET/NAME",
  )
  parser.add_argument(
    "--coordinator_address",
    metavar="HOST:PORT",
    help="of several processes: where the first can be reached",
  )
  parser.add_argument(
    "--num_processes",
    type=int,
    metavar="N",
    help="of several processes: how many there are; 1 waits for no other",
  )
  parser.add_argument(
    "--process_id",
    type=int,
    metavar="I",
    help="of several processes: which this is, 0 to N - 1",
  )
  parser.add_argument(
    "--profile_steps",
    metavar="A:B",
    help="trace the steps A to B - 1 into WORKDIR/profile/A",
  )


def run(args: argparse.Namespace) -> None:
  """Config file and overrides → Experiment → train."""
  from marjax.cli import configs

  experiment = configs.load(args.config, args.overrides)

  from marjax.parallel import hosts
  from marjax.train import loop, profile

  profile_steps = profile.parse(args.profile_steps)

  peers = (args.coordinator_address, args.num_processes, args.process_id)
  with hosts.joined(*peers):
    loop.train(experiment, args.workdir, profile_steps)
