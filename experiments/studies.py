"""The paper's claims on photographs: trainings, drawn and scored, a row each.

1. A study (`experiments.claims`) is a claim: cells, which are trained, and the
   settings and orders that they are drawn with. Studies share cells, and rows,
   so nothing is trained, drawn or scored twice.
2. A cell is a variant of configs/cifar10.py, some changed fields and a seed. It
   is trained in OUT/runs, where a training that was stopped goes on. Its
   averaged weights are kept in bfloat16, in OUT/models, and images are drawn of
   those: who takes them to another machine need not train again.
3. A row is N images of a cell, of one seed, at one setting, scored by all
   judges as `experiments.scoreboard` does, in OUT/rows.jsonl. Real test images
   and training images with noise have rows as well, and test images made of
   codes where there are cells of codes (`experiments.coded`).
4. `studies_tables` makes OUT/STUDY.md, .png and _samples.png of the rows.

Command   python -m experiments.studies table1,head_size --data_dir photos \
            --weights mobilenet=FILE,label=FILE --out out/studies
Before    the same with --dry_run, which says what is missing and what it costs
After     the same with --tables, which needs neither photographs nor weights
Laptop    --laptop: made-up images and tiny models, a few seconds for each cell
GPUs      the same command once for each GPU, or twice, at the same time: a cell
          is trained by the process that begins it, and then drawn by any
"""

import argparse
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import (
  coded,
  programs,
  rows,
  samplers,
  scoreboard,
  studies_tables,
)
from experiments.claims import CODES, MASKED, STUDIES, Cell, Draw, order_of
from experiments.scoreboard import Board, eyes
from marjax.cli import configs
from marjax.evaluate import archives, run, sets
from marjax.evaluate.seen import Eye, Taken
from marjax.experiment import Experiment
from marjax.generate.settings import Settings
from marjax.pipeline import Pipeline, load
from marjax.release import loading
from marjax.schema import check
from marjax.train.flops import training_flops

CONFIG = "configs/cifar10.py"

TRAINING_FLOPS, DRAWN_SECONDS, ROW_SECONDS = 2.0e14, 12.0, 23.0
"""Of one H200, on the masked model: FLOPs in a second of training; seconds for
10 000 images in 64 × 50 steps, 1 000 at once; and for their scores."""


class Asked(NamedTuple):
  """What is measured, and where.

  Attributes:
    out: folder of the results. data_dir: of the photographs.
    is_laptop: tiny, on made-up images. num_images: of a row.
    seeds: of generation. batch_size: images drawn at once, None for the
      pipeline's. deadline: in `time.monotonic`, after which nothing is begun.
    num_steps: of every training, unless a cell has its own; None for what the
      config says. photographs: what tells them from others, "" for any.
  """

  out: Path
  data_dir: str = ""
  is_laptop: bool = False
  num_images: int = 10_000
  seeds: tuple[int, ...] = (0, 1, 2)
  batch_size: int | None = None
  deadline: float = float("inf")
  num_steps: int | None = None
  photographs: str = ""

  @property
  def rows(self) -> Path:
    """The file of rows."""
    return self.out / "rows.jsonl"

  def is_late(self) -> bool:
    """Whether to begin nothing more."""
    return time.monotonic() > self.deadline


@functools.cache
def experiment_of(cell: Cell, asked: Asked) -> Experiment:
  """What a cell is trained as."""
  variant = f"{cell.variant},laptop" if asked.is_laptop else cell.variant
  changes = [f"config.seed={cell.seed}"]
  if asked.num_steps is not None:
    changes.append(f"config.training.num_steps={asked.num_steps}")
  changes += cell.changes
  if not asked.is_laptop:
    changes.append(f"config.data.data_dir={asked.data_dir}")
  if cell.has_codes:
    changes.append(f"config.data.autoencoder={codes_of(asked)}")
  experiment = configs.load(f"{CONFIG}:{variant}", changes)
  data = dataclasses.replace(experiment.data, seed=cell.seed)
  return dataclasses.replace(experiment, data=data)


def recipe_of(cell: Cell, asked: Asked) -> str:
  """A hash: a cell's name does not say that its config was changed since."""
  experiment = experiment_of(cell, asked)
  recipe = (experiment.model, experiment.training, experiment.codec)
  return rows.digest(recipe)


def places_of(cell: Cell, asked: Asked) -> tuple[Path, Path]:
  """A cell's work directory, and the release that is made of it."""
  made_of = rows.digest((recipe_of(cell, asked), asked.photographs))
  name = f"{cell.name}-{made_of}"
  return asked.out / "runs" / name, asked.out / "models" / name


@functools.cache
def codes_of(asked: Asked) -> Path:
  """The release of the codes of cells with cross-entropy."""
  variant = f"{CODES.variant},laptop" if asked.is_laptop else CODES.variant
  codec = configs.load(f"{CONFIG}:{variant}").codec
  return asked.out / f"codes-{rows.digest((codec, asked.photographs))}"


def trained(cell: Cell, asked: Asked) -> Pipeline:
  """A cell's pipeline, trained first as far as it is not."""
  from marjax.train import loop

  workdir, release = places_of(cell, asked)
  if not release.exists():
    experiment = experiment_of(cell, asked)
    if cell.has_codes:
      coded.fit(experiment, codes_of(asked))
    loop.train(experiment, workdir)
    loading.export(workdir, release, "bfloat16")
  return load(release)


def settings_of(cell: Cell, draw: Draw, asked: Asked) -> Settings | None:
  """Those of a cell and draw; None where the cell cannot be drawn so."""
  if draw.order == coded.NAME and cell.has_codes:
    return None  # its images are made of codes
  experiment = experiment_of(cell, asked)
  length = experiment.model.backbone.num_tokens
  changes = dict(draw.changes)
  steps = changes.get("num_ar_steps")
  if steps is not None:
    changes["num_ar_steps"] = min(steps, length)
    if experiment.model.backbone.is_sequential and steps < length:
      return None
  if "head" in changes and asked.is_laptop:
    changes["head"] = {**changes["head"], "num_steps": 4}
  return experiment.sampling.changed(changes, experiment.model)


def planned(names: Sequence[str], asked: Asked) -> list[tuple]:
  """(cell, settings, order, seed) of the studies, each once, cell by cell."""
  every = [
    (cell, settings, draw.order, seed)
    for name in names
    for cell in STUDIES[name].cells
    for draw in STUDIES[name].draws
    if (settings := settings_of(cell, draw, asked)) is not None
    for seed in asked.seeds
  ]
  cells = dict.fromkeys(one[0] for one in every)
  unique = dict.fromkeys(every)
  return [one for cell in cells for one in unique if one[0] == cell]


def missing(
  names: Sequence[str], asked: Asked, **judges: dict[str, str]
) -> list[tuple]:
  """What of the plan has no row yet, by those judges or by any."""
  there = rows.read(asked.rows)
  return [
    one
    for one in planned(names, asked)
    if rows.find(there, **key_of(*one, asked), **judges) is None
  ]


def key_of(cell, settings: Settings, order: str, seed: int, asked: Asked):
  """What tells a row from others, but for the judges."""
  key = {
    "cell": cell.name,
    "trained_as": recipe_of(cell, asked),
    "settings": rows.as_row(settings),
    "order": order,
    "seed": seed,
    "num_images": asked.num_images,
  }
  if asked.photographs:
    key["photographs"] = asked.photographs
  return key


def measure(
  pipe: Pipeline, key: dict[str, Any], settings: Settings, board: Board, asked
) -> rows.Row:
  """What a row's images, drawn for it, score."""
  labels = run.balanced_labels(asked.num_images, pipe.card.num_classes)
  how: dict[str, Any] = {"seed": key["seed"]}
  if key["order"] not in ("own", coded.NAME):
    draws = pipe.draws(key["seed"], len(labels))
    order = order_of(key["order"], np.asarray(draws.order))
    how = {"draws": dataclasses.replace(draws, order=order)}
  start = time.monotonic()
  images = pipe.generate(
    labels, settings=settings, batch_size=asked.batch_size, progress=True, **how
  )
  seconds = time.monotonic() - start
  is_shown = key["seed"] == asked.seeds[0] and key["order"] == "own"
  is_shown = is_shown and settings == pipe.settings()
  if key["order"] == coded.NAME:
    codes = coded.fit(experiment_of(CODES, asked), codes_of(asked))
    images = load(codes).reconstruct(images)
  path = asked.out / "drawn" / f"{rows.digest(key)}.npz"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)  # of a row that a kill cut short
  archives.write(path, images.shape, [images], labels)
  chosen = Taken().choose(sets.open_set(path), None)
  scores = scoreboard.scored(board, chosen, key["cell"])
  if is_shown:
    place = asked.out / "images" / f"{key['cell']}.npz"
    place.parent.mkdir(exist_ok=True)
    path.replace(place)
  else:
    path.unlink()
  count = sum(leaf.size for leaf in jax.tree.leaves(pipe.params))
  print(f"{key['cell']}: {studies_tables.sentence(scores)}", flush=True)
  return {
    "scores": scores,
    "seconds": seconds,
    "num_parameters": count,
    "parameters": samplers.fingerprint(pipe.params),
  }


def plan(left: Sequence[tuple], asked: Asked) -> str:
  """What is missing, a line for each cell, and what it costs on one H200."""
  lines, total = [], 0.0
  for cell in dict.fromkeys(one[0] for one in left):
    own = [one for one in left if one[0] == cell]
    experiment, minutes = experiment_of(cell, asked), 0.0
    is_begun = any(place.exists() for place in places_of(cell, asked))
    if asked.is_laptop:
      lines.append(f"{cell.name}: {len(own)} rows")
      continue
    if not is_begun:
      training = experiment.training
      images = training.num_steps * training.batch_size
      flops = training_flops(experiment.model)
      minutes += images * flops / TRAINING_FLOPS / 60
    for _, settings, _, _ in own:
      work = settings.num_ar_steps * getattr(settings.head, "num_steps", 1)
      share = asked.num_images / 10_000
      minutes += share * (ROW_SECONDS + DRAWN_SECONDS * work / 3200) / 60
    total += minutes
    words = ", trained or begun" if is_begun else ""
    lines.append(f"{cell.name}{words}: {len(own)} rows, {minutes:.0f} minutes")
  if not asked.is_laptop:
    lines.append(f"{total:.0f} minutes of one H200, an estimate")
  return "\n".join(lines or ["nothing is missing"])


def run_studies(
  names: Sequence[str],
  networks: dict[str, Eye],
  judges: dict[str, str],
  asked: Asked,
) -> None:
  """All rows of the studies that are missing, then their tables."""
  rows.make(asked.rows)
  left = missing(names, asked, judges=judges)
  if left or lacks_controls(names, asked, judges):
    _measure_all(left, networks, judges, asked)
    left = missing(names, asked, judges=judges)
  if left:
    print(f"{len(left)} rows are left, for later or another process's")
  write_tables(names, asked, judges)


def lacks_controls(
  names: Sequence[str], asked: Asked, judges: dict[str, str]
) -> bool:
  """Whether real images have no rows, or none as codes where those are due."""
  against = {"judges": judges, "real": asked.photographs}
  due = [scoreboard.TEST, scoreboard.NOISY]
  if any(STUDIES[name].has_codes for name in names):
    due.append(coded.TEST)
  there = rows.read(asked.rows)
  return any(rows.find(there, images=name, **against) is None for name in due)


def _measure_all(
  left: Sequence[tuple],
  networks: dict[str, Eye],
  judges: dict[str, str],
  asked: Asked,
) -> None:
  """Adds rows, of real images first, until none is missing or it is late."""
  data = dataclasses.replace(experiment_of(MASKED, asked).data, flip=False)
  own = scoreboard.Asked(
    asked.num_images, asked.seeds, (), (), asked.out, None, asked.batch_size
  )
  board = scoreboard.board_of(data, networks, own)
  held = asked.out / "claims"
  with rows.locked(held / "controls", waits=False) as is_ours:
    if is_ours:
      scoreboard.controls(board, own)
  # First what no process has begun; then all others are helped with rows.
  for helps in (False, True):
    for cell, group in itertools.groupby(left, key=lambda one: one[0]):
      is_trained = places_of(cell, asked)[1].exists()
      with rows.locked(held / cell.name, waits=False) as is_ours:
        if is_ours or (helps and is_trained):
          _measure_cell(cell, [*group], board, judges, asked)
  if codes_of(asked).exists():
    with rows.locked(held / "controls"):
      file = asked.out / "drawn" / "test.npz"
      part = coded.shown(codes_of(asked), board.test, file)
      scoreboard.add_controls(board, own, {coded.TEST: part})


def _measure_cell(
  cell: Cell, group: list[tuple], board: Board, judges: dict, asked: Asked
) -> None:
  """Adds the rows of a cell that no other process has added or begun."""
  pipe = None
  for one in group:
    key = key_of(*one, asked) | {"judges": judges}
    claim = asked.out / "claims" / rows.digest(key)
    with rows.locked(claim, waits=False) as is_ours:
      if not is_ours or rows.find(rows.read(asked.rows), **key):
        continue
      if asked.is_late():
        return
      pipe = pipe or trained(cell, asked)
      how = functools.partial(measure, pipe, key, one[1], board, asked)
      rows.measured(asked.rows, key, how)


def write_tables(
  names: Sequence[str], asked: Asked, judges: dict[str, str]
) -> None:
  """Tables and pictures of rows that are there, by those judges."""
  table = [row for row in rows.read(asked.rows) if row["judges"] == judges]
  for name in names:
    own, study = rows_of(name, table, asked), STUDIES[name]
    real = studies_tables.controls(study, own, table, asked.num_images)
    studies_tables.write(asked.out, name, study, own, real)


def rows_of(
  name: str, table: Sequence[rows.Row], asked: Asked, *but: str
) -> list[rows.Row]:
  """A study's rows, as planned; those keys may have any value."""
  keys = [key_of(*one, asked) for one in planned([name], asked)]
  for key in keys:
    for free in but:
      del key[free]
  own = [rows.find(list(table), **key) for key in keys]
  return [row for row in own if row is not None]


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → rows → tables and pictures; 2 when a flag is wrong."""
  args = _flags(argv)
  names = programs.chosen("study", args.studies, STUDIES)
  programs.check_counts(args, "num_images", "batch_size", "num_steps")
  asked = Asked(
    args.out,
    args.data_dir,
    args.laptop,
    args.num_images,
    programs.numbers("--seeds", args.seeds),
    args.batch_size,
    time.monotonic() + args.limit_s,
    args.num_steps,
  )
  masked = experiment_of(MASKED, asked).data
  run.balanced_labels(args.num_images, masked.num_classes)
  if args.tables:
    there = rows.read(asked.rows)[::-1]  # the newest first
    found = [row for name in names for row in rows_of(name, there, asked)]
    check(
      bool(found),
      f"{asked.rows} has no row of {', '.join(names)} with {asked.num_images}"
      f" images and seeds {args.seeds}; expected what was measured: repeat its"
      " --num_images, --seeds, --num_steps and --laptop.",
    )
    write_tables(names, asked, min(found, key=there.index)["judges"])
    return
  if args.laptop or args.data_dir:
    photographs = sets.open_set(masked)
    asked = asked._replace(photographs=photographs.description)
  known, networks = {}, {}
  if args.weights or not args.dry_run:
    check(
      bool(asked.photographs),
      "--data_dir is missing; expected a folder of photographs, or --laptop.",
    )
    weights = programs.weights(args.weights)
    networks = eyes(weights, asked.num_images, allow_few=asked.is_laptop)
    known = {"judges": scoreboard.digests(networks.values())}
  if args.dry_run:
    print(plan(missing(names, asked, **known), asked))
  else:
    run_studies(names, networks, known["judges"], asked)


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  add = parser.add_argument
  add("studies", help=f"A,B of {', '.join(STUDIES)}")
  add(
    "--data_dir", default="", help="of photographs: FOLDER/{train,test}/CLASS"
  )
  add("--weights", default="", help="NETWORK=FILE,NETWORK=FILE")
  shown = " (default: %(default)s)"
  out = Path("out/studies")
  add("--out", type=Path, default=out, help="folder of the results" + shown)
  count = {"type": int, "default": 10_000}
  add("--num_images", **count, help="of a row" + shown)
  add("--seeds", default="0,1,2", help="of generation" + shown)
  add("--batch_size", type=int, help="images that are drawn at once")
  add("--num_steps", type=int, help="of a training, not the config's")
  limit = {"type": float, "default": float("inf")}
  add("--limit_s", **limit, help="seconds, after which no row is begun")
  add("--laptop", action="store_true", help="tiny, on made-up images")
  add("--dry_run", action="store_true", help="print the plan and its cost")
  add("--tables", action="store_true", help="only make those of rows in OUT")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
