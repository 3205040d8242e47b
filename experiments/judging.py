"""Judges: networks, what they saw of real images, and rows of scores.

Training images stand for real ones, test images are what can be reached. What
networks saw of both is kept in OUT/seen-..., so that they are looked at once,
whatever processes add rows to OUT. Real test images, and training images with
noise, are scored as if they were generated: the controls.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import rows
from marjax.evaluate import environment, seen, sets
from marjax.evaluate.begun import Begun
from marjax.evaluate.networks import kinds as networks
from marjax.evaluate.scores import kinds
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.scores.options import Options
from marjax.evaluate.seen import Chosen, Taken
from marjax.evaluate.sets import ImageSet
from marjax.experiment import DataConfig
from marjax.schema import check

NOISE = 8.0
"""Standard deviation, in grey levels, of the control with noise."""

TEST, NOISY = "real test images", f"training images, noise of {NOISE:g}"
SUBSET = 1000


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
    """What a row is scored by and against, see `known`."""
    judges = digests(judge.eye for judge in self.judges)
    return known(self.train.images, len(self.train.indices), judges)


class Changed:
  """Images of another set, changed; `how` ends the description."""

  def __init__(self, images: ImageSet, how: str):
    self.source, self.how = images, how
    self.shape, self.num_classes = images.shape, images.num_classes
    self.crop = images.crop
    self.description = f"{images.description}, {how}"

  def __len__(self) -> int:
    return len(self.source)


def source_of(images: ImageSet) -> str:
  """What tells a set, or the set that was changed and how, from others."""
  if isinstance(images, Changed):
    return f"{source_of(images.source)}, {images.how}"
  return sets.identity(images)


class Noisy(Changed):
  """Images of another set with noise that depends on their number alone."""

  def __init__(self, images: ImageSet):
    super().__init__(images, f"noise of {NOISE:g}")

  def rows(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Images and labels at ascending indices."""
    pairs = zip(indices.tolist(), self.source.rows(indices), strict=True)
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
  """Networks by name, ready to look.

  Raises:
    ValueError, FileNotFoundError: none but `label`, or no such weights.
  """
  check(
    bool(set(weights) - {"label"}),
    f"--weights names {', '.join(weights) or 'no network'}; expected one whose"
    " features are compared, such as mobilenet=FILE.",
  )
  size = min(SUBSET, num_images)
  options = Options(subset_size=size, allow_few=allow_few)
  # Rows do not say who came first, and the first judges more than the others.
  order = [*networks.NETWORKS, *weights]
  return {
    name: seen.load_eye(name, weights[name], options)
    for name in sorted(weights, key=order.index)
  }


def scores_of(name: str, first: str) -> tuple[str, ...]:
  """The scores that a network is asked for."""
  if name == "label":
    return ("accuracy",)
  return ("fid", "kid", "pr", "copies") if name == first else ("fid",)


def real_images(
  data: DataConfig, num_images: int, num_real: int | None = None
) -> tuple[Chosen, Chosen]:
  """Training and test images.

  Args:
    num_images: of a row, and of the test images unless there are fewer.
    num_real: training images, None for all.

  Raises:
    ValueError, OSError: images are missing or too few.
  """
  taken, unseen = Taken(), Taken(split=data.test_split)
  train = taken.choose(taken.open(data), num_real)
  opened = unseen.open(data)
  count = min(len(train.indices), len(opened))
  fewest = min(num_images, SUBSET)
  check(
    count >= fewest,
    f"there are {len(train.indices)} training and {len(opened)} test images to"
    f" judge by; expected {fewest} or more of each: add images, or lower"
    f" --num_images to {count}.",
  )
  return train, unseen.choose(opened, min(num_images, len(opened)))


def board_of(
  train: Chosen,
  test: Chosen,
  networks: Mapping[str, seen.Eye],
  out: Path,
  num_images: int,
  *but: str,
) -> Board:
  """Shows real images to all networks, once for all processes of `out`.

  Args:
    train, test: see `real_images`. networks: by name; the first that is not
      `label` gives all scores. out: folder of the results; what was seen is
      kept in OUT/seen-... num_images: of a row. but: scores left out.

  Raises:
    ValueError, OSError: images are too few or not those of a network.
  """
  taken, classes = Taken(), train.images.num_classes
  first = next(name for name in networks if name != "label")
  fewest = min(num_images, len(train.indices), len(test.indices))
  named = {
    name: tuple(score for score in scores_of(name, first) if score not in but)
    for name in networks
  }
  of_real, of_test = [], []
  for name, eye in networks.items():
    own = named[name]
    seen.check_shape(train.images.shape, train.images.description, eye)
    kinds.check_scores(own, eye.network, fewest, eye.options, classes)
    of_real.append((eye, kinds.needs_of_real(own) | {"moments"}))
    of_test.append((eye, kinds.needs(own)))
  looks = [
    (sets.identity(one.images), len(one.indices)) for one in (train, test)
  ]
  options = [(eye.options, named[name]) for name, eye in networks.items()]
  made_of = rows.digest((looks, options, digests(networks.values())))
  folder = out / f"seen-{made_of}"
  with rows.locked(folder / "lock"):
    begun = Begun(folder)
    real = seen.look_together(train, of_real, taken, "train", True, begun)
    control = seen.look_together(test, of_test, taken, "test", True, begun)
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


def controls(train: Chosen, test: Chosen, num_images: int) -> dict[str, Chosen]:
  """Real images that are scored like generated ones, and some with noise."""
  count = min(num_images, len(train.indices))
  some = train.indices[sets.choose(len(train.indices), count)]
  return {TEST: test, NOISY: Chosen(Noisy(train.images), some)}


def add_controls(
  file: Path,
  parts: Mapping[str, Chosen],
  known: Mapping[str, Any],
  board: Callable[[], Board],
) -> None:
  """Adds the rows of images that nobody drew, if missing.

  Args:
    parts: images by what a row calls them. known: see `Board.known`.
    board: called if some are missing.
  """
  for name, chosen in parts.items():
    key = {
      "images": name,
      "kind": "control",
      "source": source_of(chosen.images),
      "num_images": len(chosen.indices),
      **known,
    }
    if rows.find(rows.read(file), **key) is None:
      add(file, key | {"scores": scored(board(), chosen, name)})


def known(
  train: ImageSet, num_real: int | None, judges: dict[str, str]
) -> dict[str, Any]:
  """What a row is scored by and against."""
  count = len(train) if num_real is None else num_real
  return {"num_real": count, "real": source_of(train), "judges": judges}


def add(file: Path, row: dict[str, Any], title: str = "") -> None:
  """Appends a row of images with its scores, and prints it.

  Args:
    title: what is printed before the scores, "" for what images the row has.
  """
  own = {"device": environment.device(), "versions": environment.versions()}
  rows.append(file, row | own)
  numbers = ", ".join(
    f"{name} {value:.4g}"
    for name, value in row["scores"].items()
    if not name.endswith("_deviation")
  )
  print(f"{title or row['images']}: {numbers}", flush=True)
