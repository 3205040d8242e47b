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
import hashlib
import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree
from tqdm import tqdm

from marjax import outputs, schema
from marjax.evaluate import archives, environment, sets
from marjax.evaluate.networks import kinds as networks
from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.scores import kinds, statistics
from marjax.evaluate.scores.gathered import Gathered, Gatherer, Plan
from marjax.evaluate.scores.options import DEFAULTS, Options
from marjax.evaluate.set_kinds import sides
from marjax.evaluate.sets import ImageSet
from marjax.experiment import DataConfig
from marjax.parallel.mesh import make_mesh
from marjax.requests import batching
from marjax.schema import Positive, Range, Seed, Size, check

LARGEST_BATCH = 64
"""Images that the network sees at a time, on each device."""

Place = Path | DataConfig


@schema.config
class Taken:
  """Which images are taken of the sets; each is a flag.

  Attributes:
    num_images: of the images to be looked at, and of the control (default:
      all).
    num_real: of the real images (default: as many as of the others, or all
      there are if those are fewer).
    image_size: cut the middle square out of each file of a folder, shrunk to
      that many pixels as for training (default: all must have one size).
    channels: 1 or 3, grey or RGB, to which files of a folder are converted.
    split: of a data source (default: its data.train_split).
    batch_size: images that the network sees at a time (default: up to 64 on
      each device).
    draw: seed by which images are drawn from sets with more than are taken.
  """

  num_images: Positive | None = None
  num_real: Positive | None = None
  image_size: Annotated[int, Range(1, 2**14)] | None = None
  channels: Literal[1, 3] = 3
  split: str = ""
  batch_size: Size | None = None
  draw: Seed = 0

  def open(self, place: Place) -> ImageSet:
    """The images of a place; errors as of `sets.open_set`."""
    return sets.open_set(place, self.image_size, self.channels, self.split)

  def choose(self, images: ImageSet, count: int | None) -> "Chosen":
    """`count` images of a set; None for all."""
    if count is not None and count > len(images):
      raise ValueError(
        f"{count} images are asked for of {images.description}; expected at"
        f" most {len(images)}: lower --num_images or --num_real, or add images."
      )
    count = len(images) if count is None else count
    return Chosen(images, sets.choose(len(images), count, self.draw))


class Chosen(NamedTuple):
  """Some images of a set, by ascending indices."""

  images: ImageSet
  indices: Int[np.ndarray, " N"]


class Eye(NamedTuple):
  """A network that is ready to look.

  Attributes:
    network: with its parameters. digest: SHA-256 of the file of its weights.
    options: of scores. mesh: whose devices share a batch.
  """

  network: Network
  params: PyTree
  digest: str
  options: Options
  mesh: jax.sharding.Mesh


class Seen(NamedTuple):
  """What an eye saw of some images; `about` them, for a report."""

  gathered: Gathered
  about: dict[str, Any]


class Real(NamedTuple):
  """The real side, opened: statistics, images, or both; and the control."""

  known: Gathered | None
  chosen: Chosen | None
  control: Chosen | None
  about: dict[str, Any]


def load_eye(name: str, file: str, options: Options = DEFAULTS) -> Eye:
  """A network by its name, with the weights of a file.

  Raises:
    ValueError: no such network, or other weights. FileNotFoundError: there is
      no such file; says how it is made.
  """
  network, params, digest = networks.load(name, file)
  return Eye(network, params, digest, options, make_mesh())


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
  check(
    against is None or images != against,
    f"{_named(images)} is named twice, as the images and as the real ones;"
    " expected two sets: what real images score in place of others is beside"
    " all scores anyway.",
  )
  ours = taken.choose(taken.open(images), taken.num_images)
  real = _open_real(against, control, ours, eye, taken)
  names = kinds.parse(names) if names else _suiting(ours, real, eye)
  _check(names, ours, real, eye)
  needs = kinds.needs(names, eye.options)
  generated = look(ours, eye, needs, taken, "images", progress)
  side, seen_real = real.known, None
  if real.chosen is not None:
    of_real = kinds.needs_of_real(names) | {"moments"}
    if "fd_infinity" in names:
      of_real |= {"features"}
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
    "network": {"name": eye.network.name, "weights_sha256": eye.digest},
    "options": schema.to_dict(eye.options),
    "draw": taken.draw,
    "seconds": seconds,
    "scoring_seconds": time.perf_counter() - start - seconds,
    "device": environment.device(),
    "versions": environment.versions(),
  }


def look(
  chosen: Chosen,
  eye: Eye,
  needs: frozenset[str],
  taken: Taken,
  title: str = "images",
  progress: bool = False,
) -> Seen:
  """Shows images to the network, each once.

  Raises:
    ValueError: an image cannot be read, or has another size; it is named. What
      the network sees of one is not finite.
  """
  images, indices = chosen
  plan = Plan(eye.network, needs, len(indices), eye.options)
  gatherer = Gatherer(plan, eye.params, eye.mesh)
  size = batching.batch_size(
    eye.mesh, len(indices), taken.batch_size, LARGEST_BATCH
  )
  pixels, waiting = hashlib.sha256(), None
  with tqdm(
    total=len(indices), unit="image", desc=title, disable=not progress
  ) as bar:
    for batch in sets.batches(images, indices, size):
      sums = gatherer.sums(*batch)
      count = int(batch.is_real.sum())
      pixels.update(batch.images[:count].data)
      # The device works on a batch while the next one is read.
      if waiting is not None:
        gatherer.add(waiting)
      waiting = sums
      bar.update(count)
    gatherer.add(waiting)
  about = {
    "source": images.description,
    "count": len(indices),
    "of": len(images),
    "size": list(images.shape),
    "crop": images.crop,
    "pixels_sha256": pixels.hexdigest(),
  }
  return Seen(gatherer.gathered(), about)


def write_statistics(
  images: Place,
  eye: Eye,
  out: Path,
  taken: Taken | None = None,
  num_samples: int = 0,
  overwrite: bool = False,
  progress: bool = False,
) -> statistics.Statistics:
  """Writes the statistics of real images to an .npz, and returns them.

  Args:
    num_samples: images that are put into the file, for precision and recall.

  Raises:
    FileExistsError: `out` exists and `overwrite` is false. FileNotFoundError,
      ValueError: see the module.
  """
  taken = taken or Taken()
  outputs.check_free([out], overwrite)
  opened = taken.open(images)
  chosen = taken.choose(opened, taken.num_images)
  _check_shape(opened, eye)
  needs = {"moments"} | ({"spatial"} if eye.network.num_places else set())
  check(
    len(chosen.indices) > eye.network.num_features or eye.options.allow_few,
    f"there are {len(chosen.indices)} images for statistics of"
    f" {eye.network.num_features} features of the network {eye.network.name};"
    " expected more images than features: take more, or set allow_few.",
  )
  samples = taken.choose(opened, num_samples) if num_samples else None
  seen = look(chosen, eye, frozenset(needs), taken, "real", progress)
  height, width, _ = opened.shape
  made = statistics.of_gathered(
    seen.gathered,
    weights=eye.digest,
    source=f"{seen.about['source']}, {len(chosen.indices)} taken, sha256"
    f" {seen.about['pixels_sha256']} of their pixels",
    crop=opened.crop,
    image_size=height if height == width else 0,
  )
  arrays = samples and np.stack([row for row, _ in opened.rows(samples[1])])
  statistics.write(out, made, arrays, overwrite)
  return made


def is_statistics(place: Place) -> bool:
  """Whether a file holds moments, perhaps beside images."""
  if isinstance(place, DataConfig) or not place.is_file():
    return False
  if place.suffix != ".npz":
    return place.suffix in (".pkl", ".pickle")
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
    if set(archives.IMAGES) & archives.members(against):
      chosen = taken.choose(sets.open_set(against), taken.num_real)
  elif against is not None:
    opened = taken.open(against)
    wanted = taken.num_real or min(count, len(opened))
    chosen = taken.choose(opened, wanted)
  other = None
  if control is not None and control != against:
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
      f" {sides(ours.images.shape)}; expected one size: pass --image_size.",
    )
  _check_shape(ours.images, eye)
  needs = kinds.needs_of_real(names)
  known = real.known
  has = {need for need in needs if getattr(known, need, None) is not None}
  lacking = sorted(needs - has) if real.chosen is None else []
  check(
    not lacking,
    f"the scores {', '.join(names)} need {', '.join(lacking)} of real images;"
    " expected --against real images"
    f"{', for statistics do not have them' if known else ''}, or other scores.",
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


def _check_shape(images: ImageSet, eye: Eye) -> None:
  """Refuses images that the network cannot take."""
  row = jax.ShapeDtypeStruct((1, *images.shape), np.uint8)
  try:
    jax.eval_shape(eye.network, eye.params, row)
  except Exception as error:
    raise ValueError(
      f"the network {eye.network.name} cannot take images of"
      f" {sides(images.shape)}, as {images.description} has them"
      f" ({outputs.reason(error)}); expected those that its weights are for:"
      " pass --image_size or --channels, or another network."
    ) from error


def _joined(known: Gathered | None, seen: Gathered) -> Gathered:
  """Moments of a file, if there are some, and the rest of its images."""
  if known is None:
    return seen
  return seen._replace(moments=known.moments, spatial=known.spatial)


def _named(place: Place) -> str:
  if isinstance(place, DataConfig):
    return f"{place.source} {place.name}".strip()
  return outputs.shown(place)
