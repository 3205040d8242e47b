"""The table engine: one rule per kind of parameter, nothing implicit.

1. A rule maps names that fully match a pattern to a parameter path, and says
   how axes move. A group called `layer` is an index into a stacked parameter.
2. `assign` looks at names and shapes alone, and finds each name its place:
   every source name is matched by exactly one rule, and every slot of the
   target (a parameter, or one layer of a stacked one) is filled exactly once,
   with the right shape. Each of the three errors names the key.
3. `convert` then moves the numbers, one array at a time, and refuses NaN and
   infinity.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from marjax.arrays import check_finite

Move = Callable[[Any, tuple[int, ...]], Any]
"""Source array and target shape to an array of that shape."""


def same(array, shape: tuple[int, ...]):
  """Numbers in the same order; leading axes of 1 and a fused axis may differ.

  Raises:
    ValueError: the array is of another shape.
  """
  is_fused = array.shape == (math.prod(shape),)
  if not is_fused and _without_ones(array.shape) != _without_ones(shape):
    raise ValueError("another shape")
  return array.reshape(shape)


def transposed(array, shape: tuple[int, ...]):
  """A matrix [out, in] to [in, out], then split into the target's axes.

  Raises:
    ValueError: the array is no such matrix.
  """
  fitting = [
    (math.prod(shape[k:]), math.prod(shape[:k])) for k in range(1, len(shape))
  ]
  if array.shape not in fitting:
    raise ValueError("another shape")
  return array.T.reshape(shape)


@dataclass(frozen=True)
class Rule:
  """Source pattern → target path.

  Attributes:
    pattern: regular expression of the whole source name.
    path: target path with slashes; `\\g<name>` inserts a group.
    move: source array and target shape to target array.
  """

  pattern: str
  path: str
  move: Move = same


def weight_and_bias(
  pattern: str, path: str, weight: str, move: Move = same
) -> tuple[Rule, Rule]:
  """Rules of a layer: its weight to PATH/WEIGHT, its bias to PATH/bias."""
  return (
    Rule(pattern + r"\.weight", f"{path}/{weight}", move),
    Rule(pattern + r"\.bias", f"{path}/bias"),
  )


@dataclass(frozen=True)
class Place:
  """Where one source array goes: a path, perhaps one layer of it, and how."""

  name: str
  path: str
  layer: int | None
  shape: tuple[int, ...]
  move: Move


class ConversionError(ValueError):
  """The table, the source and the target do not fit together."""


def assign(
  rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]], target: PyTree
) -> list[Place]:
  """The place of every source array, without touching a number.

  Args:
    rules: the table.
    shapes: name to shape, as published.
    target: nested dicts of shaped leaves (e.g. from `jax.eval_shape`).

  Raises:
    ConversionError: a name matched by no rule or by several; a slot filled
      twice; a slot unfilled, unknown, or of another shape.
  """
  slots = _slots(target)
  came_from: dict[tuple, str] = {}
  places = []
  for name, shape in shapes.items():
    rule, match = _only_rule(rules, name)
    path, layer = match.expand(rule.path), match.groupdict().get("layer")
    layer = None if layer is None else int(layer)
    if path not in slots or (layer is not None and layer >= slots[path][0]):
      raise ConversionError(
        f"{name} goes to {_shown(path, layer)}, which the model does not have;"
        " check the model's configuration against the checkpoint."
      )
    if (path, layer) in came_from:
      raise ConversionError(
        f"{_shown(path, layer)} is filled twice, by {name} and by"
        f" {came_from[path, layer]}; each parameter has one source."
      )
    came_from[path, layer] = name
    wanted = slots[path] if layer is None else slots[path][1:]
    _check_shape(rule, name, tuple(shape), wanted)
    places.append(Place(name, path, layer, wanted, rule.move))
  for path, shape in slots.items():
    layers = {layer for filled, layer in came_from if filled == path}
    _check_filled(path, shape, layers)
  return places


def convert(
  rules: Sequence[Rule],
  source: Mapping[str, Any],
  target: PyTree,
  progress: Callable[[Iterable], Iterable] = iter,
) -> PyTree:
  """Fills the target's tree from the source by the rules.

  Args:
    rules: the table.
    source: name to array, or to something with `shape` and `load()`.
    target: nested dicts of shaped leaves (e.g. from `jax.eval_shape`).
    progress: wraps the loop over the source's arrays, e.g. `tqdm`.

  Returns:
    The target's tree with float32 arrays.

  Raises:
    ConversionError: as `assign`.
    ValueError: an array has NaN or infinity.
  """
  shapes = {name: tuple(array.shape) for name, array in source.items()}
  places, slots = assign(rules, shapes, target), _slots(target)
  arrays: dict[str, np.ndarray] = {}
  for place in progress(places):
    array = source[place.name]
    array = array.load() if hasattr(array, "load") else array
    array = np.asarray(array, np.float32)
    check_finite({place.name: array}, "the checkpoint")
    moved = place.move(array, place.shape)
    if place.path not in arrays:
      arrays[place.path] = np.empty(slots[place.path], np.float32)
    arrays[place.path][... if place.layer is None else place.layer] = moved
  return traverse_util.unflatten_dict(arrays, sep="/")


def _slots(target: PyTree) -> dict[str, tuple[int, ...]]:
  """Path with slashes → shape."""
  leaves = traverse_util.flatten_dict(target, sep="/")
  return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def _only_rule(rules, name):
  matches = [(rule, re.fullmatch(rule.pattern, name)) for rule in rules]
  matches = [(rule, match) for rule, match in matches if match]
  if len(matches) != 1:
    patterns = ", ".join(rule.pattern for rule, _ in matches) or "none"
    raise ConversionError(
      f"{name} is matched by {len(matches)} rules ({patterns}); expected"
      " exactly one."
    )
  return matches[0]


def _check_shape(rule, name, shape, wanted) -> None:
  try:
    moved = jax.eval_shape(
      lambda array: rule.move(array, wanted),
      jax.ShapeDtypeStruct(shape, np.float32),
    )
    fits = moved.shape == wanted
  except (TypeError, ValueError):
    fits = False
  if not fits:
    raise ConversionError(
      f"{name} has shape {shape}, which does not become {wanted}; the"
      " checkpoint is of another model size."
    )


def _check_filled(path, shape, layers: set) -> None:
  if None in layers and len(layers) > 1:
    raise ConversionError(
      f"{path} is filled twice, as a whole and by layers; each parameter has"
      " one source."
    )
  stacked = range(0 if None in layers or not shape else shape[0])
  missing = [layer for layer in stacked if layer not in layers]
  if not layers or missing:
    which = f" (layers {missing})" if layers else ""
    raise ConversionError(
      f"{path}{which} is not filled by any of the checkpoint's names; expected"
      " exactly one source for each parameter."
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape without its leading axes of 1."""
  first = next((i for i, size in enumerate(shape) if size != 1), len(shape))
  return tuple(shape[first:])


def _shown(path: str, layer: int | None) -> str:
  return path if layer is None else f"{path} (layer {layer})"
