"""Published weights of feature networks → parameters: which table, and by it.

A new network's tables are a file of their own, and one line here.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtyping import PyTree

from marjax.convert import table
from marjax.evaluate.networks import cnn_layouts, vit_layouts
from marjax.evaluate.networks.layout import Layout
from marjax.evaluate.networks.protocol import Network

LAYOUTS: dict[str, tuple[Layout, ...]] = {
  "inception": cnn_layouts.INCEPTION,
  "mobilenet": cnn_layouts.MOBILENET,
  "squeezenet": cnn_layouts.SQUEEZENET,
  "dinov2": vit_layouts.DINOV2,
  "clip": vit_layouts.CLIP,
}


def layout_of(network: Network, names: Iterable[str]) -> Layout:
  """The layout of arrays with these names; ValueError if none is known."""
  names = set(names)
  known = LAYOUTS.get(network.name, ())
  for layout in known:
    if layout.marker in names:
      return layout
  some = ", ".join(sorted(map(str, names))[:3])
  programs = " or ".join(layout.program for layout in known)
  raise ValueError(
    f"the arrays are named {some[:200]} ...; expected those of {network.name}"
    f" as {programs} names them: take that file, or name another network."
  )


def params_of(
  network: Network,
  arrays: Mapping[str, Any],
  progress: Callable[[Iterable], Iterable] = iter,
) -> PyTree:
  """A network's parameters, float32 numpy arrays.

  Args:
    network: whose they are. progress: wraps the loop over arrays.
    arrays: name to array, or to something with `shape` and `load()`.

  Raises:
    ValueError: names of no known layout.
    ConversionError: a name without a place, or a place without a name.
  """
  layout = layout_of(network, arrays)
  target = layout.spread(network.shapes())
  wanted = {
    name: array
    for name, array in arrays.items()
    if not re.fullmatch(layout.ignored, name)
  }
  return layout.fold(table.convert(layout.rules, wanted, target, progress))
