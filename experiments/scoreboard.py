"""A scoreboard of photographs: settings, seeds and controls, a row each.

1. Judges are feature networks with the user's weights. All of them see the
   training images, which stand for real ones, and the test images, once. The
   network `label` says whether an image shows its class. Of the others the one
   that stands highest in docs/networks.md gives Fréchet distance, KID,
   precision, recall and near copies, and the rest a Fréchet distance.
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
   them by the features of the same network.

    OUT/rows.jsonl  OUT/table.md  OUT/curves.png  OUT/CHECKPOINT_CLASS.png
    OUT/seen-...    what networks saw of real images, so that they look once

Command   python -m experiments.scoreboard --checkpoints out/cifar10 \
            --controls out/cifar10_regression --out out/scoreboard \
            --weights mobilenet=mobilenet.safetensors,label=label.safetensors
Cost      N images of every setting and seed; --dry_run counts them
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import judging, programs, rows, samplers
from experiments import scoreboard_pictures as drawn
from marjax import outputs
from marjax.evaluate import archives, run, sets
from marjax.evaluate.seen import Eye, Taken
from marjax.experiment import DataConfig
from marjax.generate.settings import Settings
from marjax.pipeline import Pipeline, load
from marjax.schema import check

GUIDANCE = (1.0, 3.0, 6.0, 9.0, 14.0, 20.0)
TEMPERATURE = (0.9, 0.95, 1.0, 1.05)


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


class Member(NamedTuple):
  """A checkpoint of the board; `is_control`: only at its own settings."""

  name: str
  pipe: Pipeline
  is_control: bool


def data_of(members: Sequence[Member], data_dir: str) -> DataConfig:
  """The photographs that all checkpoints are judged by, those of the first.

  Raises:
    ValueError: another was trained on images of another size or number of
      classes.
  """
  data = run.known_data(members[0].pipe, data_dir=data_dir)
  for member in members[1:]:
    for field in ("image_size", "channels", "num_classes"):
      first = getattr(data, field)
      own = getattr(member.pipe.card.data, field, first)  # or it is not said
      check(
        own == first,
        f"{member.name} has {field} {own}, and {members[0].name} {first};"
        " expected checkpoints of the same kind of images: make a scoreboard of"
        " each.",
      )
  return dataclasses.replace(data, flip=False)


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
  path = asked.out / "images" / f"{member.name}-{rows.digest(key)}.npz"
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


def measure(member: Member, board: judging.Board, asked: Asked) -> None:
  """Adds the rows of a checkpoint that are missing."""
  known = board.known()
  for settings in settings_of(member, asked):
    for seed in asked.seeds:
      key = key_of(member, settings, seed, asked) | known
      if rows.find(rows.read(asked.rows), **key) is not None:
        continue
      path = images_of(member, settings, seed, asked)
      chosen = Taken().choose(sets.open_set(path), None)
      title = (
        f"{member.name}, guidance {settings.guidance_scale:g}, temperature"
        f" {settings.temperature:g}, seed {seed}"
      )
      scores = judging.scored(board, chosen, title)
      judging.add(asked.rows, key | {"scores": scores}, title)
      if not _is_shown(member, settings, seed, asked):
        path.unlink()


def _is_shown(
  member: Member, settings: Settings, seed: int, asked: Asked
) -> bool:
  return settings == member.pipe.settings() and seed == asked.seeds[0]


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


def show(members: Sequence[Member], board: judging.Board, asked: Asked) -> None:
  """Writes the table, the curves and the samples; prints the table."""
  known = board.known().items()
  # Of a checkpoint that was trained again only what it is now is shown.
  made_of = {m.name: samplers.fingerprint(m.pipe.params) for m in members}
  table = [
    row
    for row in rows.read(asked.rows)
    if known <= row.items()
    and made_of.get(row["images"], row.get("parameters"))
    == row.get("parameters")
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
  picture = drawn.curves(table, own, judging.TEST)
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
  networks = judging.eyes(weights, asked.num_images, args.allow_few)
  data = data_of(members, args.data_dir)
  for member in members:
    settings_of(member, asked)  # what it cannot be drawn with is refused now
  if args.dry_run:
    train = sets.open_set(data)
    judges = judging.digests(networks.values())
    against = judging.known(train, asked.num_real, judges)
    print(plan(members, asked, against))
    return
  programs.check_drawing()
  rows.make(asked.rows)
  with rows.locked(asked.out / "lock", waits=False) as is_ours:
    check(
      is_ours is not None,
      f"another process makes a scoreboard in {asked.out}; expected one at a"
      " time: wait for it, or choose another --out.",
    )
    _fill(members, data, networks, asked)


def _fill(
  members: Sequence[Member],
  data: DataConfig,
  networks: Mapping[str, Eye],
  asked: Asked,
) -> None:
  """Adds the rows that are missing, and shows all."""
  real = judging.real_images(data, asked.num_images, asked.num_real)
  board = judging.board_of(*real, networks, asked.out, asked.num_images)
  parts = judging.controls(*real, asked.num_images)
  judging.add_controls(asked.rows, parts, board.known(), lambda: board)
  for member in members:
    measure(member, board, asked)
  show(members, board, asked)


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser(__spec__, __doc__)

  def several(values):
    return ",".join(f"{value:g}" for value in values)

  add = parser.add_argument
  own = "folders of models A,B"
  add("--checkpoints", required=True, help=f"{own}, drawn at all settings")
  add("--controls", default="", help=f"{own}, drawn at their own settings only")
  add("--weights", required=True, help="NETWORK=FILE,NETWORK=FILE, or pixels")
  add("--out", type=Path, required=True, help="folder of the results")
  add("--data_dir", default="", help="of real images")
  add(
    "--num_images",
    type=programs.count,
    default=10_000,
    help="of a row (default: %(default)s)",
  )
  add("--num_real", type=programs.count, help="training images (default: all)")
  add("--seeds", default="0,1,2", help="of generation (default: %(default)s)")
  add("--batch_size", type=programs.count, help="images that are drawn at once")
  add("--guidance", default=several(GUIDANCE), help="default: %(default)s")
  add(
    "--temperature",
    help=f"default: {several(TEMPERATURE)} where one has an effect",
  )
  add("--allow_few", action="store_true", help="fewer images than features")
  add("--dry_run", action="store_true", help="print the plan")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
