"""Anything that can be generated from, loaded the same way.

1. A path is a released checkpoint, a work directory (see `kinds`), or a
   .safetensors file: a release in one file.
2. Hashes and shapes are checked, then the weights go to the mesh: the model's
   where the table of axes puts them, an autoencoder's to every device.
3. The autoencoder is inside the release or a sibling named in it. A sibling
   that is not there is no error yet: latents can be made without it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import jax
from jaxtyping import PyTree

from marjax import outputs
from marjax.parallel.mesh import host_mesh
from marjax.parallel.rules import replicated
from marjax.release import card as cards
from marjax.release import directory, kinds, single_file, workdir
from marjax.release.card import MANIFEST, Card, Codec, Manifest
from marjax.schema import check


@dataclass(frozen=True, eq=False)
class Release:
  """A model, an autoencoder, or both, ready to use.

  Attributes:
    card: configuration, settings, origin.
    params: the model's parameters on the mesh; {} for an autoencoder alone.
    codec_params: the autoencoder's; {} for a codec without weights, None where
      the sibling that the card names is not there.
    autoencoder: where that sibling was looked for, None if there is none.
  """

  card: Card
  params: PyTree
  codec_params: PyTree | None
  autoencoder: outputs.AnyPath | None = None


def load(
  path: str | os.PathLike, mesh: jax.sharding.Mesh, verify: bool = True
) -> Release:
  """Loads a release, a work directory or a release in one file.

  Args:
    path: of the folder or the file; of a work directory only below gs://.
    mesh: devices that the weights go to.
    verify: False skips the hashes, not the sizes and shapes.

  Raises:
    FileNotFoundError: there is nothing of the kind.
    ValueError: it is damaged, of another format or of another model.
  """
  path = outputs.absolute(path)
  if outputs.is_remote(path):
    card, params = workdir.load(path, mesh, verify)
    beside = path / card.autoencoder if card.autoencoder else None
    return Release(card, params, None if beside else {}, beside)
  kind = kinds.check_kind(path, kinds.RELEASE, kinds.WORKDIR, kinds.FILE)
  if kind == kinds.FILE:
    return _from_file(path, mesh, verify)
  if kind == kinds.RELEASE:
    return _from_directory(path, mesh, verify)
  return _with_sibling(*workdir.load(path, mesh, verify), path, mesh, verify)


def abstract_weights(card: Card, mesh: jax.sharding.Mesh) -> PyTree:
  """Shapes and shardings of the weights that a card describes."""
  if card.model is not None:
    return workdir.abstract_params(card.model, mesh)
  return abstract_codec(card.codec, mesh)


def abstract_codec(codec: Codec, mesh: jax.sharding.Mesh) -> PyTree:
  """Shapes of a codec's weights, whole on every device."""
  shapes = jax.eval_shape(lambda: codec.init_params(jax.random.key(0)))
  everywhere = replicated(mesh)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=everywhere
    ),
    shapes,
  )


def _from_directory(path: Path, mesh, verify: bool) -> Release:
  card, weights = _weights(path, mesh, verify)
  if card.model is None:
    return Release(card, {}, weights)
  return _with_sibling(card, weights, path, mesh, verify)


def _with_sibling(card: Card, weights, path: Path, mesh, verify) -> Release:
  """The model with the autoencoder that its card names, if it is there."""
  if not card.autoencoder:
    return Release(card, weights, {})
  beside = Path(os.path.normpath(path / card.autoencoder))
  if not beside.exists():  # perhaps it is beside what a link points to
    linked = Path(os.path.normpath(path.resolve() / card.autoencoder))
    beside = linked if linked.exists() else beside
  if not beside.exists():
    return Release(card, weights, None, beside)
  theirs, codec_params = _weights(beside, mesh, verify)
  check_autoencoder(card.codec, theirs, str(beside))
  return Release(card, weights, codec_params, beside)


def check_autoencoder(codec: Codec, card: Card, where: str) -> None:
  """Refuses a release that is not the autoencoder of this codec."""
  is_model = card.model is not None
  if is_model or not cards.is_same_autoencoder(codec, card.codec):
    what = "a model" if is_model else f"{card.codec}"
    raise ValueError(
      f"{where} is {what}; expected the autoencoder of the model, {codec}: name"
      " that one."
    )


def _weights(path: Path, mesh, verify: bool) -> tuple[Card, PyTree]:
  manifest: Manifest = directory.read_manifest(path)
  directory.verify(path, manifest, with_hashes=verify)
  card = manifest.card
  cards.check_layers(card.model or card.codec, len(manifest.files), str(path))
  abstract = abstract_weights(card, mesh)
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract))
  check(
    count == manifest.num_parameters,
    f"{path / MANIFEST} says {manifest.num_parameters} parameters, and its"
    f" configuration has {count}: weights and configuration are of two models;"
    " convert again.",
  )
  return card, directory.read_weights(path, abstract)


def _from_file(path: Path, mesh, verify: bool) -> Release:
  with single_file.opened(path) as file:
    card, own, codec_params = parts(file, mesh, verify)
    if card.model is None:
      return Release(card, {}, own)
    if codec_params is None:
      # As if the file were a folder of that name.
      return _with_sibling(card, own, path.with_suffix(""), mesh, verify)
    return Release(card, own, codec_params)


def parts(
  file: single_file.OpenFile, mesh: jax.sharding.Mesh, verify: bool = True
) -> tuple[Card, PyTree, PyTree | None]:
  """Card, weights and the autoencoder's, if the file holds one."""
  card, where = file.manifest.card, str(file.path)
  counts = [file.count(single_file.OWN), file.count(single_file.AUTOENCODER)]
  cards.check_layers(card.model or card.codec, counts[0], where)
  own = file.read(single_file.OWN, abstract_weights(card, mesh), verify)
  if not counts[1]:
    return card, own, None
  cards.check_layers(card.codec, counts[1], where)
  abstract = abstract_codec(card.codec, mesh)
  return card, own, file.read(single_file.AUTOENCODER, abstract, verify)


def copy(path: Path, folder: Path) -> None:
  """Copies a release, a folder or one file, to a new folder.

  Raises:
    ValueError: it is damaged, or has links; see `directory.copy`.
    OSError: it cannot be read or written.
  """
  if path.is_dir():
    directory.copy(path, folder)
    return
  release = load(path, host_mesh())
  directory.save(folder, release.card, release.params or release.codec_params)
