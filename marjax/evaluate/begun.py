"""The folder of a run: what it has done, so that it goes on where it stopped.

    OUT/begun/run.json          what decides the run's numbers
    OUT/begun/real.npz          sums of the real images
    OUT/begun/0.npz             sums so far, of the first settings
    OUT/begun/0.json            their scores, once they are through
    OUT/report.json             and pictures: the end; then OUT/begun goes

1. A run that is started again with what OUT/begun/run.json says goes on there;
   with anything else it is refused, so that no report mixes two runs.
2. Sums are saved now and then, under a temporary name that then becomes the
   real one. They are added in the order of the images, so a run that was killed
   ends with the same bits.
3. One process holds the folder, by a lock. Of several processes the first
   reads and writes; the others are told what they have to do.
"""

import contextlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from marjax import outputs
from marjax.parallel import hosts
from marjax.release.json_files import read_json, write_json
from marjax.schema import check

FOLDER, RUN, LOCK = "begun", "run.json", ".lock"

SAVE_SECONDS = 30.0
"""Between two saves, at least."""

SAVE_SHARE = 0.05
"""Of its time that a run may spend on saving."""


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
  """Keeps other processes out of a folder, which is made when missing.

  Raises:
    BlockingIOError: another process evaluates there.
    OSError: it cannot be written.
  """
  if jax.process_index() > 0:
    yield
    return
  try:
    out.mkdir(parents=True, exist_ok=True)
    lock = open(out / LOCK, "w")
  except OSError as error:
    raise outputs.unwritable(out, error) from None
  with lock:
    if not outputs.lock(lock, out):
      raise BlockingIOError(
        f"another process evaluates in {out}; wait for it, or choose another"
        " --out."
      )
    yield
    (out / LOCK).unlink(missing_ok=True)


@dataclass
class Begun:
  """What a run in a folder has done.

  Attributes:
    folder: OUT/begun. saved_at: when sums were last saved, and how long it
      took.
  """

  folder: Path
  saved_at: float = field(default_factory=time.monotonic)
  saving_seconds: float = 0.0

  @classmethod
  def claim(
    cls, out: Path, run: Mapping[str, Any], overwrite: bool = False
  ) -> "Begun":
    """The folder of a run that begins or goes on.

    Args:
      run: flat; what decides the run's numbers.
      overwrite: start again where another run was begun.

    Raises:
      ValueError: a run with other settings was begun there.
      OSError: the folder cannot be written.
    """
    folder = out / FOLDER
    if jax.process_index() > 0:
      return cls(folder)
    path = folder / RUN
    wanted = json.loads(json.dumps(run))
    if path.exists():
      there = read_json(path.read_bytes(), outputs.shown(path))
      differ = [
        f"{key} was {there.get(key)!r} there and is {wanted.get(key)!r} here"
        for key in sorted(there.keys() | wanted.keys())
        if there.get(key) != wanted.get(key)
      ]
      check(
        not differ or overwrite,
        f"a run with other settings was begun in {outputs.shown(out)}:"
        f" {', '.join(differ[:3])}; expected the same: give its own command"
        " again to go on, --overwrite to start anew, or choose another --out.",
      )
      if differ:
        shutil.rmtree(folder)
    if not path.exists():
      outputs.write(path, write_json(wanted))
    return cls(folder)

  def restored(self, name: str) -> dict[str, np.ndarray] | None:
    """The arrays that were saved under a name, None if none were.

    Raises:
      ValueError: they are damaged.
    """
    content = self._told(f"{name}.npz")
    if not content:
      return None
    try:
      with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
      path = self.folder / f"{name}.npz"
      raise ValueError(
        f"{path} is damaged ({outputs.reason(error)}); expected the sums that"
        " the run saved: delete it, and give the same command again."
      ) from error

  def is_due(self) -> bool:
    """Whether sums should be saved now."""
    wait = max(SAVE_SECONDS, self.saving_seconds / SAVE_SHARE)
    return time.monotonic() - self.saved_at >= wait

  def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves arrays under a name, in place of those before."""
    if jax.process_index() > 0:
      return
    start = time.monotonic()
    path = self.folder / f"{name}.npz"
    with (
      outputs.replacing(path, overwrite=True) as temporary,
      temporary.open("wb") as file,
    ):
      np.savez(file, **arrays)
    self.saved_at = time.monotonic()
    self.saving_seconds = self.saved_at - start

  def result(self, name: str) -> dict[str, Any] | None:
    """What `finish` wrote under a name, None if that is not through."""
    content = self._told(f"{name}.json")
    path = self.folder / f"{name}.json"
    return read_json(content, outputs.shown(path)) if content else None

  def finish(self, name: str, result: Mapping[str, Any]) -> None:
    """Writes what came of something; its sums are done with."""
    if jax.process_index() == 0:
      path = self.folder / f"{name}.json"
      outputs.write(path, write_json(result), overwrite=True)

  def end(self) -> None:
    """Removes the folder, once the report is written."""
    if jax.process_index() == 0:
      shutil.rmtree(self.folder, ignore_errors=True)

  def _told(self, name: str) -> bytes:
    """The content of a file that the first process sees; b"" of none."""
    path, content = self.folder / name, b""
    if jax.process_index() == 0 and path.exists():
      content = path.read_bytes()
    return hosts.told(content)
