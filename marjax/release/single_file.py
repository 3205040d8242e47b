"""A release as one .safetensors file, for people who share weights.

1. Tensors are named as parameters are: `weights/backbone/mask_token`, and
   `autoencoder/decoder/...` where the autoencoder comes along.
2. The file's metadata hold the manifest, with the sha256 of each tensor.
3. Writing goes through a temporary name; reading takes each device's slice of a
   tensor straight from the file. NaN and infinity are neither written nor read.
"""

import contextlib
import hashlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from marjax import outputs
from marjax.arrays import check_finite
from marjax.release import card as cards
from marjax.release import files
from marjax.release.card import Card, Manifest

METADATA = "marjax"
OWN, AUTOENCODER = "weights", "autoencoder"


@dataclass(frozen=True, eq=False)
class OpenFile:
  """A .safetensors release that is open for reading."""

  path: Path
  manifest: Manifest
  tensors: Any
  names: frozenset[str]

  def count(self, part: str) -> int:
    """How many arrays of the part the file holds: OWN or AUTOENCODER."""
    return sum(name.startswith(part + "/") for name in self.manifest.files)

  def read(self, part: str, abstract: PyTree, verify: bool = True) -> PyTree:
    """The weights of a part, each shard straight to its device.

    Args:
      part: OWN or AUTOENCODER.
      abstract: nested dicts of ShapeDtypeStructs with shardings.
      verify: False skips the hashes.

    Raises:
      ValueError: a tensor is missing, of another shape or type, damaged, or
        has NaN or infinity.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    arrays = []
    for path, leaf in leaves:
      name = f"{part}/{_name(path)}"
      self._check(name, leaf, verify)
      tensor = self.tensors.get_slice(name)
      arrays.append(
        jax.block_until_ready(
          jax.make_array_from_callback(
            leaf.shape,
            leaf.sharding,
            lambda index, tensor=tensor: np.asarray(tensor[index]),
          )
        )
      )
    weights = jax.tree.unflatten(structure, arrays)
    check_finite(weights, f"{self.path}, in {part},")
    return weights

  def _check(self, name: str, leaf: jax.ShapeDtypeStruct, verify: bool) -> None:
    shown = "absent"
    if name in self.names and name in self.manifest.files:
      tensor = self.tensors.get_slice(name)
      shown = f"{tensor.get_dtype()} of shape {tuple(tensor.get_shape())}"
    wanted = f"F{8 * leaf.dtype.itemsize} of shape {tuple(leaf.shape)}"
    if shown != wanted:
      raise ValueError(
        f"{self.path} has {name} {shown}; its manifest's configuration makes it"
        f" {wanted}: export or download it again."
      )
    if not verify:
      return
    digest = _digest(self.tensors.get_tensor(name))
    if digest != self.manifest.files[name].sha256:
      raise ValueError(
        f"{self.path} has another content in {name} than its manifest says"
        f" (sha256 {digest[:12]}..., expected"
        f" {self.manifest.files[name].sha256[:12]}...): export or download it"
        " again."
      )


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[OpenFile]:
  """Opens a release in one file.

  Raises:
    ValueError: no safetensors file, or none that marjax exported.
  """
  import safetensors

  path = Path(path)
  files.check_regular(path)
  quoted = shlex.quote(str(path))
  try:
    file = safetensors.safe_open(path, framework="numpy")
  except Exception as error:
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f"{path} cannot be read as a .safetensors file ({cause}); expected one"
      " that marjax exported, whole: download it again, or make a release of"
      f" another kind of file with marjax convert {quoted} --out FOLDER."
    ) from None
  with file as tensors:
    text = (tensors.metadata() or {}).get(METADATA)
    if text is None:
      raise ValueError(
        f"{path} was not exported by marjax: it has no manifest; make a release"
        f" of it first: marjax convert {quoted} --out FOLDER."
      )
    manifest = cards.read_manifest(text.encode(), str(path))
    yield OpenFile(path, manifest, tensors, frozenset(tensors.keys()))


def write(
  path: str | os.PathLike,
  card: Card,
  weights: PyTree,
  autoencoder: PyTree | None = None,
  overwrite: bool = False,
) -> Manifest:
  """Writes weights of numpy arrays, perhaps an autoencoder's, and the card.

  Raises:
    FileExistsError: the file exists and `overwrite` is false.
    OSError: it cannot be written.
    ValueError: an array has NaN or infinity.
  """
  from safetensors.numpy import save_file

  path = Path(path)
  tensors = _flat(OWN, weights)
  if autoencoder is not None:
    tensors |= _flat(AUTOENCODER, autoencoder)
  check_finite(tensors, f"what is to be written to {path}")
  hashes = {name: (a.nbytes, _digest(a)) for name, a in tensors.items()}
  count = sum(leaf.size for leaf in jax.tree.leaves(weights))
  manifest = cards.with_files(card, count, hashes)
  with outputs.replacing(path, overwrite) as temporary:
    try:
      save_file(tensors, temporary, {METADATA: manifest.to_json().decode()})
    except Exception as error:
      raise OSError(str(error)) from None
  return manifest


def _flat(part: str, tree: PyTree) -> dict[str, np.ndarray]:
  return {
    f"{part}/{_name(path)}": np.ascontiguousarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
