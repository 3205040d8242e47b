"""Anything with MAR's weights → a released checkpoint.

    name or URL ─fetch▶ file ─read▶ arrays ─table▶ parameters ─▶ release
                 work directory, or a release in one file ─────────┘

1. A source that is a name or an address is fetched first; what other programs
   call the same arrays is renamed.
2. Shapes say which model it is; the table places every array, or says which key
   it cannot place; then the release is written under a temporary name.
3. The report says what was read and written, to be kept with a release.
"""

import dataclasses
import functools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
from jaxtyping import PyTree

from marjax import outputs, schema
from marjax.convert import describe, kl, layouts, mar, read, recognise, table
from marjax.latents.kl import KLConfig, LatentScale
from marjax.parallel.mesh import host_mesh
from marjax.release import directory, kinds, loading, single_file, workdir
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
    latent_scale: of an autoencoder that is not KL-16.
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
    if isinstance(card.codec, KLConfig):
      lines.append(f"latent scale {card.codec.latent_scale}")
    if card.autoencoder:
      beside = Path(os.path.normpath(self.folder / card.autoencoder))
      missing = "" if beside.exists() else " (not there yet: convert it, too)"
      lines.append(f"autoencoder  {beside}{missing}")
    lines.append(
      f"written      {self.folder}, {self.num_bytes:,} bytes, in"
      f" {self.seconds:.1f} s"
    )
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Parts:
  """What a release is made of: a card, weights, perhaps an autoencoder."""

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
  """Makes a release of a file, a release in one file, or a work directory.

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
  with tempfile.TemporaryDirectory(prefix="marjax-") as spare:
    inner = _autoencoder(choices, Path(spare), progress)
    beside = Path(os.path.normpath(out / describe.SIBLING))
    codec = _codec(inner or beside)
    parts = _parts(source, choices, inner, codec, url, progress)
    if inner is None and parts.codec_weights is not None:
      inner = Path(spare) / directory.AUTOENCODER
      _save_autoencoder(inner, parts)
    names = choices.class_names
    card = dataclasses.replace(
      parts.card,
      class_names=parts.card.class_names if names is None else names,
      name=choices.name or parts.card.name,
      licence=choices.licence or parts.card.licence,
      autoencoder=directory.AUTOENCODER if inner else parts.card.autoencoder,
    )
    manifest = directory.save(out, card, parts.weights, inner)
  return Report(
    out,
    card,
    parts.num_arrays,
    manifest.num_parameters,
    sum(record.num_bytes for record in manifest.files.values()),
    time.perf_counter() - start,
    parts.notes,
  )


def _parts(
  source: Path,
  choices: Choices,
  inner: Path | None,
  codec: KLConfig,
  url: str,
  progress: bool,
) -> Parts:
  """What the source holds.

  Args:
    source, choices, url, progress: as in `convert`.
    inner: the autoencoder that was chosen. codec: that of a model's images.
  """
  kind = kinds.kind_of(source)
  check(
    kind != kinds.RELEASE,
    f"{source} is a released checkpoint already; load it, or write it as one"
    " file with marjax export.",
  )
  if kind not in (kinds.NOTHING, kinds.FILE):
    kinds.check_kind(source, kinds.WORKDIR, kinds.FILE)
    check(
      choices.weights != "raw",
      f"{source} is a work directory, of which averaged weights are released;"
      " leave weights='raw' out.",
    )
    card, weights = workdir.load(source, host_mesh())
    _check_fits(card, inner)
    return Parts(card, weights, len(jax.tree.leaves(weights)))
  file = read.read(source, choices.weights)
  if single_file.METADATA in file.metadata:
    parts = _from_single_file(source)
    _check_fits(parts.card, inner)
    return parts
  arrays, notes = layouts.standard(file.arrays, str(source))
  if not file.has_checksums:
    notes += (UNCHECKED,)
  shapes = {name: array.shape for name, array in arrays.items()}
  if recognise.kind_of(shapes) == "autoencoder":
    card, rules = describe.autoencoder(shapes, choices.latent_scale), kl.RULES
    _check_fits(card, inner)
  else:
    card = describe.model(shapes, codec, choices.num_heads)
    rules = mar.RULES
  # Names and shapes are settled before a number is read.
  weights = table.convert(rules, arrays, describe.target(card), _bar(progress))
  origin = Origin(
    file=printable(source.name),
    num_bytes=source.stat().st_size,
    sha256=read.sha256(source, progress),
    weights=file.weights,
    url=url,
  )
  card = dataclasses.replace(card, origin=origin)
  return Parts(card, weights, len(arrays), notes=notes)


def _from_single_file(source: Path) -> Parts:
  with single_file.opened(source) as file:
    card, weights, codec_weights = loading.parts(file, host_mesh())
    return Parts(card, weights, len(file.names), codec_weights)


def _autoencoder(choices: Choices, spare: Path, progress: bool) -> Path | None:
  """The released autoencoder that was chosen, converted first if a file."""
  if choices.autoencoder is None:
    return None
  chosen = outputs.local(choices.autoencoder)
  if not chosen.is_dir():
    folder = spare / directory.AUTOENCODER
    own = Choices(
      num_heads=choices.num_heads, latent_scale=choices.latent_scale
    )
    chosen = convert(chosen, folder, own, progress=progress).folder
  manifest = directory.read_manifest(chosen)
  directory.verify(chosen, manifest)
  check(
    manifest.card.model is None,
    f"{choices.autoencoder} is a model; name an autoencoder to go with it.",
  )
  return chosen


def _codec(autoencoder: Path) -> KLConfig:
  """The codec of a released autoencoder, KL-16 where there is none."""
  if not (autoencoder / MANIFEST).exists():
    return KLConfig()
  codec = directory.read_manifest(autoencoder).card.codec
  return codec if isinstance(codec, KLConfig) else KLConfig()


def _check_fits(card: Card, inner: Path | None) -> None:
  """Refuses an autoencoder for what has none, or has another."""
  if inner is None:
    return
  check(
    bool(card.autoencoder),
    f"{card.name} needs no autoencoder; leave it out.",
  )
  theirs = directory.read_manifest(inner).card
  loading.check_autoencoder(card.codec, theirs, str(inner))


def _save_autoencoder(folder: Path, parts: Parts) -> None:
  codec = parts.card.codec
  card = Card(f"KL-{codec.stride}", codec, licence=parts.card.licence)
  directory.save(folder, card, parts.codec_weights)


def _bar(is_shown: bool):
  """Wraps a loop over arrays in a bar."""
  from tqdm import tqdm

  return functools.partial(
    tqdm, desc="converting", unit="array", disable=not is_shown
  )
