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
   and training images with noise have rows as well; where a study's images are
   judged "as codes" (`experiments.coded`), test images made of codes. What
   judges saw of real images is kept in OUT/seen-..., for all processes.
4. `studies_tables` makes OUT/STUDY.md, .png and _samples.png of the rows.

Command   python -m experiments.studies table1,head_size --data_dir photos \
            --weights mobilenet=FILE,label=FILE --out out/studies
Before    the same with --dry_run, which says what is missing and what it costs
After     the same with --tables, which needs neither photographs nor weights;
          with --time, how long an image takes of what is trained, on a device
          that nothing else uses
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import (
  coded,
  judging,
  programs,
  rows,
  samplers,
  studies_tables,
)
from experiments.claims import AS_CODES, CODES, MASKED, STUDIES, Cell
from experiments.studies_drawn import Drawn, draw
from experiments.studies_plan import (
  Asked,
  alike,
  codes_of,
  experiment_of,
  key_of,
  missing,
  places_of,
  plan,
  planned,
  time_key_of,
)
from marjax.evaluate import archives, run, sets
from marjax.evaluate.seen import Chosen, Eye, Taken
from marjax.generate.settings import Settings
from marjax.pipeline import Pipeline, load
from marjax.release import loading
from marjax.schema import check


def trained(cell: Cell, asked: Asked) -> Pipeline:
  """A cell's pipeline, trained first as far as it is not."""
  workdir, release = places_of(cell, asked)
  if not release.exists():
    experiment = experiment_of(cell, asked)
    if cell.has_codes:
      coded.fit(experiment, codes_of(asked))
    programs.train(experiment, workdir)
    loading.export(workdir, release, "bfloat16")
  return load(release)


class Boards:
  """Judges of photographs, and of photographs made of codes, when asked for.

  Attributes:
    judges: digests of the networks. asked: see `Asked`.
  """

  def __init__(self, networks: dict[str, Eye], asked: Asked):
    self.judges, self.asked = judging.digests(networks.values()), asked
    self._networks = networks
    self._boards: dict[bool, judging.Board] = {}

  def real(self, has_codes: bool) -> tuple[Chosen, Chosen]:
    """Training and test images; nothing is looked at, nor are codes needed."""
    data = dataclasses.replace(
      experiment_of(MASKED, self.asked).data, flip=False
    )
    train, test = judging.real_images(data, self.asked.num_images)
    if not has_codes:
      return train, test
    codes = codes_of(self.asked)
    return coded.shown(train, codes), coded.shown(test, codes)

  def of(self, has_codes: bool) -> judging.Board:
    """Judges that have looked at real images, or at those made of codes."""
    if has_codes not in self._boards:
      if has_codes:
        coded.fit(experiment_of(CODES, self.asked), codes_of(self.asked))
      # Of few codes many images are near to others.
      but = ("copies",) if has_codes else ()
      self._boards[has_codes] = judging.board_of(
        *self.real(has_codes),
        self._networks,
        self.asked.out,
        self.asked.num_images,
        *but,
      )
    return self._boards[has_codes]

  def add_controls(self, has_codes: bool) -> None:
    """Adds the rows of real images that are missing, unless it is late."""
    train, test = self.real(has_codes)
    parts = judging.controls(train, test, self.asked.num_images)
    parts = {coded.TEST: test} if has_codes else parts
    known = judging.known(train.images, len(train.indices), self.judges)
    if not self.asked.is_late():
      board = functools.partial(self.of, has_codes)
      judging.add_controls(self.asked.rows, parts, known, board)


def measure(
  cell: Cell,
  pipe: Pipeline,
  key: dict[str, Any],
  settings: Settings,
  boards: Boards,
  drawn: Callable[..., Drawn],
) -> rows.Row:
  """What a row's images score.

  Args:
    drawn: see `draw`, of this pipeline; may know what it drew before.
  """
  asked, has_codes = boards.asked, key["order"] == AS_CODES
  order = "own" if has_codes else key["order"]
  images, labels, seconds = drawn(settings, order, key["seed"])
  is_shown = key["seed"] == asked.seeds[0] and key["order"] == "own"
  is_shown = is_shown and settings == experiment_of(cell, asked).sampling
  place = studies_tables.images_of(asked.out, key)
  path = asked.out / "drawn" / f"{rows.digest(key)}.npz"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)  # of a row that a kill cut short
  archives.write(path, images.shape, [images], labels)
  chosen = Taken().choose(sets.open_set(path), None)
  if has_codes:
    chosen = coded.shown(chosen, codes_of(asked))
  scores = judging.scored(boards.of(has_codes), chosen, key["cell"])
  if is_shown:
    place.parent.mkdir(exist_ok=True)
    path.replace(place)
  else:
    path.unlink()
  count = sum(leaf.size for leaf in jax.tree.leaves(pipe.params))
  print(
    f"{key['cell']}, {settings.num_ar_steps} AR steps, guidance"
    f" {settings.guidance_scale:g}, order {key['order']}, seed {key['seed']}:"
    f" {studies_tables.sentence(scores)}",
    flush=True,
  )
  return {
    "scores": scores,
    "seconds": seconds,
    "num_parameters": count,
    "parameters": samplers.fingerprint(pipe.params),
  }


def run_studies(
  names: Sequence[str], networks: dict[str, Eye], asked: Asked
) -> None:
  """All rows of the studies that are missing, then their tables."""
  rows.make(asked.rows)
  boards = Boards(networks, asked)
  _measure_all(names, boards)
  left = missing(names, asked, judges=boards.judges)
  if left:
    print(f"{len(left)} rows are left, for later or for another process")
  write_tables(names, asked, boards.judges)


def _measure_all(names: Sequence[str], boards: Boards) -> None:
  """Adds rows until none is missing or it is late.

  One process looks at real images first, while others begin to train.
  """
  asked, held = boards.asked, boards.asked.out / "claims"
  left = functools.partial(missing, names, asked, judges=boards.judges)
  kinds = sorted({STUDIES[name].is_as_codes for name in names})
  with rows.locked(held / "controls", waits=False) as is_ours:
    if is_ours:
      boards.add_controls(kinds[0])
  pace, todo = rows.Pace(lambda: len(left())), left()
  # First what no process has begun; then all others are helped with rows.
  for helps in (False, True):
    for cell, group in itertools.groupby(todo, key=lambda one: one[0]):
      is_trained = places_of(cell, asked)[1].exists()
      with rows.locked(held / cell.name, waits=False) as is_ours:
        if is_ours or (helps and is_trained):
          _measure_cell(cell, [*group], boards, pace)
  with rows.locked(held / "controls"):
    for has_codes in kinds:
      boards.add_controls(has_codes)


def _measure_cell(
  cell: Cell, group: list[tuple], boards: Boards, pace: rows.Pace
) -> None:
  """Adds the rows of a cell that no other process has added or begun."""
  pipe, asked = None, boards.asked
  for one in group:
    key = key_of(*one, asked) | {"judges": boards.judges}
    claim = asked.out / "claims" / rows.digest(key)
    with rows.locked(claim, waits=False) as is_ours:
      if not is_ours or rows.find(rows.read(asked.rows), **key):
        continue
      if asked.is_late():
        return
      if pipe is None:
        pipe = trained(cell, asked)
        # The same images are judged as they are, and then as codes.
        drawn = functools.partial(draw, pipe, asked)
        orders = {order for _, _, order, _ in group}
        drawn = functools.lru_cache(maxsize=len(orders))(drawn)
        if asked.is_late():
          return
      how = functools.partial(measure, cell, pipe, key, one[1], boards, drawn)
      rows.measured(asked.rows, key, how)
      print(pace, flush=True)


def time_cells(names: Sequence[str], asked: Asked) -> None:
  """Adds a row of how long images take, for each setting of trained cells."""
  size = asked.batch_size or min(asked.num_images, 1000)
  asked = asked._replace(batch_size=size)
  found = [
    (cell, settings, places_of(cell, asked)[1])
    for cell, settings in dict.fromkeys(
      one[:2] for one in planned(names, asked)
    )
    if places_of(cell, asked)[1].exists()
  ]
  check(
    bool(found),
    f"{asked.out} has no trained model of {', '.join(names)}; expected some:"
    " run the same command without --time first.",
  )
  for cell, settings, release in found:
    if asked.is_late():
      return
    steps = settings.num_ar_steps
    print(f"timing {cell.name}, {steps} AR steps", flush=True)
    key = time_key_of(cell, settings, asked)
    how = functools.partial(seconds_of, release, settings, asked.batch_size)
    row, _ = rows.measured(asked.rows, key, how)
    took = 1000 * row["seconds_per_image"]
    print(f"{took:.3g} ms an image, {size} at once", flush=True)


def seconds_of(release: Path, settings: Settings, size: int) -> rows.Row:
  """How long an image takes, of five batches that are drawn twice.

  The better time counts; programs are compiled before.
  """
  pipe, seconds = load(release), []
  for count in (1, 5, 5):
    labels = np.arange(count * size) % pipe.card.num_classes
    start = time.monotonic()
    pipe.generate(labels, settings=settings, batch_size=size)
    seconds.append(time.monotonic() - start)
  return {"seconds_per_image": min(seconds[1:]) / (5 * size)}


def write_tables(
  names: Sequence[str], asked: Asked, judges: dict[str, str] | None = None
) -> int:
  """Tables and pictures of rows that are there; how many studies have some.

  Args:
    judges: that rows have; None for those of most rows of a study.
  """
  every, count = rows.read(asked.rows), 0
  table = [row for row in every if judges in (None, row.get("judges"))]
  for name in names:
    (own, same), study = alike(name, table, asked), STUDIES[name]
    if study.is_timed:
      own = studies_tables.timed(own, every)
    real = studies_tables.controls(study, own, same, asked.num_images)
    studies_tables.write(asked.out, name, study, own, real)
    count += bool(own)
    if own:
      left = missing([name], asked, judges=own[0]["judges"])
      others = len(planned([name], asked)) - len(left) - len(own)
      if others:
        print(
          f"{name}: not shown, of other trainings of their cells, are {others}"
          f" rows; remove them from {asked.rows} to measure them again"
        )
  return count


def show(names: Sequence[str], asked: Asked) -> None:
  """Tables and pictures of what is there, and how much is not.

  Raises:
    ValueError: nothing is.
  """
  check(
    bool(rows.read(asked.rows)),
    f"{asked.rows} has no rows; expected what was measured: run the same"
    " command without --tables.",
  )
  count, seeds = write_tables(names, asked), ",".join(map(str, asked.seeds))
  check(
    count > 0,
    f"{asked.rows} has no row of {', '.join(names)} with {asked.num_images}"
    f" images and seeds {seeds}; expected what was measured: repeat its"
    " --num_images, --seeds, --num_steps and --laptop.",
  )
  left = missing(names, asked)
  if left:
    print(f"{len(left)} rows of these are missing")


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → rows → tables and pictures; 2 when a flag is wrong."""
  args = _flags(argv)
  names = programs.chosen("study", args.studies, STUDIES)
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
  modes = [
    mode for mode in ("tables", "time", "dry_run") if getattr(args, mode)
  ]
  check(
    len(modes) < 2,
    f"--{' and --'.join(modes)} are given; expected one of them: leave out the"
    " others.",
  )
  if args.tables:
    show(names, asked)
    return
  check(
    not (args.laptop and args.data_dir),
    "--laptop and --data_dir are given; expected one of them: made-up images or"
    " photographs.",
  )
  if args.laptop or args.data_dir:
    photographs = sets.identity(sets.open_set(masked))
    asked = asked._replace(photographs=photographs)
    judging.real_images(masked, args.num_images)
  check(
    bool(asked.photographs) or (args.dry_run and not args.weights),
    "--data_dir is missing; expected a folder of photographs, or --laptop.",
  )
  if args.time:
    time_cells(names, asked)
    return
  if not args.dry_run:
    programs.check_drawing()
  networks = {}
  if args.weights or not args.dry_run:
    weights = programs.weights(args.weights)
    networks = judging.eyes(
      weights, asked.num_images, allow_few=asked.is_laptop
    )
  if args.dry_run:
    judges = judging.digests(networks.values())
    named = {"judges": judges} if judges else {}
    print(plan(missing(names, asked, **named), asked))
  else:
    run_studies(names, networks, asked)


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)
  add = parser.add_argument
  add("studies", help=f"A,B of {', '.join(STUDIES)}")
  add(
    "--data_dir",
    default="",
    help="of photographs: FOLDER/{train,test}/CLASS, or of parquet files",
  )
  add("--weights", default="", help="NETWORK=FILE,NETWORK=FILE, or pixels")
  add(
    "--out",
    type=Path,
    default=Path("out/studies"),
    help="folder of the results (default: %(default)s)",
  )
  add(
    "--num_images",
    type=programs.count,
    default=10_000,
    help="of a row (default: %(default)s)",
  )
  add("--seeds", default="0,1,2", help="of generation (default: %(default)s)")
  add("--batch_size", type=programs.count, help="images that are drawn at once")
  add(
    "--num_steps", type=programs.count, help="of a training, not the config's"
  )
  add(
    "--limit_s",
    type=programs.seconds,
    default=float("inf"),
    help="seconds, after which no row is begun",
  )
  laptop = "all cells tiny and of one size, on made-up images"
  add("--laptop", action="store_true", help=laptop)
  add("--dry_run", action="store_true", help="print the plan and its cost")
  add("--time", action="store_true", help="only time what is trained in OUT")
  add("--tables", action="store_true", help="only of the rows in OUT, anew")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
