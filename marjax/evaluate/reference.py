"""The real images that others are compared with, opened and then looked at.

1. They are statistics of a file, where the scores need no more than moments; or
   a folder, an .npz or a data source, whose images the same network sees. ADM's
   statistics have images too: as its authors have it, distances are taken from
   the moments, precision and recall from the images.
2. Of images as many are taken as are scored, or another number that is asked
   for. Other real ones, the control, stand for what real images score in their
   place: of another set, or of what was not taken before.
3. What was gathered may be kept in the folder of a run, so that it goes on
   without looking at them again.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from marjax import outputs
from marjax.evaluate import archives, sets
from marjax.evaluate.begun import Begun
from marjax.evaluate.scores import kinds, statistics
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.seen import Chosen, Eye, Place, Taken, look
from marjax.evaluate.set_kinds import sides
from marjax.experiment import DataConfig
from marjax.schema import check


class Real(NamedTuple):
  """The real side, opened: statistics, images, or both; and the control.

  `about`: what a file of statistics says of itself.
  """

  about: dict[str, Any]
  known: Gathered | None = None
  chosen: Chosen | None = None
  control: Chosen | None = None


class Compared(NamedTuple):
  """What was gathered of the real side.

  Attributes:
    real, control: see `kinds.compare`.
    about, about_control: of both, for a report; None without a control.
  """

  real: Gathered | None
  control: Gathered | None
  about: dict[str, Any]
  about_control: dict[str, Any] | None


def is_statistics(place: Place) -> bool:
  """Whether a file holds moments, perhaps beside images."""
  if isinstance(place, DataConfig) or not place.is_file():
    return False
  if place.suffix != ".npz":
    # Pickles are not read, which the reader of statistics says.
    return place.suffix in (".pt", ".pkl", ".pickle")
  members = archives.members(place)
  return any(set(pair) <= members for pair in statistics.NAMES)


def named(place: Place) -> str:
  """A place, for people."""
  if isinstance(place, DataConfig):
    return f"{place.source} {place.name}".strip()
  return outputs.shown(place)


def open_real(
  against: Place,
  count: int,
  shape: tuple[int, int, int],
  eye: Eye,
  taken: Taken,
) -> Real:
  """The real side without a control; nothing is shown to the network.

  Args:
    count: images that are scored. shape: of each, (H, W, C).

  Raises:
    FileNotFoundError, ValueError: there are none to compare with.
  """
  if not is_statistics(against):
    opened = taken.open(against)
    wanted = taken.num_real or min(count, len(opened))
    return Real({}, chosen=taken.choose(opened, wanted))
  return _of_statistics(against, shape, eye, taken)


def _of_statistics(
  path: Path, shape: tuple[int, int, int], eye: Eye, taken: Taken
) -> Real:
  """Moments of a file and, of ADM's, its images for all else."""
  read = statistics.read(path)
  known, size = read.gathered(eye.network, eye.digest), read.about.image_size
  check(
    size in (0, shape[0]),
    f"{named(path)} has statistics of images of {size} pixels, and those to be"
    f" scored are {sides(shape)}; expected one size: pass --image_size, or make"
    " statistics of that size.",
  )
  chosen = None
  if path.suffix == ".npz" and set(archives.IMAGES) & archives.members(path):
    chosen = taken.choose(sets.open_set(path), taken.num_real)
  return Real(dataclasses.asdict(read.about), known, chosen)


def left(chosen: Chosen, count: int, seed: int) -> Chosen | None:
  """As many of the images that were not chosen, if there are so many."""
  images, indices = chosen
  if len(images) - len(indices) < count:
    return None
  return Chosen(images, sets.others(len(images), indices, count, seed))


def check_real(
  names: tuple[str, ...], count: int, shape: tuple[int, int, int], real: Real
) -> None:
  """Refuses a real side that the scores cannot be computed with.

  Args:
    names: of scores. count, shape: of the images that are scored.

  Raises:
    ValueError: images of another size, or something is missing.
  """
  for part in filter(None, (real.chosen, real.control)):
    check(
      part.images.shape == shape,
      f"the images of {part.images.description} are"
      f" {sides(part.images.shape)}, those to be scored {sides(shape)};"
      " expected one size: pass --image_size, or --channels.",
    )
  needs = kinds.needs_of_real(names)
  lacking = _lacking(real.known, needs) if real.chosen is None else []
  but = ", for statistics do not have them," if real.known else ""
  check(
    not lacking,
    f"the scores {', '.join(names)} need {', '.join(lacking)} of real images;"
    f" expected --against real images{but} or other scores.",
  )
  check(
    real.control is not None or not kinds.need_unseen(names),
    f"near copies are told by {count} real images beside those that are"
    " compared with, and there are not so many; expected --control real images,"
    " fewer with --num_images and --num_real, or other --scores.",
  )


def look_at(
  real: Real,
  names: tuple[str, ...],
  eye: Eye,
  taken: Taken,
  progress: bool = False,
  begun: Begun | None = None,
) -> Compared:
  """Shows the images to the network, those that the scores need.

  Args:
    names: of scores. begun: where what is gathered is kept, if it is.
  """
  side, about = real.known, real.about
  needs = kinds.needs_of_real(names, has_images=real.known is None)
  if real.chosen is not None and _lacking(real.known, needs):
    seen = look(real.chosen, eye, needs, taken, "real", progress, begun)
    side, about = seen.gathered, about | seen.about
    if known := real.known:
      side = side._replace(moments=known.moments, spatial=known.spatial)
  if real.control is None:
    return Compared(side, None, about, None)
  own = kinds.needs(names, eye.options)
  control = look(real.control, eye, own, taken, "control", progress, begun)
  return Compared(side, control.gathered, about, control.about)


def _lacking(known: Gathered | None, needs: frozenset[str]) -> list[str]:
  """What statistics do not have."""
  return [need for need in sorted(needs) if getattr(known, need, None) is None]
