"""The real images that generated ones are compared with.

1. They are statistics of a file, where the scores need no more than moments; or
   a folder, an .npz or a data source, whose images the same network sees.
2. Of images as many are taken as are generated, or another number that is asked
   for; and as many other ones, where there are so many, stand for what real
   images score in place of generated ones. Of a data source those are of the
   test split, which no model was trained on; of anything else they are of what
   was not taken before.
3. What was gathered is kept in the folder of the run, so that it goes on
   without looking at them again.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from marjax import outputs, schema
from marjax.evaluate import archives, sets
from marjax.evaluate.begun import Begun
from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.score_set import is_statistics
from marjax.evaluate.scores import kinds, statistics
from marjax.evaluate.scores.gathered import Gathered, Gatherer
from marjax.evaluate.scores.options import Options
from marjax.evaluate.seen import Chosen
from marjax.evaluate.stream import Stream
from marjax.experiment import DataConfig
from marjax.protocols import Codec
from marjax.schema import check

BATCH = 64
"""Real images that the network sees at a time, on each device."""


class Reference(NamedTuple):
  """What generated images are compared with.

  Attributes:
    real: see `kinds.compare`; None where no score needs it.
    unseen: other real images, or None.
    about: both in words and numbers, for a report.
  """

  real: Gathered | None
  unseen: Gathered | None
  about: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
  """What a reference is for.

  Attributes:
    names: of the scores. options: of them.
    network: that sees the images. weights: SHA-256 of its file.
    num_images: generated. num_real: real ones to take.
  """

  names: tuple[str, ...]
  options: Options
  network: Network
  weights: str
  num_images: int
  num_real: int


class Source(NamedTuple):
  """Where the real side comes from, opened but not looked at.

  Attributes:
    statistics: of a file, or None.
    real, unseen: images, or None.
    about: in words and numbers.
  """

  statistics: Gathered | None
  real: Chosen | None
  unseen: Chosen | None
  about: dict[str, Any]


def open_source(
  against: str, data: DataConfig | None, codec: Codec, wanted: Wanted
) -> Source:
  """Opens statistics or images, and refuses what cannot be compared with.

  Args:
    against: a file or folder; "" for the data that the model was trained on.
    data: those, None if unknown. codec: whose images are compared.

  Raises:
    ValueError, OSError: there are none that the scores can be computed with.
  """
  needs = kinds.needs_of_real(wanted.names)
  if not needs:
    return Source(None, None, None, {})
  if against and is_statistics(outputs.local(against)):
    return _of_statistics(against, codec, wanted, needs)
  if against:
    images = _opened(outputs.local(against), codec)
    real = Chosen(images, sets.choose(len(images), _of(images, wanted)))
    unseen, count = None, wanted.num_images
    if len(images) - len(real.indices) >= count:
      left = sets.others(len(images), real.indices, count)
      unseen = Chosen(images, left)
  else:
    check(
      data is not None and not data.is_cached,
      "the checkpoint does not say where real images are, which"
      f" {', '.join(wanted.names)} are computed with; expected --against a"
      " folder of images, an .npz, or statistics.",
    )
    images = sets.open_set(data, split=data.train_split)
    real = Chosen(images, sets.choose(len(images), _of(images, wanted)))
    others = sets.open_set(data, split=data.test_split)
    unseen, count = None, wanted.num_images
    if len(others) >= count:
      unseen = Chosen(others, sets.choose(len(others), count))
  check(
    unseen is not None
    or not any(kinds.SCORES[name].needs_unseen for name in wanted.names),
    f"near copies are told by {wanted.num_images} real images beside those that"
    " are compared with, and there are not so many; expected more, a smaller"
    " --num_images, or other --scores.",
  )
  about = {
    "source": images.description,
    "crop": images.crop,
    "count": len(real.indices),
    "unseen": 0 if unseen is None else len(unseen.indices),
  }
  return Source(None, real, unseen, about)


def _of_statistics(
  against: str, codec: Codec, wanted: Wanted, needs: frozenset[str]
) -> Source:
  """Moments of a file and, of ADM's, its images for all else."""
  path = outputs.local(against)
  read = statistics.read(path)
  known = read.gathered(wanted.network, wanted.weights)
  lacking = [need for need in sorted(needs) if getattr(known, need) is None]
  real = None
  if lacking and set(archives.IMAGES) & archives.members(path):
    images = _opened(path, codec)
    real = Chosen(images, sets.choose(len(images), _of(images, wanted)))
  check(
    not lacking or real is not None,
    f"{outputs.shown(against)} holds no {', '.join(lacking)} of real images,"
    f" which one of {', '.join(wanted.names)} needs; expected the images"
    " themselves, a folder or an .npz, or other scores.",
  )
  size = read.about.image_size
  check(
    size in (0, codec.image_size),
    f"{outputs.shown(against)} has statistics of images of {size} pixels, the"
    f" model's have {codec.image_size}; expected statistics of that size.",
  )
  about = schema.to_dict(read.about)
  about |= {"images": len(real.indices)} if real else {}
  return Source(known, real, None, about)


def look(
  source: Source, wanted: Wanted, stream: Stream, begun: Begun | None, bar
) -> Reference:
  """Shows the images to the network, unless that was done before.

  Args:
    stream: whose network it is. begun: where the sums are kept, if they are.
    bar: makes a bar of progress of (images, what they are).
  """
  if source.real is None:
    return Reference(source.statistics, None, source.about)
  needs = kinds.needs_of_real(wanted.names, has_images=True)
  own = kinds.needs(wanted.names, wanted.options)
  real = _gathered("real", source.real, needs, stream, begun, bar)
  unseen = source.unseen and _gathered(
    "unseen", source.unseen, own, stream, begun, bar
  )
  if known := source.statistics:
    real = real._replace(moments=known.moments, spatial=known.spatial)
  return Reference(real, unseen, source.about)


def _gathered(
  name: str,
  chosen: Chosen,
  needs: frozenset[str],
  stream: Stream,
  begun: Begun | None,
  bar,
) -> Gathered:
  """What the network sees of a set, from the folder of the run if there."""
  count = len(chosen.indices)
  mesh = stream.pipe.mesh
  plan = dataclasses.replace(stream.plan, needs=needs, num_images=count)
  gatherer = Gatherer(plan, stream.params, mesh)
  if begun and (state := begun.restored(name)):
    gatherer.restore(state)
    return gatherer.gathered()
  size = BATCH * mesh.shape["data"] * mesh.shape["fsdp"]
  with bar(count, f"{name} images") as progress:
    for batch in sets.batches(chosen.images, chosen.indices, size):
      gatherer.add(gatherer.sums(*batch))
      progress.update(int(batch.is_real.sum()))
  if begun:
    begun.save(name, gatherer.state())
  return gatherer.gathered()


def _opened(where: Path, codec: Codec) -> sets.ImageSet:
  """Images of the size that the codec gives."""
  is_folder = where.is_dir() and not sets.saved.is_saved(where)
  size = codec.image_size if is_folder else None
  images = sets.open_set(where, size, codec.channels)
  shape = (codec.image_size, codec.image_size, codec.channels)
  check(
    images.shape == shape,
    f"the images of {outputs.shown(where)} are {sets.sides(images.shape)}, the"
    f" model's are {sets.sides(shape)}; expected real images of that size.",
  )
  return images


def _of(images: sets.ImageSet, wanted: Wanted) -> int:
  """How many images to take of a set."""
  check(
    wanted.num_real <= len(images),
    f"{images.description} are fewer than the {wanted.num_real} real images"
    " asked for; expected that many: lower --num_real, or take more images.",
  )
  return wanted.num_real or min(len(images), wanted.num_images)
