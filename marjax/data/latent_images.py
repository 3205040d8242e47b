"""Images for the cache of latents: read and cropped ahead, damage set apart.

1. `read` hands single images to threads, batch after batch, and keeps
   BATCHES_AHEAD batches under way.
2. An image that cannot be read is set apart with its name and the reason.
3. `limited` names those in the log, and stops where there are too many.
"""

import collections
import itertools
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from marjax.data import crops, decoding
from marjax.data.latent_card import CacheSettings, Skipped
from marjax.data.sources import Source
from marjax.schema import check

BATCHES_AHEAD = 2

logger = logging.getLogger("marjax.data")


class Batch(NamedTuple):
  """Images that could be read, and those that could not."""

  images: UInt8[np.ndarray, "N H W C"]
  labels: Int32[np.ndarray, " N"]
  ids: Int64[np.ndarray, " N"]
  names: list[str]
  skipped: list[Skipped]


def read(
  source: Source,
  settings: CacheSettings,
  shards: list[int],
  size: int,
  pool: ThreadPoolExecutor,
) -> Iterator[tuple[int, Batch]]:
  """(shard, batch) of at most `size` images of the shards, prepared ahead.

  Args:
    source: RGB images. settings: their size and the shards' spans.
    shards: to be read, in this order. pool: threads that read.

  Raises:
    ValueError: images that are not RGB, or without labels.
  """
  spans = (
    (shard, settings.span(shard)[start : start + size])
    for shard in shards
    for start in range(0, len(settings.span(shard)), size)
  )
  image_size = settings.codec.image_size
  ahead: collections.deque = collections.deque()

  def submit():
    for shard, span in itertools.islice(spans, 1):
      tasks = [pool.submit(_example, source, i, image_size) for i in span]
      ahead.append((shard, tasks))

  try:
    for _ in range(BATCHES_AHEAD):
      submit()
    while ahead:
      shard, tasks = ahead.popleft()
      submit()
      yield shard, _batch([task.result() for task in tasks], image_size)
  finally:
    for _, tasks in ahead:
      for task in tasks:
        task.cancel()


def _example(source: Source, index: int, size: int) -> tuple | Skipped:
  """(image, label, id, name), or why there is none.

  Raises:
    ValueError: no RGB image, or no label: it is not this image alone.
  """
  name = source.name(index)
  try:
    example = source[index]
    image = crops.centre_crop(example["image"], size)
  except (ValueError, OSError) as error:
    return Skipped(index, name, decoding.reason(error.__cause__ or error))
  if image.shape != (size, size, 3) or image.dtype != np.uint8:
    raise ValueError(
      f"{name} is {image.dtype} of shape {example['image'].shape}; expected"
      " uint8 [height, width, 3], RGB: choose another dataset."
    )
  check(
    example["label"] >= 0,
    f"{name} has label {example['label']}; expected 0 or more: choose a split"
    " with labels.",
  )
  return image, example["label"], example["id"], name


def _batch(results: list, size: int) -> Batch:
  good = [found for found in results if not isinstance(found, Skipped)]
  images, labels, ids, names = zip(*good, strict=True) if good else 4 * ((),)
  return Batch(
    np.array(images, np.uint8).reshape(-1, size, size, 3),
    np.array(labels, np.int32),
    np.array(ids, np.int64),
    list(names),
    [found for found in results if isinstance(found, Skipped)],
  )


def limited(
  batches: Iterable[tuple[int, Batch]], count: int, max_skipped: int
) -> Iterator[tuple[int, Batch]]:
  """The same batches; names what was skipped, and stops at too many.

  Args:
    batches: from `read`. count: images skipped before them.
    max_skipped: that may be skipped in all.

  Raises:
    ValueError: more were skipped.
  """
  for shard, batch in batches:
    for image in batch.skipped:
      logger.warning("skipped %s: %s", image.name, image.reason)
    count += len(batch.skipped)
    check(
      count <= max_skipped,
      f"{count} images could not be read, the last"
      f" {batch.skipped[-1].name if batch.skipped else 'before'}; expected at"
      f" most max_skipped = {max_skipped}: mend or remove them, or"
      " raise --max_skipped.",
    )
    yield shard, batch
