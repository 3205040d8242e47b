"""Which scores there are, what each needs, and what its numbers are called.

1. A score says what has to be gathered of generated and of real images.
2. Its numbers carry the network's own name: only the Fréchet distance of the
   Inception network of 2015 is "fid"; the same formula with other features has
   that network's name behind it, as have other distances.
3. A distance of two finite sets is not 0 even for real images. `compare` scores
   other real images as if they were generated, with everything else equal:
   those numbers belong beside the scores.
4. A new score is a function and one line in SCORES.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.scores import (
  bootstrap,
  class_score,
  cmmd,
  extrapolation,
  frechet,
  kid,
  neighbours,
)
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.scores.options import DEFAULTS, Options
from marjax.schema import check

Numbers = dict[str, float]


class Sets(NamedTuple):
  """What was gathered of the images that are compared.

  Attributes:
    generated: by the model; or real ones, to see what they score.
    real: images, or statistics of them; None where no score needs them.
    unseen: other real images, which no model was trained on, or None.
    options: of the scores.
  """

  generated: Gathered
  real: Gathered | None
  unseen: Gathered | None
  options: Options


class Score(NamedTuple):
  """One score.

  Attributes:
    needs: what must be gathered of the generated images.
    of_real: the same of the real ones; "" where they are not needed.
    compute: its numbers by name.
    needs_unseen: whether other real images are needed, as the generated ones.
  """

  needs: str
  of_real: str
  compute: Callable[[Sets], Numbers]
  needs_unseen: bool = False


def named(network: Network, name: str) -> str:
  """A distance's name: alone for the network of the FID, else with its own."""
  return name if network.distance == "fid" else f"{name}_{network.name}"


def _fid(sets: Sets) -> Numbers:
  generated, real = sets.generated, sets.real
  name = generated.network.distance
  return _frechet(
    name, generated.moments, generated.features, real.moments, sets.options
  )


def _sfid(sets: Sets) -> Numbers:
  generated, real = sets.generated, sets.real
  name = named(generated.network, "sfid")
  return _frechet(
    name, generated.spatial, generated.places, real.spatial, sets.options
  )


def _frechet(name: str, ours, rows, real, options: Options) -> Numbers:
  """A Fréchet distance, with its interval, for which the rows are needed."""
  numbers = {name: frechet.distance(ours, real)}
  if options.num_draws:
    ends = bootstrap.of_frechet(
      numbers[name], rows, real, options.num_draws, options.seed
    )
    numbers |= _ends(name, ends)
  return numbers


def _is(sets: Sets) -> Numbers:
  generated, options = sets.generated, sets.options
  score = class_score.class_score(generated.classes)
  name = generated.network.class_score
  numbers = {
    name: score.mean,
    f"{name}_deviation": score.deviation,
    f"{name}_unsplit": score.unsplit,
  }
  if options.num_draws:
    ends = bootstrap.of_class_score(score.mean, generated.logits, options)
    numbers |= _ends(name, ends)
  return numbers


def _pr(sets: Sets) -> Numbers:
  shares = neighbours.precision_recall(
    generated=sets.generated.features,
    real=sets.real.features,
    num_neighbours=sets.options.num_neighbours,
  )
  return {
    **_share("precision", shares.is_precise, sets.options),
    **_share("recall", shares.is_recalled, sets.options),
  }


def _kid(sets: Sets) -> Numbers:
  options = sets.options
  distance = kid.kernel_distance(
    generated=sets.generated.features,
    real=sets.real.features,
    num_subsets=options.num_subsets,
    subset_size=options.subset_size,
    seed=options.seed,
  )
  name = named(sets.generated.network, "kid")
  return {name: distance.mean, f"{name}_deviation": distance.deviation}


def _fd_infinity(sets: Sets) -> Numbers:
  real = sets.real
  line = extrapolation.extrapolate(
    sets.generated.features,
    real.moments if real.features is None else real.features,
    sets.options.num_sizes,
    sets.options.seed,
  )
  return {f"{sets.generated.network.distance}_infinity": line.infinity}


def _cmmd(sets: Sets) -> Numbers:
  network = sets.generated.network
  value = cmmd.cmmd(generated=sets.generated.features, real=sets.real.features)
  return {"cmmd" if network.name == "clip" else f"cmmd_{network.name}": value}


def _accuracy(sets: Sets) -> Numbers:
  right, all_of = sets.generated.hits.T
  labelled = int(all_of.sum())
  check(
    labelled == sets.generated.count,
    f"{sets.generated.count - labelled} images have no label that the network"
    f" {sets.generated.network.name} knows; expected one of its"
    f" {len(all_of)} classes for each image.",
  )
  is_right = np.arange(labelled) < right.sum()
  return _share("label_accuracy", is_right, sets.options)


def _copies(sets: Sets) -> Numbers:
  is_copy = neighbours.is_near_copy(
    generated=sets.generated.features,
    train=sets.real.features,
    unseen=sets.unseen.features,
  )
  return _share("near_copy_rate", is_copy, sets.options)


def _share(name: str, is_so: np.ndarray, options: Options) -> Numbers:
  """A share of images, with its interval if that is asked for."""
  numbers = {name: float(is_so.mean())}
  if options.num_draws:
    ends = bootstrap.of_share(is_so, options.num_draws, options.seed)
    numbers |= _ends(name, ends)
  return numbers


def _ends(name: str, ends: bootstrap.Interval) -> Numbers:
  return {f"{name}_low": ends.low, f"{name}_high": ends.high}


SCORES = {
  "fid": Score("moments", "moments", _fid),
  "sfid": Score("spatial", "spatial", _sfid),
  "is": Score("classes", "", _is),
  "pr": Score("features", "features", _pr),
  "kid": Score("features", "features", _kid),
  "fd_infinity": Score("features", "moments", _fd_infinity),
  "cmmd": Score("features", "features", _cmmd),
  "accuracy": Score("hits", "", _accuracy),
  "copies": Score("features", "features", _copies, needs_unseen=True),
}

DRAWN = {"fid": "features", "sfid": "places", "is": "logits"}
"""What is kept of every image for the interval of a score made of sums."""


def parse(names: str | Iterable[str]) -> tuple[str, ...]:
  """Names of scores, from a list or "fid,is,pr".

  Raises:
    ValueError: there is no such score, or none is named.
  """
  if isinstance(names, str):
    names = [name.strip() for name in names.split(",") if name.strip()]
  names = tuple(dict.fromkeys(names))
  check(
    bool(names), f"no score is named; expected some of {', '.join(SCORES)}."
  )
  for name in names:
    check(
      name in SCORES,
      f"there is no score {name!r}; expected some of {', '.join(SCORES)}.",
    )
  return names


def needs(names: Iterable[str], options: Options = DEFAULTS) -> frozenset[str]:
  """What must be gathered of generated and of unseen images."""
  names = list(names)
  wanted = {"moments", *(SCORES[name].needs for name in names)}
  if options.num_draws:
    wanted |= {DRAWN[name] for name in names if name in DRAWN}
  return frozenset(wanted)


def needs_of_real(
  names: Iterable[str], has_images: bool = False
) -> frozenset[str]:
  """What must be gathered of the real side; nothing: there need be none.

  Where it is features, statistics of real images are not enough. Where there
  are images, fd_infinity takes their features, to extrapolate both sides.
  """
  wanted = {SCORES[name].of_real for name in names} - {""}
  if has_images and "fd_infinity" in names:
    wanted |= {"features"}
  return frozenset(wanted)


def need_unseen(names: Iterable[str]) -> bool:
  """Whether one of the scores needs other real images."""
  return any(SCORES[name].needs_unseen for name in names)


def check_scores(
  names: Iterable[str],
  network: Network,
  num_images: int,
  options: Options = DEFAULTS,
  num_classes: int = 0,
) -> None:
  """Refuses, before long work, scores that could not be computed.

  Args:
    num_images: of the generated and of every real set of images, the fewest.
    num_classes: of the labels; 0 where there are none.

  Raises:
    ValueError: says what is missing.
  """
  for name in parse(names):
    score = SCORES[name]
    _check_count(name, network, num_images, options)
    if score.needs == "hits":
      check(
        network.num_logits == num_classes,
        f"the network {network.name} tells {network.num_logits} classes"
        f" apart, and the images have {num_classes}; expected a classifier of"
        " the images' own classes, as marjax fit-classifier makes, or other"
        " scores.",
      )
    if name == "kid":
      check(
        num_images >= options.subset_size,
        f"there are {num_images} images for kid, whose subsets have"
        f" {options.subset_size}; expected as many images or more: take more"
        " images, or leave kid out.",
      )


def _check_count(
  name: str, network: Network, count: int, options: Options
) -> None:
  """Refuses Fréchet distances of fewer images than features."""
  sizes = {"fid": network.num_features, "sfid": network.num_places}
  size = sizes.get(name, 0)
  check(
    count >= size or options.allow_few,
    f"there are {count} images for {name}, a distance of {size} features of the"
    f" network {network.name}; expected as many images or more, below which it"
    " mostly says how few they are: take more images, or set allow_few.",
  )


class Comparison(NamedTuple):
  """Scores, and what real images score in their place.

  Attributes:
    scores: of the generated images, by name.
    real: of other real images against the same real ones, by the same names;
      nothing where there are none, or fewer of them.
  """

  scores: Numbers
  real: Numbers


def compare(
  names: str | Iterable[str],
  generated: Gathered,
  real: Gathered | None = None,
  unseen: Gathered | None = None,
  options: Options = DEFAULTS,
) -> Comparison:
  """All scores of generated images, and of real ones in their place.

  Args:
    real: see `needs_of_real`.
    unseen: other real images, as many as generated ones, of which the same was
      gathered. Fewer do for scores that need them, and for no other.

  Raises:
    ValueError: something is missing, or was gathered with another network.
  """
  names, is_fewer = parse(names), unseen and unseen.count < generated.count
  sets = {
    name: Sets(
      generated,
      real,
      None if is_fewer and not SCORES[name].needs_unseen else unseen,
      options,
    )
    for name in names
  }
  for name in names:
    _check_sets(name, sets[name])
  scores, others = {}, {}
  for name, each in sets.items():
    compute = SCORES[name].compute
    scores |= compute(each)
    if each.unseen is not None:
      others |= compute(each._replace(generated=each.unseen))
  return Comparison(scores, others)


def _check_sets(name: str, sets: Sets) -> None:
  """Refuses sets of which a score's parts were not gathered."""
  score, (generated, real, unseen, options) = SCORES[name], sets
  wanted = {
    "generated": (generated, needs([name], options)),
    "real": (real, needs_of_real([name])),
    "unseen real": (unseen, needs([name], options)),
  }
  for which, (part, parts) in wanted.items():
    if part is None:
      is_needed = bool(parts) if which == "real" else score.needs_unseen
      check(
        not is_needed,
        f"the score {name} needs {which} images, and there are none; expected"
        " some to compare with, or other scores.",
      )
      continue
    missing = [need for need in sorted(parts) if getattr(part, need) is None]
    check(
      not missing,
      f"of the {which} images {', '.join(missing)} are missing, which the score"
      f" {name} needs; expected them, or other scores: statistics of a file"
      " hold moments only, so name the images themselves.",
    )
    check(
      part.network == generated.network,
      f"the {which} images were seen by the network {part.network.name}, and"
      f" the generated ones by {generated.network.name}; expected the same"
      " network.",
    )
    if part.count:  # of statistics it may be unknown
      _check_count(name, generated.network, part.count, options)
