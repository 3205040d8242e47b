"""What `experiments.studies` is to measure, where it lies and what it costs.

A row is told from others by its cell and recipe, its settings, order and seed,
and the photographs and judges it was measured with. Trainings and codes lie in
folders whose names say of which recipe and photographs they are.
"""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import rows
from experiments.claims import AS_CODES, CODES, STUDIES, Cell, Draw
from marjax.cli import configs
from marjax.evaluate import environment
from marjax.experiment import Experiment
from marjax.generate.settings import Settings
from marjax.train.flops import training_flops

CONFIG = Path(__file__).parents[1] / "configs" / "cifar10.py"

TRAINING_FLOPS, DRAWN_SECONDS, ROW_SECONDS = 2.0e14, 12.0, 23.0
"""Of one H200, on the masked model: FLOPs in a second of training; seconds for
10 000 images in 64 × 50 steps, 1 000 at once; and for their scores."""


SIZES = ("steps", "size", "width", "num_heads", "depth")
"""How fields end in which no cell differs from others on a laptop."""


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
  changes += [
    change
    for change in cell.changes
    if not (asked.is_laptop and change.partition("=")[0].endswith(SIZES))
  ]
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


def settings_of(cell: Cell, draw: Draw, asked: Asked) -> Settings | None:
  """Those of a cell and draw; None where the cell cannot be drawn so."""
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
  """(cell, settings, order, seed) of the studies, each once, cell by cell.

  Of a cell all orders of one setting and seed follow each other.
  """
  every = [
    (cell, settings, draw.order, seed)
    for name in names
    for cell in STUDIES[name].cells
    for draw in STUDIES[name].draws
    if (settings := settings_of(cell, draw, asked)) is not None
    for seed in asked.seeds
  ]
  groups: dict[tuple, dict] = {}
  for cell, settings, order, seed in every:
    group = groups.setdefault((cell, settings, seed), {})
    group[cell, settings, order, seed] = None
  cells = dict.fromkeys(one[0] for one in every)
  return [
    one
    for cell in cells
    for (of, *_), group in groups.items()
    if of == cell
    for one in group
  ]


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


def rows_of(
  name: str, table: Sequence[rows.Row], asked: Asked, *but: str
) -> list[rows.Row]:
  """A study's rows, as planned; those keys may have any value.

  Of each cell they are of one training: that of most rows, or the newest of
  several.
  """
  keys = [key_of(*one, asked) for one in planned([name], asked)]
  for key in keys:
    for free in but:
      del key[free]
  own = [
    row for row in table if any(key.items() <= row.items() for key in keys)
  ]
  made = [
    (row["cell"], row["trained_as"], row.get("parameters")) for row in own
  ]
  counts = Counter(made)  # in the order in which they were begun
  order = sorted(counts, key=counts.__getitem__)
  kept = {one[0]: one for one in order}.values()
  own = [row for row, one in zip(own, made, strict=True) if one in kept]
  each = [rows.find(own, **key) for key in keys]
  return [row for row in each if row is not None]


def alike(
  name: str, table: Sequence[rows.Row], asked: Asked, *but: str
) -> tuple[list[rows.Row], list[rows.Row]]:
  """A study's rows, see `rows_of`, and all rows, of the same judges.

  They are those that most of its rows have, or the newest of several: a cell
  that was trained again was judged by others.
  """
  judged: dict[str, list[rows.Row]] = {}
  for row in table:
    judges = repr(sorted(row.get("judges", {}).items()))
    judged.setdefault(judges, []).append(row)
  newest = sorted(judged.values(), key=lambda same: table.index(same[-1]))
  found = [(rows_of(name, same, asked, *but), same) for same in newest[::-1]]
  return max(found, key=lambda pair: len(pair[0]), default=([], []))


def time_key_of(cell: Cell, settings: Settings, asked: Asked) -> rows.Row:
  """What tells the row of how long images take, of all seeds and orders."""
  return {
    "timed": cell.name,
    "trained_as": recipe_of(cell, asked),
    "settings": rows.as_row(settings),
    "batch_size": asked.batch_size,
    "device": environment.device(),
  }


def plan(left: Sequence[tuple], asked: Asked) -> str:
  """What is missing, a line for each cell, and what it costs on one H200."""
  if not left:
    return "nothing is missing"
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
    drawn = set()
    for _, settings, order, seed in own:
      work = settings.num_ar_steps * getattr(settings.head, "num_steps", 1)
      once = settings, "own" if order == AS_CODES else order, seed
      work *= once not in drawn
      drawn.add(once)
      share = asked.num_images / 10_000
      minutes += share * (ROW_SECONDS + DRAWN_SECONDS * work / 3200) / 60
    total += minutes
    words = ", trained or begun" if is_begun else ""
    lines.append(f"{cell.name}{words}: {len(own)} rows, {minutes:.0f} minutes")
  if not asked.photographs:
    lines.append("without --data_dir no trained models are looked for")
  if not asked.is_laptop:
    lines.append(f"{total:.0f} minutes of one H200, an estimate")
  return "\n".join(lines)
