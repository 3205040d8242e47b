"""Generate images from a checkpoint and score them.

With --scores they are scored by a feature network, and may be many: only sums
leave the devices, a run that was killed goes on with the same command, and
flags of settings take several values, with commas, for a sweep. OUT gets
report.json, samples.png, speed.json and, of a sweep, curves.png.

Without --scores a small model of pixels is scored against its own data with no
network's weights. OUT gets samples.png, reveal.png, loss.png and report.json.
"""

import argparse
import itertools
from typing import Any

from marjax.cli import flags, settings
from marjax.generate.settings import Settings
from marjax.schema import check

FLAGS = """
--checkpoint FOLDER, required
  a work directory, or a released checkpoint
--out FOLDER, required
  where the results go
--num_images N
  images to generate and score (default: 50000 with --scores, else 1000)
--split NAME
  of the real images to test against (default: data.test_split of the
  checkpoint)
--data_dir FOLDER
  of the real images (default: data.data_dir of the checkpoint)
--overwrite
  replace these files where they exist
"""

SCORED = """
--scores NAMES
  with commas between them: fid, sfid, is, pr, kid, fd_infinity, cmmd, accuracy,
  copies; "fid" is called so with the network inception only
--network NAME
  that sees the images: inception, mobilenet, ... (default: inception); pixels
  needs no weights
--weights FILE
  of the network, made by marjax convert (default: NETWORK.safetensors)
--against WHERE
  real side: a file of statistics, a folder or .npz of images (default: the data
  that the model was trained on)
--num_real N
  real images (default: as many as are generated)
--seed N
  of all images (default: 0)
--batch_size N
  images per device call, of all hosts together; changes no image
--dtype float32|bfloat16
  of the model's matmuls (default: as the checkpoint says)
--save png|array_record|npz
  all images too, below OUT; npz is as ADM's samples are
--order shuffled|given
  of images before the class score splits them (default: shuffled)
--num_draws N
  of images, for intervals of fid, sfid, is, pr, accuracy and copies (default:
  none)
--allow_few
  also with fewer images than features
--guidance X,Y,...
  short for --guidance_scale
"""

OPTIONS = ("order", "num_draws", "allow_few")
PEERS = ("coordinator_address", "num_processes", "process_id")
ASKED = ("network", "weights", "against", "num_real", "seed", "save")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `marjax evaluate`."""
  flags.add(parser, FLAGS)
  scored = parser.add_argument_group("with a feature network")
  flags.add(scored, SCORED)
  flags.add(scored, flags.PEERS)
  group = parser.add_argument_group(
    "settings, with --scores",
    "Several values with commas between them are a sweep. What is left out is\n"
    "as the checkpoint says.",
  )
  settings.add_flags(group, Settings)


def run(args: argparse.Namespace) -> None:
  """Flags → evaluate."""
  changes = sweep_of(args)
  if args.scores is not None:
    return _scored(args, changes)
  extra = [*ASKED, *OPTIONS, *PEERS, "batch_size", "dtype"]
  passed = _present(args, extra).items()
  extra = [name for name, value in passed if value is not False]
  extra += [name for name in changes[0] if changes != [{}]]
  check(
    not extra,
    f"--{(extra or [''])[0]} goes with --scores; expected both, or neither:"
    " pass --scores with the names of scores, such as fid,is.",
  )
  from marjax.evaluate import run as evaluation

  evaluation.evaluate(
    args.checkpoint,
    args.out,
    num_images=1000 if args.num_images is None else args.num_images,
    overwrite=args.overwrite,
    split=args.split or "",
    data_dir=args.data_dir or "",
  )


def _scored(args: argparse.Namespace, changes: list[dict]) -> None:
  """A run with a feature network."""
  from marjax.evaluate import sweep
  from marjax.evaluate.scores.options import Options
  from marjax.parallel import hosts

  names = (*ASKED, "num_images", "split", "data_dir", "batch_size")
  asked = sweep.Asked(
    args.scores,
    options=Options(**_present(args, OPTIONS)),
    **_present(args, names),
  )
  with hosts.joined(*(getattr(args, name) for name in PEERS)):
    sweep.evaluate(
      args.checkpoint,
      args.out,
      asked,
      changes,
      dtype=args.dtype,
      overwrite=args.overwrite,
    )


def _present(args: argparse.Namespace, names) -> dict[str, Any]:
  """Flags that were passed."""
  values = {name: getattr(args, name) for name in names}
  return {name: value for name, value in values.items() if value is not None}


def sweep_of(args: argparse.Namespace) -> list[dict[str, Any]]:
  """Changes of settings, all combinations of the values of flags.

  Raises:
    ValueError: a value of the wrong type or out of range, or named twice.
  """
  names = settings.names(Settings)
  values = {name: getattr(args, name) for name in names}
  if args.guidance is not None:
    check(
      values["guidance_scale"] is None,
      "--guidance and --guidance_scale are the same; expected one of them.",
    )
    values["guidance_scale"] = args.guidance
  passed = {
    name: [part.strip() for part in text.split(",")]
    for name, text in values.items()
    if text is not None
  }
  sweep = []
  for chosen in itertools.product(*passed.values()):
    one = dict.fromkeys(names) | dict(zip(passed, chosen, strict=True))
    changes = settings.changes(Settings, argparse.Namespace(**one))
    check(
      changes not in sweep,
      f"{changes} is asked for twice; expected each of the settings once.",
    )
    sweep.append(changes)
  return sweep
