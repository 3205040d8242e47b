"""Which parameters are trained, and how fast.

1. Each parameter has a factor of the learning rate: that of the first pattern
   of `training.factors` that matches its name, else 1; with LoRA, 0 for all but
   its factors.
2. A factor of 0 freezes: the parameter has no gradient, no optimizer state, no
   average of its own, and no part in the norm that gradients are clipped by.
3. `split` takes the tree apart into what is trained and what is frozen, and
   `joined` puts it together. With nothing frozen both are the tree itself.
"""

import fnmatch
from collections.abc import Iterable

from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from marjax.arrays import matching, named
from marjax.experiment import TrainingConfig
from marjax.layers.lora import LORA
from marjax.schema import check


def factors(config: TrainingConfig, names: Iterable[str]) -> dict[str, float]:
  """The factor of the learning rate of each parameter, by its name.

  `names`: of all parameters, as `marjax.arrays.named` has them.

  Raises:
    ValueError: a pattern that matches nothing, or nothing is trained.
  """
  names = list(names)
  matching((p for p, _ in config.factors), names, "training.factors")

  chosen = {name: factor(config, name) for name in names}
  check(
    any(chosen.values()),
    f"training.factors, {config.factors!r}, freezes every parameter; expected"
    " one at least that is trained: leave some out of its patterns.",
  )
  return chosen


def factor(config: TrainingConfig, name: str) -> float:
  """The factor of the learning rate of one parameter."""
  for pattern, number in config.factors:
    if fnmatch.fnmatchcase(name, pattern):
      return number
  return float(not config.lora.rank or name.startswith(f"{LORA}/"))


def split(config: TrainingConfig, params: PyTree) -> tuple[PyTree, PyTree]:
  """(trained, frozen) parts of nested dicts, e.g. of parameters."""
  chosen = factors(config, named(params))
  if all(chosen.values()):
    return params, {}
  flat = flatten_dict(params, sep="/")
  return tuple(
    unflatten_dict(
      {n: leaf for n, leaf in flat.items() if bool(chosen[n]) == is_trained},
      sep="/",
    )
    for is_trained in (True, False)
  )


def joined(trained: PyTree, frozen: PyTree) -> PyTree:
  """What `split` took apart."""
  if not frozen:
    return trained
  flat = flatten_dict(trained) | flatten_dict(frozen)
  return unflatten_dict(flat)
