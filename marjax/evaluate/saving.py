"""Saves images while they are made: PNG files, array_record, or ADM's .npz.

1. `add` takes rows of a batch, of any shards as long as the rows of each come
   in order; they go to the disk at once, under a name that does not count yet.
   Rows of shards that are whole are passed over.
2. So a run that was killed writes only the shards that were not whole, and
   several hosts can write shards of one folder. `marjax.evaluate.saved` tells
   what lies there.
3. For .npz that folder is OUT.npz.shards; `finish` streams its shards into the
   member of the archive, whose final shape is known, and removes them. The
   archive's comment holds the settings, so that it is known again.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from marjax import outputs, schema
from marjax.evaluate import archives, saved
from marjax.evaluate.saved import SETTINGS, SUFFIXES, Saving
from marjax.evaluate.shards import SHARDS, Shard
from marjax.release.json_files import write_json
from marjax.schema import check


class Writer:
  """Saves the images of a run.

  Args:
    out: a folder, new or of the same run before; of "npz" the file to make.
    saving: what is saved.

  Attributes:
    pending: shards that are not whole.

  Raises:
    FileExistsError: something else is there.
    ValueError: it was begun with other settings; or `out` is in a bucket.
    OSError: it cannot be written.
  """

  def __init__(self, out: str | os.PathLike, saving: Saving):
    self.out, self.saving = outputs.local(out), saving
    self._open: dict[int, tuple[Shard, list[int]]] = {}
    self.folder = begin(self.out, saving)
    shards = range(saving.num_shards)
    is_whole = self.folder is None
    self.pending = {
      k for k in shards if not is_whole and not self._labels_path(k).exists()
    }

  def needs(self, index: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Which of these images are in shards that are not whole."""
    shards = np.asarray(index) // self.saving.shard_size
    return np.isin(shards, list(self.pending))

  def add(
    self,
    index: Int[np.ndarray, " N"],
    images: UInt8[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, " N"],
  ) -> None:
    """Writes the images that `needs` asks for.

    Args:
      index: of each image in the set; those of a shard must come in order.
      images: of the shape that was settled. labels: their classes, -1 where
        there are none.

    Raises:
      ValueError: other shapes, or a shard's images out of order.
      OSError: they cannot be written; the shards before are whole.
    """
    expected = len(index), *self.saving.shape
    check(
      images.shape == expected and len(labels) == len(index),
      f"images {list(images.shape)} with {len(labels)} labels are to be saved;"
      f" expected {list(expected)} and a label for each.",
    )
    shards = index // self.saving.shard_size
    for shard in np.unique(shards).tolist():
      if shard in self.pending:
        rows = shards == shard
        with self._telling(shard):
          self._add(shard, index[rows], images[rows], labels[rows])

  def finish(self) -> Path:
    """What was saved, whole: the folder, or the .npz file.

    Of several hosts one calls it, when all have added their images.

    Raises:
      ValueError: images are missing. OSError: it cannot be written.
    """
    if self.folder is None:
      return self.out
    missing = [
      k
      for k in range(self.saving.num_shards)
      if not self._labels_path(k).exists()
    ]
    check(
      not missing,
      f"{self.folder} lacks {len(missing)} of {self.saving.num_shards} shards,"
      f" the first {self.saving.shard_name((missing or [0])[0])}; expected all:"
      " add their images.",
    )
    if self.saving.kind == "npz":
      self._join()
      shutil.rmtree(self.folder)
      self.folder = None
    return self.out

  def close(self) -> None:
    """Leaves what is not whole to be done again."""
    while self._open:
      _, (shard, _) = self._open.popitem()
      with contextlib.suppress(OSError, RuntimeError):
        shard.close()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def _add(self, shard: int, index, images, labels) -> None:
    name, span = self.saving.shard_name(shard), self.saving.span(shard)
    place = f"{name}{SUFFIXES[self.saving.kind]}"
    partial = self.folder / f".{place}"
    if shard not in self._open:
      opened = SHARDS[self.saving.kind](partial, self.saving)
      self._open[shard] = opened, []
    opened, written = self._open[shard]
    start = span.start + len(written)
    check(
      np.array_equal(index, np.arange(start, start + len(index))),
      f"images {index[0]} to {index[-1]} of {name} are to be saved; expected"
      f" those from {start} on: a shard's images must come in order, from its"
      " first.",
    )
    opened.add(images, start, labels)
    written += labels.tolist()
    if len(written) < len(span):
      return
    opened.close()
    del self._open[shard]
    target = self.folder / place
    if target.is_dir():
      shutil.rmtree(target)
    partial.replace(target)
    record = write_json({"labels": written}, None)
    outputs.write(self._labels_path(shard), record, overwrite=True)
    self.pending.discard(shard)

  def _join(self) -> None:
    """The .npz file of all shards."""
    saving = self.saving
    labels = [
      saved.read_labels(self._labels_path(k), len(saving.span(k)))
      for k in range(saving.num_shards)
    ]
    labels = np.concatenate(labels)
    archives.write(
      self.out,
      (saving.num_images, *saving.shape),
      self._blocks(),
      labels if labels.min() >= 0 else None,
      write_json(schema.to_dict(saving)),
    )

  def _blocks(self) -> Iterator[np.ndarray]:
    for shard in range(self.saving.num_shards):
      path = self.folder / f"{self.saving.shard_name(shard)}{SUFFIXES['npz']}"
      with open(path, "rb") as file:
        while block := file.read(archives.PIECE):
          yield np.frombuffer(block, np.uint8)

  def _labels_path(self, shard: int) -> Path:
    return self.folder / f"{self.saving.shard_name(shard)}.json"

  @contextlib.contextmanager
  def _telling(self, shard: int) -> Iterator[None]:
    """A full disk and the like as one sentence."""
    try:
      yield
    except (OSError, RuntimeError) as error:
      name = self.folder / self.saving.shard_name(shard)
      raise OSError(
        f"{name} cannot be written ({outputs.reason(error)}); all whole shards"
        " stay: make room there, or mend the folder, and run the same command"
        " again."
      ) from error


def begin(out: Path, saving: Saving) -> Path | None:
  """The folder of the shards, with its settings; None if a .npz is whole.

  Errors as of `Writer`.
  """
  folder = out
  if saving.kind == "npz":
    check(
      out.suffix == ".npz",
      f"{outputs.shown(out)} is the file to save images in; expected a name"
      " that ends in .npz.",
    )
    if os.path.lexists(out):
      _check_same_archive(out, saving)
      return None
    folder = out.with_name(f"{out.name}.shards")
  path = folder / SETTINGS
  if path.exists():
    _check_same(saved.read_settings(folder), saving, folder)
    return folder
  if folder.is_dir():
    names = [x.name for x in folder.iterdir() if not x.name.startswith(".")]
    if names:
      raise FileExistsError(
        f"{outputs.shown(folder)} already exists and holds other things, such"
        f" as {outputs.shown(min(names))}; expected a new folder for the"
        " images: choose another."
      )
  outputs.write(path, write_json(schema.to_dict(saving)), overwrite=True)
  return folder


def _check_same(before: Saving, now: Saving, where: Path) -> None:
  old, new = schema.to_dict(before), schema.to_dict(now)
  old |= old.pop("made_from")
  new |= new.pop("made_from")
  differ = [
    f"{key} was {old.get(key)} and is {new.get(key)}"
    for key in sorted(old | new)
    if old.get(key) != new.get(key)
  ]
  check(
    not differ,
    f"{outputs.shown(where)} was begun with other settings:"
    f" {'; '.join(differ)}; expected the same to go on: give those, or choose"
    " another folder.",
  )


def _check_same_archive(out: Path, saving: Saving) -> None:
  try:
    is_same = archives.comment(out) == write_json(schema.to_dict(saving))
  except (ValueError, OSError):
    is_same = False
  if not is_same:
    raise FileExistsError(
      f"{outputs.shown(out)} already exists, of other images; expected a new"
      " path: choose another."
    )
