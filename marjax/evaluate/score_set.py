"""Scores images that are there, whoever made them, against real ones.

1. Open all sets, and refuse before anything long what cannot be compared: other
   sizes, statistics of another network, fewer images than features.
2. Of the images N are taken, and of the real ones N or another number; of those
   that are left, N more, or N of another set, are the control: real images,
   scored as the others are. Their numbers stand beside all scores.
3. Each set goes once through the network; only sums are kept, and features
   where a score asks for them. A hash of the pixels goes along.
4. Against a file of statistics there are moments only. ADM's has images too:
   as its authors have it, distances are taken from the moments, precision and
   recall from the images.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from marjax import outputs, schema
from marjax.evaluate import archives, environment, sets
from marjax.evaluate.scores import kinds, statistics
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.seen import Chosen, Eye, Place, Taken, check_shape, look
from marjax.evaluate.set_kinds import sides
from marjax.experiment import DataConfig
from marjax.schema import check


class Real(NamedTuple):
  """The real side, opened: statistics, images, or both; and the control."""

  known: Gathered | None
  chosen: Chosen | None
  control: Chosen | None
  about: dict[str, Any]


def score(
  images: Place,
  against: Place | None,
  eye: Eye,
  names: str = "",
  control: Place | None = None,
  taken: Taken | None = None,
  progress: bool = False,
) -> dict[str, Any]:
  """The report of a set's scores.

  Args:
    images: to be scored. against: real images, or statistics of some; None if
      no score needs them.
    names: of scores, as "fid,kid"; "" for those that suit what is there.
    control: other real images; None takes what is left of the real ones.
    progress: show rate and time left.

  Raises:
    FileNotFoundError, ValueError: see the module.
  """
  taken, start = taken or Taken(), time.perf_counter()
  _check_places(images, against, control)
  ours = taken.choose(taken.open(images), taken.num_images)
  real = _open_real(against, control, ours, eye, taken)
  names = kinds.parse(names) if names else _suiting(ours, real, eye)
  _check(names, ours, real, eye)
  needs = kinds.needs(names, eye.options)
  generated = look(ours, eye, needs, taken, "images", progress)
  side, seen_real = real.known, None
  of_real = kinds.needs_of_real(names, has_images=real.known is None)
  if real.chosen is not None and _lacking(real.known, of_real):
    seen_real = look(real.chosen, eye, of_real, taken, "real", progress)
    side = _joined(real.known, seen_real.gathered)
  unseen = None
  if real.control is not None:
    unseen = look(real.control, eye, needs, taken, "control", progress)
  seconds = time.perf_counter() - start
  compared = kinds.compare(
    names, generated.gathered, side, unseen and unseen.gathered, eye.options
  )
  return {
    "scores": compared.scores,
    "real_against_real": compared.real,
    "images": generated.about,
    "against": real.about | (seen_real.about if seen_real else {}),
    "control": unseen and unseen.about,
    **_context(eye, taken),
    "seconds": seconds,
    "scoring_seconds": time.perf_counter() - start - seconds,
  }


def _context(eye: Eye, taken: Taken) -> dict[str, Any]:
  """What the numbers of a report depend on, besides the images."""
  return {
    "network": {"name": eye.network.name, "weights_sha256": eye.digest},
    "options": schema.to_dict(eye.options),
    "draw": taken.draw,
    "device": environment.device(),
    "versions": environment.versions(),
  }


def is_statistics(place: Place) -> bool:
  """Whether a file holds moments, perhaps beside images."""
  if isinstance(place, DataConfig) or not place.is_file():
    return False
  if place.suffix != ".npz":
    # Pickles are not read, which the reader of statistics says.
    return place.suffix in (".pt", ".pkl", ".pickle")
  members = archives.members(place)
  return any(set(pair) <= members for pair in statistics.NAMES)


def table(report: dict[str, Any]) -> str:
  """The report for people: a score a line, what real images score beside it."""
  ours, real = report["images"], report["against"]
  lines = [f"images       {ours['count']} of {ours['source']}"]
  if real:
    count = real.get("count") or "an unknown number"
    lines.append(f"against      {count} of {real['source']}")
  if control := report["control"]:
    lines.append(f"real         {control['count']} of {control['source']}")
  network = report["network"]
  lines.append(
    f"network      {network['name']}, sha256 {network['weights_sha256'][:12]}"
  )
  names, floor = report["scores"], report["real_against_real"]
  width = max(map(len, names))
  lines += ["", f"{'':{width}}  {'images':>12}  {'real':>12}"]
  for name, value in names.items():
    beside = f"{floor[name]:12.5g}" if name in floor else f"{'-':>12}"
    lines.append(f"{name:{width}}  {value:12.5g}  {beside}")
  if real and not control:
    lines += ["", NO_CONTROL]
  return "\n".join(lines)


NO_CONTROL = (
  "No real images were left to be scored in place of the images; without them a"
  " distance cannot be told from its bias: name others with --control, or take"
  " fewer with --num_images and --num_real."
)


def write_report(path: Path, report: dict[str, Any], overwrite: bool) -> None:
  """Writes report.json; errors as of `outputs.write`."""
  content = json.dumps(report, indent=2) + "\n"
  outputs.write(path, content.encode(), overwrite)


def _check_places(
  images: Place, against: Place | None, control: Place | None
) -> None:
  """Refuses a set that would be compared with itself."""
  for place, what in ((against, "the real ones"), (control, "the control")):
    if place is not None and _is_same(images, place):
      raise ValueError(
        f"{_named(images)} is named twice, as the images and as {what};"
        " expected two sets: what real images score in place of others stands"
        " beside all scores anyway."
      )


def _is_same(one: Place, other: Place) -> bool:
  """Whether two places are one, however they are written."""
  if isinstance(one, Path) and isinstance(other, Path):
    return one.resolve() == other.resolve()
  return one == other


def _open_real(
  against: Place | None,
  control: Place | None,
  ours: Chosen,
  eye: Eye,
  taken: Taken,
) -> Real:
  """Opens the real side; nothing is shown to a network."""
  known, chosen, about, opened = None, None, {}, None
  count = len(ours.indices)
  if against is not None and is_statistics(against):
    read = statistics.read(against)
    known = read.gathered(eye.network, eye.digest)
    about = {"statistics": dataclasses.asdict(read.about)}
    about |= {
      "source": read.about.source or f"statistics {against.name}",
      "count": read.about.count,
    }
    size = read.about.image_size
    check(
      size in (0, ours.images.shape[0]),
      f"{_named(against)} has statistics of images of {size} pixels, and those"
      f" of {ours.images.description} are {sides(ours.images.shape)}; expected"
      " one size: pass --image_size, or make statistics of that size.",
    )
    has_images = against.suffix == ".npz" and not archives.members(
      against
    ).isdisjoint(archives.IMAGES)
    if has_images:
      chosen = taken.choose(sets.open_set(against), taken.num_real)
  elif against is not None:
    opened = taken.open(against)
    wanted = taken.num_real or min(count, len(opened))
    chosen = taken.choose(opened, wanted)
  other = None
  if control is not None and not (against and _is_same(control, against)):
    other = taken.choose(taken.open(control), count)
  elif opened is not None and len(opened) - len(chosen.indices) >= count:
    left = sets.others(len(opened), chosen.indices, count, taken.draw)
    other = Chosen(opened, left)
  return Real(known, chosen, other, about)


def _suiting(ours: Chosen, real: Real, eye: Eye) -> tuple[str, ...]:
  """The scores that what is there allows."""
  network, names = eye.network, []
  if real.known is not None or real.chosen is not None:
    names.append("fid")
    if network.num_places and (real.known is None or real.known.spatial):
      names.append("sfid")
  if network.num_logits and network.distance == "fid":
    names.append("is")
  if real.chosen is not None:
    fewest = min(len(ours.indices), len(real.chosen.indices))
    names += ["kid"] * (fewest >= eye.options.subset_size) + ["pr"]
    names += ["copies"] * (real.control is not None)
  check(
    bool(names),
    f"there is nothing to compare {ours.images.description} with; expected"
    " --against real images or statistics of some, or --scores is.",
  )
  return tuple(names)


def _check(names: tuple[str, ...], ours: Chosen, real: Real, eye: Eye) -> None:
  """Refuses what could not be scored, before a network runs."""
  parts = [part for part in (ours, real.chosen, real.control) if part]
  for part in parts:
    check(
      part.images.shape == ours.images.shape,
      f"the images of {part.images.description} are"
      f" {sides(part.images.shape)}, those of {ours.images.description}"
      f" {sides(ours.images.shape)}; expected one size: pass --image_size,"
      " or --channels.",
    )
  check_shape(ours.images, eye)
  needs = kinds.needs_of_real(names)
  lacking = _lacking(real.known, needs) if real.chosen is None else []
  but = ", for statistics do not have them," if real.known else ""
  check(
    not lacking,
    f"the scores {', '.join(names)} need {', '.join(lacking)} of real images;"
    f" expected --against real images{but} or other scores.",
  )
  check(
    real.control is not None
    or not any(kinds.SCORES[name].needs_unseen for name in names),
    f"near copies are told by {len(ours.indices)} real images beside those that"
    " are compared with, and there are not so many; expected --control real"
    " images, fewer with --num_images and --num_real, or other --scores.",
  )
  fewest = min(len(part.indices) for part in parts)
  kinds.check_scores(
    names, eye.network, fewest, eye.options, ours.images.num_classes
  )


def _lacking(known: Gathered | None, needs: frozenset[str]) -> list[str]:
  """What statistics do not have."""
  return [need for need in sorted(needs) if getattr(known, need, None) is None]


def _joined(known: Gathered | None, seen: Gathered) -> Gathered:
  """Moments of a file, if there are some, and the rest of its images."""
  if known is None:
    return seen
  return seen._replace(moments=known.moments, spatial=known.spatial)


def _named(place: Place) -> str:
  if isinstance(place, DataConfig):
    return f"{place.source} {place.name}".strip()
  return outputs.shown(place)
