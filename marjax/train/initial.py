"""What a new run starts from another model's weights with.

Each parameter, by its name:

    names and shapes agree     carried over
    a table of classes         rows by what the classes are called, if both have
                               names; by number if neither has and there are as
                               many; the others start anew
    a table of positions       its slots are carried over, the grid behind them
                               is interpolated (bicubic) to the new one
    named by init_fresh        starts anew
    code vectors, low-rank     this run's own
    factors
    any other                  refused

1. Weights are averages, of a release, a work directory or a published name. The
   parameters start from them, and so does their average.
2. What starts anew is as a run from nothing has it, and must not be frozen.
3. All is settled by names and shapes, and logged, before a number is moved.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from marjax.arrays import matching, named, shapes_of
from marjax.backbone import classes
from marjax.backbone.embeddings import CODE_VECTORS
from marjax.convert import fetching
from marjax.experiment import Experiment
from marjax.layers.lora import LORA
from marjax.parallel.mesh import Mesh
from marjax.release import loading
from marjax.release.card import Card
from marjax.release.digest import digest
from marjax.schema import check
from marjax.train import trained
from marjax.train.state import TrainState

log = logging.getLogger(__name__)

CLASSES = "class_embedding/table"
POSITIONS = "_positions/table"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Source:
  """A model to start from.

  Attributes:
    name: as it was asked for. card: what it says of itself.
    params: on the mesh. digest: of them.
  """

  name: str
  card: Card
  params: PyTree
  digest: str


@dataclass(frozen=True)
class Plan:
  """What becomes of each parameter, by its name.

  Attributes:
    carried: as they are.
    rows: table of classes → the source's row of each of its own, -1 for none.
    grids: table of positions → sides of the source's grid and of its own.
    fresh: start anew. own: of this run, whatever it starts from.
  """

  carried: tuple[str, ...]
  rows: dict[str, tuple[int, ...]]
  grids: dict[str, tuple[int, int]]
  fresh: tuple[str, ...]
  own: tuple[str, ...]

  def __str__(self) -> str:
    """One line that names all that is not just carried over."""
    rows = [
      f"{name} ({sum(row >= 0 for row in rows)} of {len(rows)} classes carried"
      " over, the others fresh)"
      for name, rows in self.rows.items()
    ]
    grids = [
      f"{name} ({there} x {there} to {here} x {here})"
      for name, (there, here) in self.grids.items()
    ]
    parts = {
      "by class": rows,
      "interpolated": grids,
      "fresh": self.fresh,
      "this run's own": self.own,
    }
    return f"carried over {len(self.carried)} arrays" + "".join(
      f"; {what}: {', '.join(names) or 'none'}" for what, names in parts.items()
    )


def load(name: str, mesh: Mesh, wanted: str = "") -> Source:
  """The model of that name.

  Args:
    name: published, or the path of a release or a work directory.
    mesh: that its weights go to. wanted: digest they must have, "" for any.

  Raises:
    ValueError: an autoencoder alone, or other weights; see `loading.load`.
    FileNotFoundError: there is nothing of the kind.
  """
  release = loading.load(fetching.find(name), mesh)
  check(
    release.card.model is not None,
    f"training.init_from is {name}, which is an autoencoder alone; expected a"
    " model: name a work directory, a released model, or a published one.",
  )
  own = digest(release.params)
  check(
    wanted in ("", own),
    f"training.init_from is {name}, whose weights have the digest"
    f" {own[:12]}..., and training.init_digest is {wanted[:12]}...; expected"
    " the same: restore those weights, or leave init_digest out.",
  )
  return Source(name, release.card, release.params, own)


def start(
  experiment: Experiment,
  source: Source,
  state: TrainState,
  class_names: Sequence[str],
) -> TrainState:
  """The state before the first step, with the source's weights in it.

  Args:
    experiment: of the run. source: from `load`. state: all anew.
    class_names: of the data, entry i is class i; () if they have none.

  Raises:
    ValueError: they do not fit, or what starts anew is frozen.
  """
  shapes = shapes_of(source.params), shapes_of(state.params)
  plan = plan_for(experiment, source, shapes, class_names)
  _check_trained(experiment, plan, shapes[1])
  log.info("from %s: %s", source.name, plan)
  placed = jax.tree.map(lambda leaf: leaf.sharding, state.params)
  params = jax.jit(
    lambda theirs, ours: _combined(plan, theirs, ours), out_shardings=placed
  )(source.params, state.params)
  # The step donates both, so they must not be one.
  averages = jax.tree.map(jnp.copy, params)
  return dataclasses.replace(state, params=params, ema_params=averages)


def plan_for(
  experiment: Experiment,
  source: Source,
  shapes: tuple[Shapes, Shapes],
  class_names: Sequence[str] = (),
) -> Plan:
  """What becomes of each parameter; `shapes`: the source's and this run's.

  Raises:
    ValueError: one does not fit, or a pattern matches nothing.
  """
  (theirs, ours), patterns = shapes, experiment.training.init_fresh
  chosen = matching(patterns, ours, "training.init_fresh")
  carried, rows, grids, fresh, own = [], {}, {}, [], []
  models = source.card.model, experiment.model
  lengths = [model.backbone.num_tokens for model in models]
  for name, shape in ours.items():
    there = theirs.get(name)
    if name.startswith(f"{LORA}/") or name.endswith(f"/{CODE_VECTORS}"):
      own.append(name)
    elif name in chosen:
      fresh.append(name)
    elif name.endswith(CLASSES) and _is_as_wide(there, shape):
      rows[name] = _rows(source.card, class_names, there[0], shape[0])
    elif there == shape:
      carried.append(name)
    elif name.endswith(POSITIONS) and _is_grid(there, shape, lengths):
      grids[name] = tuple(map(math.isqrt, lengths))
    elif name.endswith(CLASSES) and there is None:
      fresh.append(name)
    else:
      _refuse(source, name, there, shape)
  whole = {name: tuple(range(theirs[name][0])) for name in rows}
  same = [name for name, row in rows.items() if row == whole[name]]
  for name in same:
    del rows[name]
  return Plan(
    tuple(sorted(carried + same)), rows, grids, tuple(fresh), tuple(own)
  )


def _rows(
  card: Card, class_names: Sequence[str], there: int, here: int
) -> tuple[int, ...]:
  """The source's row of each class, -1 for a class that is new."""
  theirs, ours = card.class_names, tuple(class_names)
  if not theirs and ours and all(map(str.isdecimal, filter(None, ours))):
    # A card leaves out names that are just the numbers.
    theirs = tuple(map(str, range(there)))
  if theirs and ours:
    rows = classes.matches(ours, theirs)
    return (*rows, *(-1,) * (here - len(rows)))
  return tuple(range(here)) if there == here else (-1,) * here


def _is_as_wide(there: tuple[int, ...] | None, here: tuple[int, ...]) -> bool:
  return there is not None and there[1:] == here[1:]


def _is_grid(there, here, lengths: list[int]) -> bool:
  """Whether tables of positions differ in their square grids alone."""
  if not _is_as_wide(there, here):
    return False
  slots = {
    rows - length
    for rows, length in zip((there[0], here[0]), lengths, strict=True)
  }
  return len(slots) == 1 and all(math.isqrt(n) ** 2 == n for n in lengths)


def _refuse(source: Source, name: str, there, here) -> None:
  shown = "not there" if there is None else f"of shape {there}"
  raise ValueError(
    f"the model that starts from training.init_from, {source.name}: {name} is"
    f" {shown}; expected shape {here}: give the model the same widths and"
    " depths, or start what differs anew, with"
    f" --config.training.init_fresh='[\"{name}\"]' or a pattern such as"
    f" '[\"{name.partition('/')[0]}/*\"]'."
  )


def _check_trained(experiment: Experiment, plan: Plan, names: Shapes) -> None:
  """Refuses to freeze random numbers."""
  chosen = trained.factors(experiment.training, names)
  is_new = [*plan.fresh, *(n for n, rows in plan.rows.items() if -1 in rows)]
  for name in is_new:
    check(
      chosen[name] > 0,
      f"{name} starts anew, and is frozen; expected it to be trained: set"
      f" --config.training.factors='[(\"{name}\", 1.0), ...]' before the other"
      " patterns.",
    )


def _combined(plan: Plan, theirs: PyTree, ours: PyTree) -> PyTree:
  """Parameters of this run, in its tree; traced."""
  source = named(theirs)

  def choose(name: str, own: Array) -> Array:
    if name in plan.rows:
      rows = np.asarray(plan.rows[name])
      taken = source[name][np.maximum(rows, 0)]
      return jnp.where((rows >= 0)[:, None], taken, own)
    if name in plan.grids:
      return interpolated(source[name], *plan.grids[name])
    return own if name in (*plan.fresh, *plan.own) else source[name]

  chosen = [choose(name, own) for name, own in named(ours).items()]
  return jax.tree.structure(ours).unflatten(chosen)


def interpolated(
  table: Float[Array, "there W"], side: int, wanted: int
) -> Float[Array, "here W"]:
  """A table of positions for another grid, bicubic; slots before it stay.

  Args:
    table: [slots + side², W], the grid in raster order.
    side: of its grid. wanted: side of the new one.
  """
  slots, grid = jnp.split(table, [table.shape[0] - side**2])
  width = table.shape[1]
  grid = jax.image.resize(
    grid.reshape(side, side, width), (wanted, wanted, width), "cubic"
  )
  return jnp.concatenate([slots, grid.reshape(wanted**2, width)])
