"""Scores images that are there, whoever made them, against real ones.

1. Open all sets, and refuse before anything long what cannot be compared: other
   sizes, statistics of another network, fewer images than features.
2. Of the images N are taken, and of the real ones N or another number; of those
   that are left, N more, or N of another set, are the control: real images,
   scored as the others are. Their numbers stand beside all scores.
3. Each set goes once through the network; only sums are kept, and features
   where a score asks for them. A hash of the pixels goes along.
4. The real side may be a file of statistics: see `marjax.evaluate.reference`.
"""

import json
import time
from pathlib import Path
from typing import Any

from marjax import outputs, schema
from marjax.evaluate import environment, reference
from marjax.evaluate.reference import Real, named, open_real
from marjax.evaluate.scores import kinds
from marjax.evaluate.seen import Chosen, Eye, Place, Taken, check_shape, look
from marjax.schema import check


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
  seen = reference.look_at(real, names, eye, taken, progress)
  seconds = time.perf_counter() - start
  compared = kinds.compare(
    names, generated.gathered, seen.real, seen.control, eye.options
  )
  return {
    "scores": compared.scores,
    "real_against_real": compared.real,
    "images": generated.about,
    "against": seen.about,
    "control": seen.about_control,
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


def table(report: dict[str, Any]) -> str:
  """The report for people: a score a line, what real images score beside it."""
  ours, real = report["images"], report["against"]
  lines = [f"images       {ours['count']} of {ours['source']}"]
  if real:
    count = real.get("count") or "an unknown number"
    lines.append(f"against      {count} of {real['source']}")
  if control := report["control"]:
    lines.append(f"real         {control['count']} of {control['source']}")
  name, digest = report["network"].values()
  hashed = f", sha256 {digest[:12]}" if digest else ""
  lines.append(f"network      {name}{hashed}")
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
        f"{named(images)} is named twice, as the images and as {what};"
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
  count, real = len(ours.indices), Real({})
  if against is not None:
    real = open_real(against, count, ours.images.shape, eye, taken)
  if about := real.about:
    source = about["source"] or f"statistics {against.name}"
    about = {"statistics": about, "source": source, "count": about["count"]}
    real = real._replace(about=about)
  other = None
  if control is not None and not (against and _is_same(control, against)):
    other = taken.choose(taken.open(control), count)
  elif real.chosen is not None and real.known is None:
    other = reference.left(real.chosen, count, taken.draw)
  return real._replace(control=other)


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
  shape = ours.images.shape
  reference.check_real(names, len(ours.indices), shape, real)
  check_shape(shape, ours.images.description, eye)
  parts = [part for part in (ours, real.chosen, real.control) if part]
  fewest = min(len(part.indices) for part in parts)
  kinds.check_scores(
    names, eye.network, fewest, eye.options, ours.images.num_classes
  )
