"""The table engine: one rule per kind of parameter, nothing implicit.

1. A rule maps names that fully match a pattern to a parameter path, and says
   how axes move. A group called `layer` is an index into a stacked parameter.
2. Every source name is matched by exactly one rule.
3. Every slot of the target (a parameter, or one layer of a stacked one) is
   filled exactly once, with the right shape.

Each of the three errors names the key.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

Move = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def same(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Numbers in the same order; only the shape may differ."""
  return array.reshape(shape)


def transposed(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """A matrix [out, in] to [in, out], then split into the target's axes."""
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


class ConversionError(ValueError):
  """The table, the source and the target do not fit together."""


def convert(
  rules: Sequence[Rule], source: Mapping[str, np.ndarray], target: PyTree
) -> PyTree:
  """Fills the target's tree from the source by the rules.

  Args:
    rules: the table.
    source: name to array, as published.
    target: nested dicts of shaped leaves (e.g. from `jax.eval_shape`).

  Returns:
    The target's tree with float32 arrays.

  Raises:
    ConversionError: a name matched by no rule or by several; a slot filled
      twice; a slot unfilled, unknown, or of another shape.
  """
  shapes = {
    "/".join(entry.key for entry in path): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(target)
  }
  filled: dict[str, dict[int | None, np.ndarray]] = {}
  came_from: dict[tuple, str] = {}
  for name, array in source.items():
    rule, match = _only_rule(rules, name)
    path, layer = match.expand(rule.path), match.groupdict().get("layer")
    layer = None if layer is None else int(layer)
    if path not in shapes:
      raise ConversionError(
        f"{name} goes to {path}, which the model does not have; check the"
        " model's configuration against the checkpoint."
      )
    if (path, layer) in came_from:
      raise ConversionError(
        f"{path} (layer {layer}) is filled twice, by {name} and by"
        f" {came_from[path, layer]}; each parameter has one source."
      )
    came_from[path, layer] = name
    shape = shapes[path] if layer is None else shapes[path][1:]
    filled.setdefault(path, {})[layer] = _moved(rule, name, array, shape)
  arrays = {path: _joined(path, shapes[path], filled) for path in shapes}
  return _nested(arrays)


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


def _moved(rule, name, array, shape):
  array = np.asarray(array, np.float32)
  expected = int(np.prod(shape))
  if array.size != expected:
    raise ConversionError(
      f"{name} has shape {array.shape}; expected {expected} numbers for shape"
      f" {shape}. The checkpoint is of another model size."
    )
  return rule.move(array, shape)


def _joined(path, shape, filled) -> np.ndarray:
  slots = filled.get(path, {})
  if None in slots and len(slots) == 1:
    return slots[None]
  missing = [i for i in range(shape[0] if shape else 0) if i not in slots]
  if not slots or missing or len(slots) != shape[0]:
    which = f" (layers {missing})" if slots and missing else ""
    raise ConversionError(
      f"{path}{which} is not filled by any of the checkpoint's names; expected"
      " exactly one source for each parameter."
    )
  return np.stack([slots[i] for i in range(shape[0])])


def _nested(arrays: Mapping[str, np.ndarray]) -> dict:
  tree: dict = {}
  for path, array in arrays.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = array
  return tree
