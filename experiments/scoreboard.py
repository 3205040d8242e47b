"""A scoreboard of photographs: settings, seeds and controls, a row each.

1. Judges are feature networks with the user's weights. All of them see the
   training images, which stand for real ones, and the test images, once. The
   network `label` says whether an image shows its class; the first of the
   others gives Fréchet distance, KID, precision, recall and near copies; the
   rest a Fréchet distance.
2. Controls are scored as if they were generated: real test images, whose row is
   what can be reached; and training images with noise.
3. Each checkpoint draws N images for every guidance at its own temperature, and
   for every temperature at its own guidance, where one has an effect, with
   several seeds; a checkpoint of `--controls`, as one with an L2 head, at its
   own settings alone. A row that is there already, of the same parameters and
   judges, is skipped. Images lie in OUT/images until their row is written.
4. TABLE, mean and standard deviation over seeds, is printed, and drawn over
   guidance and temperature. Of each checkpoint's own settings and first seed
   100 samples of a class stand beside the training images that are nearest to
   them by the first judge's features.

    OUT/rows.jsonl  OUT/table.md  OUT/curves.png  OUT/CHECKPOINT_CLASS.png

Command   python -m experiments.scoreboard --checkpoints out/cifar10 \
            --controls out/cifar10_regression --out out/scoreboard \
            --weights mobilenet=mobilenet.safetensors,label=label.safetensors
Cost      N images of every setting and seed; --dry_run counts them
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import programs, rows, samplers
from experiments import scoreboard_pictures as drawn
from marjax import outputs
from marjax.evaluate import archives, environment, run, seen, sets
from marjax.evaluate.scores import kinds
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.scores.options import Options
from marjax.evaluate.seen import Chosen, Taken
from marjax.evaluate.sets import ImageSet
from marjax.experiment import DataConfig
from marjax.generate.settings import Settings
from marjax.pipeline import Pipeline, load
from marjax.schema import check

GUIDANCE = (1.0, 3.0, 6.0, 9.0, 14.0, 20.0)
TEMPERATURE = (0.9, 0.95, 1.0, 1.05)
NOISE = 8.0
"""Standard deviation, in grey levels, of the control with noise."""

TEST, NOISY = "real test images", f"training images, noise of {NOISE:g}"
SUBSET = 1000


class Asked(NamedTuple):
  """What is measured of every setting.

  Attributes:
    num_images: of a row. seeds: of generation. guidance, temperature: a sweep
      over each; None for the usual temperatures, where one has an effect.
      out: folder of the results. num_real: training images, None for all.
  """

  num_images: int
  seeds: tuple[int, ...]
  guidance: tuple[float, ...]
  temperature: tuple[float, ...] | None
  out: Path
  num_real: int | None
  batch_size: int | None

  @property
  def rows(self) -> Path:
    """The file of rows."""
    return self.out / "rows.jsonl"


class Judge(NamedTuple):
  """A network, the scores asked of it, and what it saw of real images."""

  eye: seen.Eye
  names: tuple[str, ...]
  real: Gathered
  unseen: Gathered


class Board(NamedTuple):
  """Judges, and the real images that they saw."""

  judges: list[Judge]
  train: Chosen
  test: Chosen

  def known(self) -> dict[str, Any]:
    """What a row is scored by and against."""
    judges = digests(judge.eye for judge in self.judges)
    return known(self.train.images, len(self.train.indices), judges)


class Member(NamedTuple):
  """A checkpoint of the board; `is_control`: only at its own settings."""

  name: str
  pipe: Pipeline
  is_control: bool


class Noisy:
  """Images of another set with noise that depends on their number alone."""

  def __init__(self, images: ImageSet):
    self._images = images
    self.shape, self.num_classes = images.shape, images.num_classes
    self.crop = images.crop
    self.description = f"{images.description}, noise of {NOISE:g}"

  def __len__(self) -> int:
    return len(self._images)

  def rows(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Images and labels at ascending indices."""
    pairs = zip(indices.tolist(), self._images.rows(indices), strict=True)
    for index, (image, label) in pairs:
      noise = np.random.default_rng(index).normal(0, NOISE, image.shape)
      noisy = np.rint(np.clip(image + noise, 0, 255)).astype(np.uint8)
      yield noisy, label


def digests(seeing: Iterable[seen.Eye]) -> dict[str, str]:
  """The hash of the weights of each network."""
  return {eye.network.name: eye.digest[:12] for eye in seeing}


def eyes(
  weights: Mapping[str, str], num_images: int, allow_few: bool
) -> dict[str, seen.Eye]:
  """Networks by name, the first of them with all scores."""
  check(
    bool(set(weights) - {"label"}),
    f"--weights names {', '.join(weights) or 'no network'}; expected one whose"
    " features are compared, such as mobilenet=FILE.",
  )
  size = min(SUBSET, num_images)
  options = Options(subset_size=size, allow_few=allow_few)
  return {
    name: seen.load_eye(name, file, options) for name, file in weights.items()
  }


def scores_of(name: str, first: str) -> tuple[str, ...]:
  """The scores that a network is asked for."""
  if name == "label":
    return ("accuracy",)
  return ("fid", "kid", "pr", "copies") if name == first else ("fid",)


def board_of(
  data: DataConfig, networks: Mapping[str, seen.Eye], asked: Asked
) -> Board:
  """Shows the real images to all networks.

  Raises:
    ValueError, OSError: images are missing, too few or not those of a network.
  """
  taken = Taken()
  train = taken.choose(taken.open(data), asked.num_real)
  unseen = Taken(split=data.test_split)
  opened = unseen.open(data)
  test = unseen.choose(opened, min(asked.num_images, len(opened)))
  first = next(name for name in networks if name != "label")
  fewest = min(asked.num_images, len(train.indices), len(test.indices))
  named = {name: scores_of(name, first) for name in networks}
  of_real, of_test = [], []
  for name, eye in networks.items():
    own = named[name]
    seen.check_shape(train.images.shape, train.images.description, eye)
    kinds.check_scores(own, eye.network, fewest, eye.options, data.num_classes)
    of_real.append((eye, kinds.needs_of_real(own) | {"moments"}))
    of_test.append((eye, kinds.needs(own)))
  real = seen.look_together(train, of_real, taken, "train", True)
  control = seen.look_together(test, of_test, taken, "test", True)
  judges = map(Judge, networks.values(), named.values(), real, control)
  return Board(list(judges), train, test)


def scored(board: Board, chosen: Chosen, title: str) -> dict[str, float]:
  """All scores of some images, as if they were generated."""
  if chosen is board.test:  # which all have seen
    ours = [judge.unseen for judge in board.judges]
  else:
    asked = [(judge.eye, kinds.needs(judge.names)) for judge in board.judges]
    ours = seen.look_together(chosen, asked, Taken(), title, True)
  numbers: dict[str, float] = {}
  for judge, gathered in zip(board.judges, ours, strict=True):
    parts = kinds.Sets(gathered, judge.real, judge.unseen, judge.eye.options)
    for name in judge.names:
      numbers |= kinds.SCORES[name].compute(parts)
  return numbers


def controls(board: Board, asked: Asked) -> None:
  """Adds the rows of real images and of those with noise, if missing."""
  train = board.train
  count = min(asked.num_images, len(train.indices))
  some = train.indices[sets.choose(len(train.indices), count)]
  parts = {TEST: board.test, NOISY: Chosen(Noisy(train.images), some)}
  add_controls(board, asked, parts)


def add_controls(
  board: Board, asked: Asked, parts: Mapping[str, Chosen]
) -> None:
  """Adds the rows of images that no member of the board drew, if missing."""
  for name, chosen in parts.items():
    key = {
      "images": name,
      "kind": "control",
      "source": chosen.images.description,
      "num_images": len(chosen.indices),
      **board.known(),
    }
    if rows.find(rows.read(asked.rows), **key) is None:
      _add(asked, key | {"scores": scored(board, chosen, name)})


def settings_of(member: Member, asked: Asked) -> list[Settings]:
  """A checkpoint's own settings, and those of both sweeps, each once."""
  own = member.pipe.settings()
  if member.is_control:
    return [own]
  temperatures = asked.temperature
  if temperatures is None:
    temperatures = TEMPERATURE if own.head.has_temperature else ()
  swept = [
    *(member.pipe.settings({"guidance_scale": x}) for x in asked.guidance),
    *(member.pipe.settings({"temperature": x}) for x in temperatures),
  ]
  return list(dict.fromkeys([own, *swept]))


def key_of(
  member: Member, settings: Settings, seed: int, asked: Asked
) -> dict[str, Any]:
  """What tells a row from others, but for the judges."""
  return {
    "images": member.name,
    "kind": "generated",
    "head": member.pipe.card.model.head.kind,
    **samplers.key_of(member.pipe, settings, asked.num_images, seed),
  }


def images_of(
  member: Member, settings: Settings, seed: int, asked: Asked
) -> Path:
  """A file of N generated images with their labels, made unless it is there."""
  key = key_of(member, settings, seed, asked)
  path = (
    asked.out
    / "images"
    / (
      f"{member.name}_{settings.guidance_scale:g}_{settings.temperature:g}"
      f"_{seed}_{asked.num_images}_{key['parameters']:08x}.npz"
    )
  )
  if not path.exists():
    pipe = member.pipe
    count, classes = asked.num_images, pipe.card.num_classes
    labels = run.balanced_labels(count, classes)
    images = pipe.generate(
      labels, seed, settings, batch_size=asked.batch_size, progress=True
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    archives.write(path, images.shape, [images], labels)
  return path


def measure(member: Member, board: Board, asked: Asked) -> None:
  """Adds the rows of a checkpoint that are missing."""
  for settings in settings_of(member, asked):
    for seed in asked.seeds:
      key = key_of(member, settings, seed, asked)
      key |= board.known()
      if rows.find(rows.read(asked.rows), **key) is not None:
        continue
      path = images_of(member, settings, seed, asked)
      chosen = Taken().choose(sets.open_set(path), None)
      title = f"{member.name}, seed {seed}"
      _add(asked, key | {"scores": scored(board, chosen, title)})
      if not _is_shown(member, settings, seed, asked):
        path.unlink()


def _is_shown(
  member: Member, settings: Settings, seed: int, asked: Asked
) -> bool:
  return settings == member.pipe.settings() and seed == asked.seeds[0]


def _add(asked: Asked, row: dict[str, Any]) -> None:
  own = {"device": environment.device(), "versions": environment.versions()}
  rows.append(asked.rows, row | own)
  numbers = ", ".join(
    f"{name} {value:.4g}"
    for name, value in row["scores"].items()
    if not name.endswith("_deviation")
  )
  print(f"{row['images']}: {numbers}", flush=True)


def known(
  train: ImageSet, num_real: int | None, judges: dict[str, str]
) -> dict[str, Any]:
  """What a row is scored by and against."""
  count = len(train) if num_real is None else num_real
  real = train.description
  return {"num_real": count, "real": real, "judges": judges}


def plan(
  members: Sequence[Member], asked: Asked, against: dict[str, Any]
) -> str:
  """What is not there yet, a line for each checkpoint and one for all."""
  lines, total = [], 0
  done = rows.read(asked.rows)
  for member in members:
    keys = [
      key_of(member, settings, seed, asked) | against
      for settings in settings_of(member, asked)
      for seed in asked.seeds
    ]
    missing = sum(rows.find(done, **key) is None for key in keys)
    total += missing * asked.num_images
    lines.append(
      f"{member.name}: {missing} of {len(keys)} rows missing, of"
      f" {asked.num_images} images each"
    )
  return "\n".join([*lines, f"{total} images to draw and score"])


def show(members: Sequence[Member], board: Board, asked: Asked) -> None:
  """Writes the table, the curves and the samples; prints the table."""
  table = [
    row
    for row in rows.read(asked.rows)
    if all(row.get(name) == value for name, value in board.known().items())
  ]
  real = drawn.of_count(
    [row for row in table if row["kind"] == "control"], asked.num_images
  )
  table = real + [
    row
    for row in table
    if row["kind"] != "control" and row["num_images"] == asked.num_images
  ]
  own = {m.name: rows.as_row(m.pipe.settings()) for m in members}
  text = drawn.of_settings(table)
  # All three are made of the rows and images, so nothing is lost.
  outputs.write(asked.out / "table.md", text.encode(), overwrite=True)
  picture = drawn.curves(table, own, TEST)
  outputs.write(asked.out / "curves.png", picture, overwrite=True)
  judge = next(j for j in board.judges if j.eye.network.name != "label")
  for member in members:
    path = images_of(member, member.pipe.settings(), asked.seeds[0], asked)
    images = sets.open_set(path)
    drawn.write_samples(asked.out, member.name, images, judge, board.train)
  print(text)


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → rows → table and pictures; 2 when something about them is wrong."""
  args = _flags(argv)
  members = [
    Member(Path(path).name, load(path), is_control)
    for paths, is_control in (
      (args.checkpoints, False),
      (args.controls, True),
    )
    for path in filter(None, paths.split(","))
  ]
  names = [member.name for member in members]
  check(
    len(set(names)) == len(names) > 0,
    f"the checkpoints are {', '.join(names) or 'none'}; expected one or more,"
    " in folders of different names.",
  )
  programs.check_counts(args, "num_images", "num_real", "batch_size")
  asked = Asked(
    args.num_images,
    programs.numbers("--seeds", args.seeds),
    programs.numbers("--guidance", args.guidance, float),
    args.temperature
    and programs.numbers("--temperature", args.temperature, float),
    args.out,
    args.num_real,
    args.batch_size,
  )
  run.balanced_labels(asked.num_images, members[0].pipe.card.num_classes)
  weights = programs.weights(args.weights)
  networks = eyes(weights, asked.num_images, args.allow_few)
  data = run.known_data(members[0].pipe, data_dir=args.data_dir)
  data = dataclasses.replace(data, flip=False)
  if args.dry_run:
    train = sets.open_set(data)
    judges = digests(networks.values())
    print(plan(members, asked, known(train, asked.num_real, judges)))
    return
  rows.make(asked.rows)
  board = board_of(data, networks, asked)
  controls(board, asked)
  for member in members:
    measure(member, board, asked)
  show(members, board, asked)


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)

  def several(values):
    return ",".join(f"{value:g}" for value in values)

  add = parser.add_argument
  add("--checkpoints", required=True, help="A,B: swept")
  add("--controls", default="", help="C,D: at their own settings only")
  add("--weights", required=True, help="NETWORK=FILE,NETWORK=FILE")
  add("--out", type=Path, required=True, help="folder of the results")
  add("--data_dir", default="", help="of real images")
  add("--num_images", type=int, default=10_000)
  add("--num_real", type=int, help="training images (default: all)")
  add("--seeds", default="0,1,2")
  add("--batch_size", type=int, help="images that are drawn at once")
  add("--guidance", default=several(GUIDANCE))
  add(
    "--temperature",
    help=f"default: {several(TEMPERATURE)} where one has an effect",
  )
  add("--allow_few", action="store_true", help="fewer images than features")
  add("--dry_run", action="store_true", help="print the plan")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
