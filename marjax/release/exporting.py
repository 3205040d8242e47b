"""A release, or a work directory, as one file to hand on."""

import dataclasses
import os

from marjax import outputs
from marjax.parallel.mesh import host_mesh
from marjax.release import directory, loading, single_file


def export(
  checkpoint: str | os.PathLike,
  out: str | os.PathLike,
  overwrite: bool = False,
) -> int:
  """Writes a release or a work directory as one .safetensors file.

  The autoencoder comes along where it is found. Returns the bytes written.

  Raises:
    ValueError: another ending; see also `marjax.release.loading.load`.
    FileExistsError: `out` exists and `overwrite` is false.
  """
  out = outputs.local(out)
  if out.suffix != ".safetensors":
    raise ValueError(
      f"{out} does not end in .safetensors; name such a file to write."
    )
  outputs.check_free([out], overwrite)
  loaded = loading.load(checkpoint, host_mesh())
  card, codec_weights = loaded.card, loaded.codec_params or None
  if card.model is None:
    single_file.write(out, card, codec_weights, None, overwrite)
  else:
    if codec_weights:
      card = dataclasses.replace(card, autoencoder=directory.AUTOENCODER)
    single_file.write(out, card, loaded.params, codec_weights, overwrite)
  return out.stat().st_size
