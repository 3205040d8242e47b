"""Docstrings as the house writes them, made readable to the site's generator.

An item of a list may describe several names, "image_size, channels: ...", of
which the generator would take the second for a type; and a line that begins
with ">=" would be a quotation.
"""

import re

import griffe

NAMES = re.compile(r"^( +\w+(?:, \w+)+):(?= |$)", re.M)


def readable(text: str) -> str:
  """The text with no-break spaces between such names, and a ≥ sign."""
  text = NAMES.sub(lambda item: item[0].replace(", ", ",\u00a0"), text)
  return text.replace(">= ", "≥ ")


class Docstrings(griffe.Extension):
  """Rewrites each docstring before it is parsed."""

  def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
    """Called with every module, class, function and attribute."""
    if obj.docstring:
      obj.docstring.value = readable(obj.docstring.value)
