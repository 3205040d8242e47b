"""The autoencoder behind cached latents, which a run belongs to for good.

1. A checkpoint notes the digest of the autoencoder whose latents it was trained
   on; going on with latents of another one is refused.
2. WORKDIR/autoencoder is a copy of the release in the cache, so that the work
   directory can be generated from without the cache.
"""

from pathlib import Path

import jax

from marjax import outputs
from marjax.data.latent_cache import CachedLatents
from marjax.outputs import AnyPath
from marjax.release import loading
from marjax.release.workdir import AUTOENCODER


def check_same(noted: str, cache: CachedLatents | None, where: AnyPath) -> None:
  """Refuses latents that are not those of the checkpoint.

  Args:
    noted: digest in the checkpoint, "" if it was trained on images.
    cache: what training would go on with. where: the work directory.

  Raises:
    ValueError: they differ.
  """
  found = cache.digest if cache else ""
  if noted != found:
    raise ValueError(
      f"{where} was trained on latents of the autoencoder {noted[:12]}... and"
      f" the cache was made by {found[:12] or 'none'}...; set data.data_dir to"
      " the cache it was trained on, or choose another --workdir."
    )


def keep_copy(cache: CachedLatents | None, workdir: AnyPath) -> None:
  """Copies the cache's autoencoder into the work directory, once.

  Not into a bucket: there only latents can be generated.
  """
  if cache is None or outputs.is_remote(workdir) or jax.process_index() > 0:
    return
  place = Path(workdir) / AUTOENCODER
  if place.exists():
    return
  loading.export(cache.autoencoder, place)
