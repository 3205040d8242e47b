"""Batches in an order that one integer, the step, determines.

    epoch 0 shuffled   epoch 1 shuffled   ...     an endless line of examples
    [c a e b d]        [d b a e c]
     └─┬─┘ └───┬────────┘ └─┬─┘
    step 0   step 1       step 2                  batch_size at a time

1. `plan`: each epoch is a new permutation of all examples, and a coin per
   example for the mirror image; a pure function of (seed, epoch).
2. Step t takes examples t·B .. t·B + B - 1 of the line, across the ends of
   epochs, so none is ever dropped. A process takes the rows of that batch which
   its devices hold: together they are the one batch, however many there are.
3. Images are gathered, cropped, mirrored and scaled to [-1, 1]; of cached
   latents, the moments of the image or of its mirror image are read.

grain's MapDataset carries this: a range of steps, mapped, and prefetched by
threads. So batches[t] is a pure function, the state to save is t, and the
number of threads and processes changes nothing. Whole batches are mapped, and
the shuffle sorts random bits, because grain's own shuffle and its work per
example take 2 ms for 64 images that are in memory; this takes 0.04 ms.
"""

import functools
import sys

import grain
import numpy as np
from jaxtyping import Bool, Int, Int64

from marjax.data import examples, latent_cache
from marjax.experiment import DataConfig
from marjax.latents.images import to_float

Batch = dict[str, np.ndarray]
"""image: float32 [B, H, W, C] in [-1, 1], or moments: float16 or float32
[B, rows, columns, 2C], mean before log-variance; label, id: int32 [B]."""


class Batches:
  """The batches of one split, without end; batches[t] is that of step t.

  Args:
    config: a DataConfig; its seed, flip and num_threads are used here.
    split: a name the source knows, e.g. config.train_split.
    batch_size: examples of a step over all processes.
    shuffle: False takes the examples in the source's order, never mirrored.
    rows: those of each batch that are wanted, 0 .. batch_size - 1; None for
      all of them.
    names: of a folder's images, those to read; None for all.

  Attributes:
    num_examples: of the split: one epoch.
    source: where images are read; None for cached latents.
    cache: the cached latents; None where images are read.

  Raises:
    ValueError: fewer examples than one batch, or rows outside of it; and
      whatever `sources.open_source` raises.
  """

  def __init__(
    self,
    config: DataConfig,
    split: str,
    batch_size: int,
    shuffle: bool = True,
    rows: Int[np.ndarray, " N"] | None = None,
    names: frozenset[str] | None = None,
  ):
    rows = np.arange(batch_size) if rows is None else rows
    if not rows.size or rows.min() < 0 or rows.max() >= batch_size:
      raise ValueError(
        f"batch_size is {batch_size} and the rows are {rows.tolist()}; expected"
        " at least one example, and rows in 0 .. batch_size - 1."
      )
    self.cache, self.source = None, None
    if config.is_cached:
      self._examples = self.cache = latent_cache.CachedLatents(config)
    else:
      self._examples = examples.Examples(config, split, names)
      self.source = self._examples.source
    self.num_examples = len(self._examples)
    if self.num_examples < batch_size:
      raise ValueError(
        f"split {split!r} of {config.source} has {self.num_examples} images;"
        f" expected at least one batch of {batch_size}: lower"
        f" training.batch_size to {self.num_examples} or less, or add images."
      )
    self._config, self._shuffle = config, shuffle
    self._batch_size, self._rows = batch_size, rows
    steps = grain.MapDataset.range(sys.maxsize // batch_size)
    self._dataset = steps.map(self._make)

  def __getitem__(self, step: int) -> Batch:
    return self._dataset[step]

  def iterate(self, from_step: int = 0) -> grain.DatasetIterator[Batch]:
    """The batches from that step on, prepared ahead by config.num_threads.

    Call close() on the iterator when done; it ends its threads. With
    num_threads = 0 each batch is made when asked for.
    """
    threads = self._config.num_threads
    options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=threads and threads + 1
    )
    return iter(self._dataset[from_step:].to_iter_dataset(options))

  def _make(self, step: int) -> Batch:
    """The wanted rows of one step's batch."""
    order, is_mirrored = self._places(step * self._batch_size + self._rows)
    if self.cache is not None:
      record, labels, ids = self._examples.gather(order, is_mirrored)
      return {**record, "label": labels, "id": ids.astype(np.int32)}
    columns = self._examples.gather(order)
    images = to_float(columns.images)
    if is_mirrored.any():
      images[is_mirrored] = images[is_mirrored, :, ::-1]
    ids = columns.ids.astype(np.int32)
    return {"image": images, "label": columns.labels, "id": ids}

  def _places(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which examples stand at these places of the line; which are mirrored."""
    epochs, places = np.divmod(places, self.num_examples)
    if not self._shuffle:
      return places, np.zeros(places.shape, bool)
    order, coins = np.empty_like(places), np.empty(places.shape, bool)
    for epoch in np.unique(epochs).tolist():
      here = epochs == epoch
      planned, tossed = plan(self.num_examples, self._config.seed, epoch)
      order[here], coins[here] = planned[places[here]], tossed[places[here]]
    return order, coins & self._config.flip


@functools.lru_cache(maxsize=4)
def plan(
  num_examples: int, seed: int, epoch: int
) -> tuple[Int64[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
  """An epoch's order of examples, and a fair coin for each place in it.

  Built on raw bits, which numpy keeps the same from version to version.
  """
  bits = np.random.PCG64((seed, epoch)).random_raw(2 * num_examples)
  order = np.argsort(bits[:num_examples], kind="stable")
  return order, (bits[num_examples:] >> 63).astype(bool)


def load_all(config: DataConfig, split: str) -> examples.Columns:
  """All examples of a small split, in the source's order.

  Returns:
    images uint8 [N, size, size, C], labels int32 [N], ids int64 [N].
  """
  found = examples.Examples(config, split)
  return found.gather(np.arange(len(found)))
