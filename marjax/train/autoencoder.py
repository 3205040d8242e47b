"""The release that a run's codec has its weights from, for good.

    codec                       what training reads     the release
    without weights             images                  none
    weights, cached (KL, VQ)    a cache of latents      its copy in the cache
    weights, not cached         images                  data.autoencoder

1. In the last case training needs the weights themselves: tokens are computed
   from images at each step. They are small.
2. A checkpoint notes the digest of the weights it was trained with; going on
   with others is refused.
3. WORKDIR/autoencoder is a copy of the release, so that the work directory can
   be generated from, and the run go on, without the original.
"""

from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from marjax import outputs
from marjax.convert import fetching
from marjax.data.latent_cache import CachedLatents
from marjax.outputs import AnyPath
from marjax.parallel.mesh import host_mesh
from marjax.protocols import Codec, Shapes
from marjax.release import loading
from marjax.release.digest import digest
from marjax.release.workdir import AUTOENCODER
from marjax.schema import check


@dataclass(frozen=True, eq=False)
class Autoencoder:
  """Where a run's codec has its weights from.

  Attributes:
    digest: of its weights; "" for a codec without any.
    params: numpy arrays, those that training needs: {} where latents are
      cached, unless the backbone takes code vectors, and for a codec without
      weights.
    release: its folder, None where there is a cache or nothing.
    cache: the cache that has its release, if there is one.
  """

  digest: str = ""
  params: PyTree = field(default_factory=dict)
  release: AnyPath | None = None
  cache: CachedLatents | None = None

  def folder(self) -> AnyPath | None:
    """The release; None for a codec without weights.

    Raises:
      FileNotFoundError: the cache has no copy of it.
    """
    return self.cache.autoencoder if self.cache else self.release


def of_run(
  codec: Codec,
  name: str,
  cache: CachedLatents | None,
  workdir: AnyPath,
  needs_params: bool = False,
) -> Autoencoder:
  """What the codec of a run has its weights from.

  Args:
    codec: of the run. name: its data.autoencoder.
    cache: the latents that it reads, if it does.
    workdir: which may have a copy already.
    needs_params: whether they are wanted though latents are cached.

  Raises:
    ValueError: none is named, or one of another codec, such as a codebook that
      was fitted on other patches, or one for a codec without weights.
    OSError: it cannot be read.
  """
  if cache:
    ours, theirs = codec.record_shapes(), cache.codec.record_shapes()
    check(
      ours == theirs,
      f"{cache.path} holds {_shown(theirs)} of each image, and the codec takes"
      f" {_shown(ours)}; expected the codec that the cache was made with,"
      f" {cache.codec}: set codec to that, or make another cache.",
    )
    if not needs_params:
      return Autoencoder(cache.digest, cache=cache)
    params = _params(loading.load(cache.autoencoder, host_mesh()))
    return Autoencoder(cache.digest, params, cache=cache)
  if not codec.has_params():
    check(
      not name,
      f"data.autoencoder is {name!r}, and a codec of kind {codec.kind!r} has no"
      " weights; expected '': leave it out, or take that release's codec.",
    )
    return Autoencoder()
  check(
    bool(name),
    f"codec.kind is {codec.kind!r}, whose weights are in a release, and"
    " data.autoencoder names none; expected its folder, such as marjax"
    " fit-codebook writes: set data.autoencoder to it.",
  )
  path = _found(name, workdir)
  release = loading.load(path, host_mesh())
  loading.check_autoencoder(codec, release.card, str(path))
  params = _params(release)
  return Autoencoder(digest(params), params, path)


def _params(release: loading.Release) -> PyTree:
  """Of a codec, as numpy arrays."""
  return jax.tree.map(np.asarray, release.codec_params)


def _shown(shapes: Shapes) -> str:
  """Names and shapes of a record."""
  return ", ".join(f"{name} {shape.shape}" for name, shape in shapes.items())


def _found(name: str, workdir: AnyPath) -> AnyPath:
  """The release of that name, or the copy of it where it is gone."""
  try:
    return fetching.find(name)
  except FileNotFoundError:
    copy = workdir / AUTOENCODER
    if outputs.is_remote(workdir) or not copy.exists():
      raise
    return copy


def check_same(noted: str, found: str, where: AnyPath) -> None:
  """Refuses weights that are not those of the checkpoint.

  Args:
    noted: digest in the checkpoint, "" if there were none.
    found: that of what training would go on with. where: the work directory.

  Raises:
    ValueError: they differ.
  """
  if noted != found:
    raise ValueError(
      f"{where} was trained on latents of the autoencoder"
      f" {noted[:12] or 'none'}... and this run's are of"
      f" {found[:12] or 'none'}...; set data.data_dir to the cache it was"
      " trained on, or data.autoencoder to the release, or choose another"
      " --workdir."
    )


def keep_copy(autoencoder: Autoencoder, workdir: AnyPath) -> None:
  """Copies the release into the work directory, once.

  Not into a bucket: there only latents can be generated.

  Raises:
    ValueError: there is a copy of another one already.
  """
  is_first = jax.process_index() == 0
  if not autoencoder.digest or outputs.is_remote(workdir) or not is_first:
    return
  place = Path(workdir) / AUTOENCODER
  if not place.exists():
    loading.export(autoencoder.folder(), place)
  elif autoencoder.params:
    there = digest(loading.load(place, host_mesh()).codec_params)
    check(
      there == autoencoder.digest,
      f"{place} has the digest {there[:12]}... and the release that"
      f" data.autoencoder names {autoencoder.digest[:12]}...; expected the"
      " same: move that folder away, or choose another --workdir.",
    )
