"""The images of one of the settings of a run, from where it stopped on.

1. Sums, and the first images for a picture, are restored if they were saved.
2. Batches whose sums are missing go through; and those of which an image is
   still to be saved, whose sums are not added again.
3. Sums and images are saved now and then, and at Ctrl-C unless that came while
   some were being added: what is saved is always that of whole batches.
"""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from marjax import outputs
from marjax.evaluate.begun import Begun
from marjax.evaluate.saved import Saving
from marjax.evaluate.saving import Writer
from marjax.evaluate.scores.gathered import Gathered, Gatherer
from marjax.evaluate.stream import Seen, Stream
from marjax.generate.settings import Settings
from marjax.parallel import hosts
from marjax.protocols import Codec
from marjax.ticks import repeating

SHOWN = 20
"""Images of each of the settings that are kept for a picture."""


class Clock:
  """Bars of progress, and images per second once programs are compiled."""

  def __init__(self):
    self._images, self._seconds, self._last = 0, 0.0, None

  def bar(self, total: int, what: str, start: int = 0):
    """A bar of images, with rate and time left."""
    from tqdm import tqdm

    return tqdm(
      total=total,
      desc=what,
      unit=" images",
      initial=start,
      disable=jax.process_index() > 0,
    )

  def begin(self) -> None:
    """The next batch may have to be compiled, and counts nothing."""
    self._last = None

  def add(self, count: int) -> None:
    """Notes that a batch is through."""
    now = time.perf_counter()
    if self._last is not None:
      self._images += count
      self._seconds += now - self._last
    self._last = now

  def speed(self) -> dict[str, int | float]:
    """Images, seconds, images per second: of all batches but first ones."""
    rate = self._images / self._seconds if self._seconds else 0.0
    return {
      "images": self._images,
      "seconds": self._seconds,
      "images_per_second": rate,
    }


class Part:
  """What one of the settings has come to.

  Args:
    stream: model and network. settings: complete.
    begun: the folder of the run. name: in it. title: for people.
  """

  def __init__(
    self,
    stream: Stream,
    settings: Settings,
    begun: Begun,
    name: str,
    title: str,
  ):
    self._stream, self._settings, self._title = stream, settings, title
    self._begun, self._name = begun, name
    self._gatherer = Gatherer(stream.plan, stream.params, stream.pipe.mesh)
    self._shown = np.zeros((0, *shape_of(stream.pipe.card.codec)), np.uint8)
    if state := begun.restored(name):
      self._shown = state.pop("shown")
      self._gatherer.restore(state)
    self._done = self._saved = self._count()

  def run(
    self, clock: Clock, writer: Writer | None, is_saving: bool
  ) -> tuple[Gathered, UInt8[np.ndarray, "shown rows columns channels"]]:
    """Brings it to its end: what was gathered, and the first images.

    Args:
      writer: of images, of the first process only. is_saving: whether it has
        one.

    Raises:
      KeyboardInterrupt: Ctrl-C, with a sentence on what is kept.
    """
    total, is_whole = self._stream.plan.num_images, True
    save_from = _save_from(writer, total) if is_saving else total
    start = min(self._done, save_from)
    clock.begin()
    with (
      writer or contextlib.nullcontext(),
      clock.bar(total, self._title, start) as bar,
      repeating(bar.refresh),
    ):
      try:
        for seen in self._stream.run(self._settings, start):
          is_whole = False
          self._add(seen, writer, save_from)
          is_whole = True
          clock.add(seen.count)
          bar.update(seen.start + seen.count - bar.n)
          if self._begun.is_due():
            self._save()
      except KeyboardInterrupt:
        if is_whole:
          self._save()
        where = outputs.shown(self._begun.folder)
        raise KeyboardInterrupt(
          f"{self._saved} of {total} images of {self._title} are kept in"
          f" {where}, where the same command goes on"
        ) from None
      if writer:
        writer.finish()
    return self._gatherer.gathered(), self._shown

  def _add(self, seen: Seen, writer: Writer | None, save_from: int) -> None:
    """Adds what was not added, and saves the images that are to be saved."""
    end = seen.start + seen.count
    is_new = seen.start >= self._done
    images = None
    if end > save_from or (is_new and len(self._shown) < SHOWN):
      images = hosts.fetch(seen.images)[: seen.count]
    if writer and end > save_from:
      index = np.arange(seen.start, end)
      writer.add(index, images, self._stream.labels(index))
    if is_new:
      self._gatherer.add(seen.sums)
      if len(self._shown) < SHOWN:
        self._shown = np.concatenate([self._shown, images])[:SHOWN]

  def _save(self) -> None:
    state = self._gatherer.state() | {"shown": self._shown}
    self._begun.save(self._name, state)
    self._saved = self._count()

  def _count(self) -> int:
    """Images whose sums were added."""
    missing = self._gatherer.missing()
    return int(missing[0]) if len(missing) else self._stream.plan.num_images


def open_writer(
  stream: Stream, kind: str, where: Path, made_from: Mapping[str, str]
) -> Writer:
  """Saves the images of a run; of several processes the first opens it.

  Args:
    kind: png, array_record or npz. where: without a suffix.
    made_from: see `Saving`.
  """
  height, width, channels = shape_of(stream.pipe.card.codec)
  saving = Saving(
    kind=kind,
    num_images=stream.plan.num_images,
    height=height,
    width=width,
    channels=channels,
    made_from=dict(made_from),
  )
  return Writer(where.with_suffix(".npz") if kind == "npz" else where, saving)


def shape_of(codec: Codec) -> tuple[int, int, int]:
  """Rows, columns and channels of its images."""
  return codec.image_size, codec.image_size, codec.channels


def _save_from(writer: Writer | None, total: int) -> int:
  """The first image that is to be saved, as the first process knows it."""
  first = total
  if writer and writer.pending:
    first = writer.saving.span(min(writer.pending)).start
  return int(hosts.gathered(np.int32(first))[0])
