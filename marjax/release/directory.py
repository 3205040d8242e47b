"""A released checkpoint as a directory: written whole, read where it will live.

1. `save` writes under a temporary name beside the target: the weights, the
   autoencoder if it comes along, hashes of all files, release.json last. Then
   it renames. A kill leaves no half-written release under the final name.
2. `read_weights` compares the shapes with the configuration in the card, and
   refuses NaN and infinity; before, `verify` has compared every file's size and
   hash with the manifest.
3. Weights are read in groups of at most 256 MB, each array's shards straight to
   their devices, so the host never holds much more than its own shards.

Each parameter is a folder of uncompressed zarr chunks of at most 64 MB: random
bits do not compress, and a damaged file has its parameter's name.
"""

import contextlib
import hashlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from jaxtyping import PyTree

from marjax.arrays import check_finite
from marjax.release import card as cards
from marjax.release import files, kinds
from marjax.release.card import MANIFEST, Card, Manifest

WEIGHTS = "weights"
AUTOENCODER = "autoencoder"
CHUNK_BYTES = 2**26
GROUP_BYTES = 2**28


def save(
  folder: str | os.PathLike,
  card: Card,
  weights: PyTree,
  autoencoder: str | os.PathLike | None = None,
) -> Manifest:
  """Writes a release; there is a whole one under that name or none.

  Args:
    folder: must not exist.
    card: `card.autoencoder` is set to the copy if one is given.
    weights: nested dicts of arrays: the model's, or an autoencoder's.
    autoencoder: a released autoencoder, to be copied inside.

  Raises:
    FileExistsError: the folder exists. OSError: it cannot be written.
    ValueError: an array has NaN or infinity; the autoencoder is damaged, or has
      links.
  """
  folder = Path(folder).absolute()
  check_free(folder)
  check_finite(weights, f"what is to be written to {folder}")
  with _temporary(folder) as made:
    _write_weights(made / WEIGHTS, weights)
    if autoencoder is not None:
      copy(autoencoder, made / AUTOENCODER)
    hashes = _hashes(made, [p for p in made.rglob("*") if p.is_file()])
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    manifest = cards.with_files(card, count, hashes)
    (made / MANIFEST).write_bytes(manifest.to_json())
    made.rename(folder)
  return manifest


def copy(source: str | os.PathLike, target: Path) -> None:
  """Copies a release to a new folder: what its manifest lists, and that.

  Raises:
    ValueError: something in it is damaged, or a link; see `files.copy`.
    OSError: it cannot be read or written.
  """
  source = Path(source)
  manifest = read_manifest(source)
  verify(source, manifest)
  files.copy(source, target, [*manifest.files, MANIFEST])


def check_free(folder: Path) -> None:
  """Refuses a folder that exists or cannot be made, before anything long."""
  if os.path.lexists(folder):
    raise FileExistsError(
      f"{folder} already exists; expected a new folder: choose another, or move"
      " it away."
    )
  with _temporary(folder):
    pass


def read_manifest(folder: str | os.PathLike) -> Manifest:
  """The manifest of a release.

  Raises:
    FileNotFoundError: the folder is no release, or a half-written one.
    ValueError: see `marjax.release.card.read_manifest`.
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
  folder = Path(folder)
  for name, record in manifest.files.items():
    path = folder / name
    size = path.stat().st_size if path.is_file() else None
    if size != record.num_bytes:
      found = "missing" if size is None else f"{size} bytes long"
      raise ValueError(
        f"{path} is {found}; {MANIFEST} says {record.num_bytes} bytes: copy the"
        " release again, whole, or convert again."
      )
  if not with_hashes:
    return
  found = _hashes(folder, [folder / name for name in manifest.files])
  for name, record in manifest.files.items():
    if found[name][1] != record.sha256:
      raise ValueError(
        f"{folder / name} has another content than {MANIFEST} says (sha256"
        f" {found[name][1][:12]}..., expected {record.sha256[:12]}...): copy"
        " the release again, or convert again."
      )


def read_weights(folder: str | os.PathLike, abstract: PyTree) -> PyTree:
  """The weights of a release.

  Args:
    folder: of the release.
    abstract: nested dicts of ShapeDtypeStructs with shardings.

  Raises:
    ValueError: names or shapes are not those of `abstract`; or an array has
      NaN or infinity.
  """
  import orbax.checkpoint as ocp

  folder = Path(folder).absolute() / WEIGHTS
  leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
  with _only_errors(), ocp.Checkpointer(_handler()) as reader:
    _check_shapes(folder, _metadata(reader, folder), leaves)
    read: list = []
    for group in _groups(leaves):
      part = _nested(group)
      args = ocp.args.PyTreeRestore(
        item=part,
        restore_args=ocp.checkpoint_utils.construct_restore_args(part),
        partial_restore=True,
      )
      try:
        restored = reader.restore(folder, args=args)
      except Exception as error:
        raise ValueError(
          f"{folder} cannot be read ({_cause(error)}); copy the release again,"
          " whole, or convert again."
        ) from None
      read += jax.block_until_ready(jax.tree.leaves(restored))
  weights = jax.tree.unflatten(structure, read)
  check_finite(weights, str(folder))
  return weights


def _metadata(reader, folder: Path) -> PyTree:
  """Names and shapes of the arrays in a folder of weights."""
  try:
    return reader.metadata(folder).item_metadata.tree
  except Exception as error:
    raise ValueError(
      f"{folder} cannot be read ({_cause(error)}); copy the release again,"
      " whole, or convert again."
    ) from None


def _write_weights(folder: Path, weights: PyTree) -> None:
  import orbax.checkpoint as ocp

  chunked = ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
  args = ocp.args.PyTreeSave(
    weights, save_args=jax.tree.map(lambda _: chunked, weights)
  )
  try:
    with _only_errors(), ocp.Checkpointer(_handler()) as writer:
      writer.save(folder, args=args)
  except Exception as error:
    raise OSError(
      f"the weights could not be written to {folder.parent.parent}"
      f" ({_cause(error)}); nothing is left of them: make room, or choose"
      " another folder."
    ) from None


def _cause(error: Exception) -> str:
  """Both ends of a first line: TensorStore puts the cause last."""
  line = (str(error).splitlines() or [type(error).__name__])[0]
  return line if len(line) <= 200 else f"{line[:60]} ... {line[-140:]}"


def _handler():
  import orbax.checkpoint as ocp

  return ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
  """Orbax warns that there is nothing to merge, which is meant."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _check_shapes(folder: Path, found: PyTree, wanted: list) -> None:
  found = {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found)
  }
  wanted = {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in wanted
  }
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise ValueError(
        f"{folder} has {name} of shape {found.get(name, 'absent')}; the"
        f" configuration in {MANIFEST} makes it {wanted.get(name, 'absent')}:"
        " weights and configuration are of two models; convert again."
      )


def _groups(leaves: list) -> Iterator[list]:
  """Consecutive leaves, of at most GROUP_BYTES together or one alone."""
  group, size = [], 0
  for path, leaf in leaves:
    num_bytes = math.prod(leaf.shape) * leaf.dtype.itemsize
    if group and size + num_bytes > GROUP_BYTES:
      yield group
      group, size = [], 0
    group.append((path, leaf))
    size += num_bytes
  if group:
    yield group


def _nested(leaves: list) -> dict:
  tree: dict = {}
  for path, leaf in leaves:
    node = tree
    for entry in path[:-1]:
      node = node.setdefault(entry.key, {})
    node[path[-1].key] = leaf
  return tree


def _hashes(root: Path, paths: list[Path]) -> dict[str, tuple[int, str]]:
  """Path relative to root → (bytes, sha256); files are read side by side."""

  def digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
      return path.stat().st_size, hashlib.file_digest(
        file, "sha256"
      ).hexdigest()

  names = [path.relative_to(root).as_posix() for path in paths]
  with ThreadPoolExecutor() as pool:
    return dict(zip(names, pool.map(digest, paths), strict=True))


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
  """A folder beside `target`, removed unless it was renamed."""
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
  except OSError as error:
    raise type(error)(
      f"{target} cannot be written"
      f" ({(error.strerror or str(error)).lower()}); choose a folder that you"
      " can write to."
    ) from error
  try:
    made.chmod(0o755)
    yield made
  finally:
    shutil.rmtree(made, ignore_errors=True)
