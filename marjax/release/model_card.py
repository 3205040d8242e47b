"""The page of a shared model: README.md of a release, from what it is.

1. The head is what the Hugging Face Hub reads: library, licence, tags.
2. The page says how to load the model, what it was trained on, how it draws,
   how it scored, and where its numbers are from. What is not known is left out.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from marjax.release.card import Card, Manifest

LICENCES = ("mit", "apache-2.0", "cc-by-4.0", "cc-by-nc-4.0")
"""Licences that the Hub has names for."""

MOST_CLASSES = 20
"""Names of classes that a page lists."""


def text(
  manifest: Manifest,
  address: str,
  report: Mapping[str, Any] | None = None,
  picture: str = "",
) -> str:
  """The page in Markdown.

  Args:
    manifest: of the release. address: what `marjax.load` takes.
    report: what `marjax evaluate` wrote. picture: file name of one to show.
  """
  card = manifest.card
  parts = [
    _head(card),
    f"# {card.name}\n\n{_what(manifest)}",
    f"![images of {card.name}]({picture})" if picture else "",
    _use(card, address),
    _scores(report or {}),
    _training(card),
    _settings(card),
    _origin(card),
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


def _head(card: Card) -> str:
  own = card.licence.strip().lower()
  name = own if own in LICENCES else "other"
  lines = ["library_name: marjax"]
  if card.licence:
    lines += [f"license: {name}"]
    if name == "other":
      lines += [f"license_name: {json.dumps(card.licence)}"]
  if card.model is not None:
    lines += ["pipeline_tag: unconditional-image-generation"]
  lines += ["tags:", "- marjax", "- jax", "- image-generation", "- mar"]
  return "\n".join(["---", *lines, "---"])


def _what(manifest: Manifest) -> str:
  card, codec = manifest.card, manifest.card.codec
  shape = f"{codec.image_size} × {codec.image_size} × {codec.channels}"
  if card.model is None:
    return f"An autoencoder of images of {shape} ({codec.kind})."
  backbone, head = card.model.backbone, card.model.head
  return (
    f"Draws images of {shape}: a {backbone.kind} transformer of"
    f" {backbone.num_tokens} tokens with a {head.kind} head,"
    f" {manifest.num_parameters:,} parameters, after"
    " [arXiv 2406.11838](https://arxiv.org/abs/2406.11838)."
  )


def _use(card: Card, address: str) -> str:
  if card.model is None:
    lines = [f'codec = marjax.load("{address}")', "codec.reconstruct(images)"]
  else:
    labels = "0" if card.num_classes else "None"
    lines = [
      f'pipe = marjax.load("{address}")',
      f"images = pipe.generate({labels}, num_images=4)",
      'marjax.save(images, "images.png")',
    ]
  return "\n".join(["```python", "import marjax", "", *lines, "```"])


def _scores(report: Mapping[str, Any]) -> str:
  """A table of the numbers of a report; nested ones are its details."""
  rows = [
    f"| {name.replace('_', ' ')} | {value:.4g} |"
    for name, value in report.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
  ]
  return "\n".join(["## Scores", "", "| | |", "|---|---|", *rows]) * bool(rows)


def _training(card: Card) -> str:
  lines = []
  if card.data is not None:
    data = card.data
    name = f" {data.name}" if data.name else ""
    lines += [f"Source `{data.source}`{name}, split `{data.train_split}`."]
  if card.step:
    lines += [f"{card.step:,} optimizer steps."]
  names = [name.partition(",")[0] for name in card.class_names]
  if names:
    more = len(names) - MOST_CLASSES
    shown = ", ".join(names[:MOST_CLASSES])
    lines += [f"Classes: {shown}{f' and {more} more' if more > 0 else ''}."]
  return f"## Training\n\n{' '.join(lines)}" if lines else ""


def _settings(card: Card) -> str:
  if card.model is None:
    return ""
  fields = dataclasses.asdict(card.sampling.for_model(card.model))
  rows = flatten_dict(fields, sep=".")
  lines = [f"| {name} | {value} |" for name, value in rows.items()]
  return "\n".join(["## Settings", "", "| | |", "|---|---|", *lines])


def _origin(card: Card) -> str:
  if card.origin is None:
    return ""
  where = f" from {card.origin.url}" if card.origin.url else ""
  return (
    f"## Origin\n\nConverted from `{card.origin.file}`{where}"
    f" ({card.origin.weights} weights, sha256 `{card.origin.sha256}`)."
  )
