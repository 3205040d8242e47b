"""One program's way to name a network's arrays, and how they become ours.

1. A layout is recognised by a name that no other layout of that network has.
2. Its table (`marjax.convert.table`) places every array of the file, each once,
   and leaves no parameter empty.
3. What only a layout has is folded in after that.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import PyTree

from marjax.convert.table import Rule


def _whole(tree: PyTree) -> PyTree:
  return tree


@dataclass(frozen=True)
class Layout:
  """One program's names.

  Attributes:
    program: that writes them so.
    marker: an array that tells the layout from others of the network.
    rules: the table.
    spread: the tree of parameters to the tree that the table fills.
    fold: back, with numbers; see the module's third point.
    ignored: pattern of names that carry nothing of the network.
  """

  program: str
  marker: str
  rules: tuple[Rule, ...]
  spread: Callable[[PyTree], PyTree] = _whole
  fold: Callable[[PyTree], PyTree] = _whole
  ignored: str = ""
