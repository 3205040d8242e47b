"""Anything with MAR's weights → a released checkpoint.

    name or URL ─fetch▶ file ─read▶ arrays ─table▶ parameters ─▶ release
                                              work directory ─┘

1. A source that is a name or an address is fetched first; what other programs
   call the same arrays is renamed.
2. Shapes say which model it is; the table places every array, or says which key
   it cannot place; then the release is written under a temporary name.
3. The report says what was read and written, to be kept with a release.
"""

import dataclasses
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
from jaxtyping import PyTree

from marjax import outputs, schema
from marjax.convert import layouts, read, recognise, table
from marjax.latents.kl import KLConfig, LatentScale
from marjax.parallel.mesh import host_mesh
from marjax.protocols import Codec
from marjax.release import directory, kinds, loading
from marjax.release.card import MANIFEST, Card, Origin
from marjax.schema import Size, check, printable

UNCHECKED = "the file has no checksums: compare the sha256 with its publisher's"


@schema.config
class Choices:
  """What a file does not say.

  Attributes:
    weights: "ema" or "raw"; None for the average where there is one.
    autoencoder: a released autoencoder or a file of one, to be copied into the
      release; None names the folder kl16 beside the release, whether it is
      there already or not.
    num_heads: attention heads, for widths that are not published.
    latent_scale: of an autoencoder that is not KL-16; one of a VQ autoencoder
      makes its tokens floats, of what comes before the codes.
    class_names: one entry per class; None is ImageNet's for 1000 classes.
    name, licence: for the card; None for what is known.
  """

  weights: Literal["ema", "raw"] | None = None
  autoencoder: str | os.PathLike | None = None
  num_heads: Size | None = None
  latent_scale: LatentScale | None = None
  class_names: tuple[str, ...] | None = None
  name: str | None = None
  licence: str | None = None


@dataclass(frozen=True)
class Report:
  """What was converted.

  Attributes:
    folder: of the release. card: what it says of itself.
    num_arrays, num_parameters: placed, each exactly once.
    num_bytes: of the release's files. seconds: reading to renaming.
    notes: how the file named its arrays, and what of it was left out.
  """

  folder: Path
  card: Card
  num_arrays: int
  num_parameters: int
  num_bytes: int
  seconds: float
  notes: tuple[str, ...] = ()

  def __str__(self) -> str:
    card, origin = self.card, self.card.origin
    lines = [
      f"converted    {card.name}",
      f"parameters   {self.num_parameters:,} in {self.num_arrays} arrays, each"
      " placed exactly once",
    ]
    if origin:
      lines += [
        f"source       {origin.file}, {origin.num_bytes:,} bytes,"
        f" {origin.weights} weights",
        f"sha256       {origin.sha256}",
      ]
    lines += [f"note         {note}" for note in self.notes]
    if card.codec.num_codes:
      lines.append(f"codes        {card.codec.num_codes:,}")
    elif card.codec.has_params():
      lines.append(f"latent scale {card.codec.latent_scale}")
    if card.autoencoder:
      place = Path(os.path.normpath(self.folder / card.autoencoder))
      inside = self.folder.glob(f"{directory.AUTOENCODER}-*")
      is_there = place.exists() or any(inside)
      missing = "" if is_there else " (not there yet: convert it, too)"
      lines.append(f"autoencoder  {place}{missing}")
    lines.append(
      f"written      {self.folder}, {self.num_bytes:,} bytes, in"
      f" {self.seconds:.1f} s"
    )
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Parts:
  """What a release is made of: a card, weights, perhaps an autoencoder's."""

  card: Card
  weights: PyTree
  num_arrays: int
  codec_weights: PyTree | None = None
  notes: tuple[str, ...] = ()


def convert(
  source: str | os.PathLike,
  out: str | os.PathLike,
  choices: Choices | None = None,
  *,
  url: str = "",
  progress: bool = False,
) -> Report:
  """Makes a release of a file or a work directory.

  Args:
    source: path of it. out: the release's folder, which must not exist.
    choices: what the file does not say.
    url: where the file was fetched from, for the record.
    progress: show bars.

  Raises:
    FileExistsError: `out` exists. OSError: something cannot be read or written.
    ValueError: a file of another kind, or damaged; see also `recognise`.
    ConversionError: a key without a place, or a place without a key.
  """
  start = time.perf_counter()
  source, out = outputs.local(source), outputs.local(out).absolute()
  choices = choices or Choices()
  directory.check_free(out)
  check(
    kinds.kind_of(source) != kinds.RELEASE,
    f"{source} is a released checkpoint already; load it, or copy it with"
    " marjax export.",
  )
  autoencoder = _autoencoder(choices, progress)
  codec = _codec(autoencoder, out)
  parts = _parts(source, choices, codec, url, progress)
  card, names = parts.card, choices.class_names
  if autoencoder:
    check(
      bool(card.autoencoder),
      f"{card.name} needs no autoencoder; leave it out.",
    )
    where = str(choices.autoencoder)
    loading.check_autoencoder(card.codec, autoencoder.card, where)
  card = dataclasses.replace(
    card,
    class_names=card.class_names if names is None else names,
    name=choices.name or card.name,
    licence=choices.licence or card.licence,
  )
  inner = autoencoder.weights if autoencoder else parts.codec_weights
  manifest = directory.save(out, card, parts.weights, inner)
  return Report(
    out,
    manifest.card,
    parts.num_arrays,
    manifest.num_parameters,
    sum(record.num_bytes for record in manifest.files.values()),
    time.perf_counter() - start,
    parts.notes,
  )


def _parts(
  source: Path,
  choices: Choices,
  codec: Codec,
  url: str,
  progress: bool,
) -> Parts:
  """What the source holds.

  Args:
    source, choices, url, progress: as in `convert`.
    codec: that of a model's images.
  """
  if kinds.kind_of(source) not in (kinds.NOTHING, kinds.FILE):
    directory.check_unlinked(source)
    check(
      choices.weights != "raw",
      f"{source} is a work directory, of which averaged weights are released;"
      " leave weights='raw' out.",
    )
    loaded = loading.load(source, host_mesh())
    weights = loaded.params or loaded.codec_params
    count = len(jax.tree.leaves(weights))
    return Parts(loaded.card, weights, count, loaded.codec_params)
  from tqdm import tqdm

  file = read.read(source, choices.weights)
  check(
    "marjax" not in file.metadata,
    f"{source} was exported by an older marjax, in a format that is not read"
    " any more; expected weights of another program: convert what it was made"
    " from again, with marjax convert SOURCE --out FOLDER.",
  )
  arrays, notes = layouts.standard(file.arrays, str(source))
  if not file.has_checksums:
    notes += (UNCHECKED,)
  shapes = {name: array.shape for name, array in arrays.items()}
  card = recognise.card(shapes, codec, choices.num_heads, choices.latent_scale)
  rules = recognise.rules(shapes)
  # Names and shapes are settled before a number is read.
  target = loading.abstract_weights(card.model or card.codec, host_mesh())
  bar = functools.partial(
    tqdm, desc="converting", unit="array", disable=not progress
  )
  weights = table.convert(rules, arrays, target, bar)
  origin = Origin(
    file=printable(source.name),
    num_bytes=source.stat().st_size,
    sha256=read.sha256(source),
    weights=file.weights,
    url=url,
  )
  card = dataclasses.replace(card, origin=origin)
  return Parts(card, weights, len(arrays), notes=notes)


def _autoencoder(choices: Choices, progress: bool) -> Parts | None:
  """The autoencoder that was chosen, a release or a file, if one was."""
  if choices.autoencoder is None:
    return None
  chosen = outputs.local(choices.autoencoder)
  own = Choices(num_heads=choices.num_heads, latent_scale=choices.latent_scale)
  parts = _parts(chosen, own, KLConfig(), "", progress)
  check(
    parts.card.model is None,
    f"{choices.autoencoder} is a model; name an autoencoder to go with it.",
  )
  return parts


def _codec(autoencoder: Parts | None, out: Path) -> Codec:
  """That of the autoencoder chosen or beside the release, else KL-16."""
  card = autoencoder and autoencoder.card
  beside = Path(os.path.normpath(out / recognise.SIBLING))
  if card is None and (beside / MANIFEST).exists():
    card = directory.read_manifest(beside).card
  return card.codec if card and card.codec.has_params() else KLConfig()
