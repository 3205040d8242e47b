"""A released checkpoint: a folder of a manifest and safetensors files.

    RELEASE/release.json                             a card, every file's hash
    RELEASE/weights-00001-of-00002.safetensors       parameters, by their names
    RELEASE/autoencoder-00001-of-00001.safetensors   where it comes along

1. `save` writes under a temporary name beside the target: the shards, of at
   most 2 GiB, or one array, each; then release.json. Then it renames. A kill
   leaves no half-written release under the final name.
2. `verify` compares every file's size and hash with the manifest.
3. `read_weights` compares names, types and shapes with what is wanted, reads of
   each array the slices that this host's devices need, straight to them, and
   refuses NaN and infinity.
"""

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from marjax import outputs
from marjax.arrays import check_finite, named
from marjax.release import card as cards
from marjax.release import files, kinds
from marjax.release.card import MANIFEST, Card, FileRecord, Manifest
from marjax.schema import check

WEIGHTS = "weights"
AUTOENCODER = "autoencoder"
SHARD_BYTES = 2**31

AGAIN = "copy the release again, whole, or convert again."


def save(
  folder: str | os.PathLike,
  card: Card,
  weights: PyTree,
  codec_weights: PyTree | None = None,
  weights_dtype: str = "float32",
) -> Manifest:
  """Writes a release; there is a whole one under that name or none.

  Args:
    folder: must not exist.
    card: `card.autoencoder` is set if the autoencoder comes along.
    weights: nested dicts of arrays: the model's, or an autoencoder's.
    codec_weights: those of the model's autoencoder, to come along.
    weights_dtype: of `weights` in the file; "bfloat16" rounds them to 8 bits
      and halves it. They are float32 again when they are read.

  Raises:
    FileExistsError: the folder exists. OSError: it cannot be written.
    ValueError: an array has NaN or infinity.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  folder = Path(folder).absolute()
  check_free(folder)
  parts = {WEIGHTS: weights}
  if codec_weights:
    parts[AUTOENCODER] = codec_weights
    card = dataclasses.replace(card, autoencoder=AUTOENCODER)
  check_finite(parts, f"what is to be written to {folder}")
  count = sum(leaf.size for leaf in jax.tree.leaves(weights))
  with _temporary(folder) as partial:
    try:
      for part, arrays in parts.items():
        shards = list(_shards(named(arrays)))
        for number, shard in enumerate(shards, 1):
          name = f"{part}-{number:05d}-of-{len(shards):05d}.safetensors"
          shard = {n: np.asarray(a, order="C") for n, a in shard.items()}
          if part == WEIGHTS and weights_dtype == "bfloat16":
            shard = {n: a.astype(jnp.bfloat16) for n, a in shard.items()}
          save_file(shard, partial / name)
          _sync(partial / name)
      records = {
        path.name: FileRecord(path.stat().st_size, files.sha256(path))
        for path in sorted(partial.iterdir())
      }
      manifest = Manifest(num_parameters=count, card=card, files=records)
      (partial / MANIFEST).write_bytes(manifest.to_json())
      _sync(partial / MANIFEST)
      partial.rename(folder)
    except (OSError, SafetensorError) as error:
      raise OSError(
        f"the weights could not be written to {folder}"
        f" ({outputs.reason(error)}); nothing is left of them: make room, or"
        " choose another folder."
      ) from None
  return manifest


def check_free(folder: Path) -> None:
  """Refuses a folder that exists or cannot be made, before anything long."""
  if os.path.lexists(folder):
    raise FileExistsError(
      f"{folder} already exists; expected a new folder: choose another, or move"
      " it away."
    )
  with _temporary(folder):
    pass


def check_unlinked(folder: Path) -> None:
  """Refuses links in a release that is to be copied.

  Raises:
    ValueError: release.json or a shard is a link.
  """
  for path in [folder / MANIFEST, *sorted(folder.glob("*.safetensors"))]:
    check(
      not path.is_symlink(),
      f"{path} is a link, which is not followed when a release is copied: what"
      f" it points to may be private; copy {folder} with what its links point"
      " to (cp -rL), look through it, and name the copy.",
    )


def read_manifest(folder: str | os.PathLike) -> Manifest:
  """The manifest of a release.

  Raises:
    FileNotFoundError: the folder is no release, or a half-written one.
    ValueError: see `marjax.release.card.from_mapping`.
  """
  folder = Path(folder)
  path = folder / MANIFEST
  kinds.check_kind(folder, kinds.RELEASE)
  return cards.from_mapping(files.read_json(path), str(path))


def verify(
  folder: str | os.PathLike, manifest: Manifest, with_hashes: bool = True
) -> None:
  """Compares every file's size, then its hash, with the manifest.

  Args:
    folder: of the release. manifest: read from it.
    with_hashes: False compares sizes only.

  Raises:
    ValueError: naming the first file that is missing or differs.
  """
  records = {
    name: (record.num_bytes, record.sha256)
    for name, record in manifest.files.items()
  }
  fault = files.fault(
    Path(folder), records, MANIFEST, math.inf if with_hashes else -1
  )
  check(
    not fault,
    f"{folder} is damaged: {fault}: copy the release again, whole, or convert"
    " again.",
  )


def stored(
  folder: str | os.PathLike, manifest: Manifest, part: str
) -> dict[str, tuple[Path, str]]:
  """Name of an array → its shard, its type and shape; {} without the part.

  Args:
    folder: of the release. manifest: read from it.
    part: WEIGHTS or AUTOENCODER.

  Raises:
    ValueError: a shard is no safetensors file.
  """
  arrays = {}
  for file in manifest.files:
    if not file.startswith(f"{part}-"):
      continue
    path = Path(folder) / file
    with files.opened(path, AGAIN) as shard:
      for name in shard.offset_keys():
        array = shard.get_slice(name)
        kind = f"{array.get_dtype()} of shape {tuple(array.get_shape())}"
        arrays[name] = path, kind
  return arrays


def read_weights(
  folder: str | os.PathLike,
  arrays: dict[str, tuple[Path, str]],
  abstract: PyTree,
) -> PyTree:
  """The weights of a part of a release, on their devices.

  Args:
    folder: of the release. arrays: what `stored` says of the part.
    abstract: nested dicts of ShapeDtypeStructs with shardings.

  Raises:
    ValueError: names, types or shapes are not those of `abstract`; or an array
      has NaN or infinity.
  """
  wanted = named(abstract)
  theirs = {name: kind for name, (_, kind) in arrays.items()}
  ours = {
    name: f"F{8 * leaf.dtype.itemsize} of shape {tuple(leaf.shape)}"
    for name, leaf in wanted.items()
  }
  for name in sorted(theirs.keys() | ours.keys()):
    check(
      theirs.get(name, "").replace("BF16", "F32") == ours.get(name),
      f"{folder} has {name} {theirs.get(name, 'absent')}; the configuration in"
      f" {MANIFEST} makes it {ours.get(name, 'absent')}: weights and"
      " configuration are of two models; convert again.",
    )
  read = []
  for name, leaf in wanted.items():
    # Opened for each array: the pages of one that was read count as memory
    # until its file is closed. Training forbids transfers that nobody meant.
    with (
      files.opened(arrays[name][0], AGAIN) as shard,
      jax.transfer_guard("allow"),
    ):
      part = shard.get_slice(name)
      array = jax.make_array_from_callback(
        leaf.shape,
        leaf.sharding,
        lambda index, part=part, leaf=leaf: part[index].astype(leaf.dtype),
      )
      read.append(jax.block_until_ready(array))
  weights = jax.tree.unflatten(jax.tree.structure(abstract), read)
  check_finite(weights, str(folder))
  return weights


def _shards(arrays: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """Consecutive arrays, of at most SHARD_BYTES together or one alone."""
  shard, size = {}, 0
  for name, leaf in arrays.items():
    num_bytes = leaf.size * leaf.dtype.itemsize
    if shard and size + num_bytes > SHARD_BYTES:
      yield shard
      shard, size = {}, 0
    shard[name] = leaf
    size += num_bytes
  yield shard


def _sync(path: Path) -> None:
  """Returns when the file is on the disk."""
  with path.open("rb+") as file:
    os.fsync(file.fileno())


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
  """A folder beside `target`, removed unless it was renamed."""
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(
      prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
    )
  except OSError as error:
    raise outputs.unwritable(target, error) from error
  with temporary as name:
    Path(name).chmod(0o755)
    yield Path(name)
