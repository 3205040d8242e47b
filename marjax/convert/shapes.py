"""Shapes of a published state dict, asked for by name."""

import re
from collections.abc import Mapping

from marjax.schema import check

Shapes = Mapping[str, tuple[int, ...]]


def shape_of(shapes: Shapes, name: str) -> tuple[int, ...]:
  """The shape of a weight; ValueError if it is missing or odd."""
  check(
    name in shapes,
    f"{name} is not among the weights, and tells the model's size; expected a"
    " whole published checkpoint: convert one.",
  )
  shape = tuple(shapes[name])
  is_conv = "conv" in name
  axes = 3 if "pos_embed" in name else 4 if is_conv else 2
  check(
    len(shape) == axes and all(size >= 1 for size in shape),
    f"{name} has shape {shape}; expected {axes} axes of 1 or more, as published"
    " checkpoints have there: convert one.",
  )
  return shape


def count_of(shapes: Shapes, pattern: str) -> int:
  """How many indices the pattern's group takes: 1 + the largest."""
  found = (re.fullmatch(pattern, name) for name in shapes)
  return 1 + max((int(match[1]) for match in found if match), default=-1)
