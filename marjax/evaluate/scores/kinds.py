"""Which scores there are, what each needs, and what its numbers are called.

1. A score says what has to be gathered of generated and of real images.
2. Its numbers carry the network's own name: only the Fréchet distance of the
   Inception network of 2015 is "fid"; the same formula with other features has
   that network's name behind it.
3. A new score is a file of its own and one line in SCORES.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.scores import class_score, frechet
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.scores.options import DEFAULTS, Options
from marjax.schema import check

Numbers = dict[str, float]


@dataclass(frozen=True)
class Score:
  """One score.

  Attributes:
    needs: what must be gathered of the generated images.
    of_real: what must be gathered of the real ones; nothing: it needs none.
    compute: (generated, real, options) → its numbers by name.
    is_distance: whether real images against real ones belong beside it.
  """

  needs: frozenset[str]
  of_real: frozenset[str]
  compute: Callable[[Gathered, Gathered | None, Options], Numbers]
  is_distance: bool


def named(network: Network, name: str) -> str:
  """A score's name with a network: plain for Inception's, "fid"."""
  return name if network.distance == "fid" else f"{name}_{network.name}"


def _fid(generated: Gathered, real: Gathered, options: Options) -> Numbers:
  value = frechet.distance(generated.moments, real.moments)
  return {generated.network.distance: value}


def _sfid(generated: Gathered, real: Gathered, options: Options) -> Numbers:
  value = frechet.distance(generated.spatial, real.spatial)
  return {named(generated.network, "sfid"): value}


def _is(generated: Gathered, real: Gathered | None, options: Options):
  score = class_score.class_score(generated.classes)
  name = generated.network.class_score
  return {
    name: score.mean,
    f"{name}_deviation": score.deviation,
    f"{name}_unsplit": score.unsplit,
  }


def _score(needs: str, of_real: str, compute, is_distance=True) -> Score:
  return Score(
    frozenset(needs.split()), frozenset(of_real.split()), compute, is_distance
  )


SCORES = {
  "fid": _score("moments", "moments", _fid),
  "sfid": _score("spatial", "spatial", _sfid),
  "is": _score("classes", "", _is, is_distance=False),
}


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
  """What must be gathered of generated images for these scores."""
  wanted = [SCORES[name].needs for name in names]
  return frozenset({"moments"}).union(*wanted)
