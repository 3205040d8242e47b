"""Anything that can be generated from, loaded the same way.

1. A path is a released checkpoint or a work directory (see `kinds`).
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
from marjax.arrays import one_of
from marjax.model import ModelConfig
from marjax.parallel.mesh import host_mesh
from marjax.parallel.rules import replicated
from marjax.release import card as cards
from marjax.release import directory, kinds, workdir
from marjax.release.card import MANIFEST, Card, Codec, Manifest
from marjax.schema import check
from marjax.ticks import ticking


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


@ticking("loading")
def load(
  path: str | os.PathLike, mesh: jax.sharding.Mesh, verify: bool = True
) -> Release:
  """Loads a release or a work directory.

  Args:
    path: of the folder; of a work directory only below gs://.
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
  if kinds.check_kind(path, kinds.RELEASE, kinds.WORKDIR) == kinds.RELEASE:
    return _released(path, mesh, verify)
  return _with_sibling(*workdir.load(path, mesh, verify), path, mesh, verify)


def export(
  checkpoint: str | os.PathLike,
  out: str | os.PathLike,
  weights_dtype: str = "float32",
) -> Manifest:
  """Copies a release, or averaged weights of a work directory, to a new folder.

  The autoencoder comes along where it is found.

  Args:
    checkpoint: a release or a work directory. out: the folder to make.
    weights_dtype: of the model's weights in the file, see `directory.save`.

  Raises:
    FileExistsError: `out` exists. OSError: it cannot be written.
    ValueError: a release that has links; another dtype; see also `load`.
  """
  one_of("float32", "bfloat16")(weights_dtype, "weights_dtype")
  out, checkpoint = outputs.local(out), outputs.absolute(checkpoint)
  directory.check_free(out)
  if not outputs.is_remote(checkpoint):
    directory.check_unlinked(checkpoint)
  release = load(checkpoint, host_mesh())
  if release.card.model is None:
    return directory.save(out, release.card, release.codec_params)
  parts = (release.params, release.codec_params)
  return directory.save(out, release.card, *parts, weights_dtype)


def abstract_weights(
  config: ModelConfig | Codec, mesh: jax.sharding.Mesh
) -> PyTree:
  """Shapes and shardings of a model's or a codec's weights.

  A codec's are whole on every device.
  """
  if isinstance(config, ModelConfig):
    return workdir.abstract_params(config, mesh)

  def init() -> PyTree:
    return config.init_params(jax.random.key(0))

  return jax.jit(init, out_shardings=replicated(mesh)).eval_shape()


def check_autoencoder(codec: Codec, card: Card, where: str) -> None:
  """Refuses a release that is not the autoencoder of this codec."""
  is_model = card.model is not None
  if is_model or not cards.is_same_autoencoder(codec, card.codec):
    what = "a model" if is_model else f"{card.codec}"
    raise ValueError(
      f"{where} is {what}; expected the autoencoder of the model, {codec}: name"
      " that one."
    )


def _released(path: Path, mesh: jax.sharding.Mesh, verify: bool) -> Release:
  manifest = directory.read_manifest(path)
  directory.verify(path, manifest, with_hashes=verify)
  card = manifest.card
  weights = _part(path, manifest, directory.WEIGHTS, mesh)
  if card.model is None:
    return Release(card, {}, weights)
  if any(name.startswith(directory.AUTOENCODER) for name in manifest.files):
    codec_weights = _part(path, manifest, directory.AUTOENCODER, mesh)
    return Release(card, weights, codec_weights)
  return _with_sibling(card, weights, path, mesh, verify)


def _part(
  path: Path, manifest: Manifest, part: str, mesh: jax.sharding.Mesh
) -> PyTree:
  """The weights of a part, on the mesh."""
  card, is_own = manifest.card, part == directory.WEIGHTS
  config = card.model if card.model and is_own else card.codec
  arrays = directory.stored(path, manifest, part)
  cards.check_layers(config, len(arrays), str(path))
  abstract = abstract_weights(config, mesh)
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract))
  check(
    not is_own or count == manifest.num_parameters,
    f"{path / MANIFEST} says {manifest.num_parameters} parameters, and its"
    f" configuration has {count}: weights and configuration are of two models;"
    " convert again.",
  )
  return directory.read_weights(path, arrays, abstract)


def _with_sibling(
  card: Card,
  weights: PyTree,
  path: Path,
  mesh: jax.sharding.Mesh,
  verify: bool,
) -> Release:
  """The model with the autoencoder that its card names, if it is there."""
  if not card.autoencoder:
    return Release(card, weights, {})
  beside = Path(os.path.normpath(path / card.autoencoder))
  if not beside.exists():  # perhaps it is beside what a link points to
    linked = Path(os.path.normpath(path.resolve() / card.autoencoder))
    beside = linked if linked.exists() else beside
  if not beside.exists():
    return Release(card, weights, None, beside)
  theirs = directory.read_manifest(beside).card
  check_autoencoder(card.codec, theirs, str(beside))
  sibling = _released(beside, mesh, verify)
  return Release(card, weights, sibling.codec_params, beside)
