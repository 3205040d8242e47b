"""Shows sets of images to a network, each image once.

1. An `Eye` is a network with its weights; `Taken` says which images of a set it
   is shown, and how they are cropped.
2. `look` reads them batch by batch, while the devices work on the batch before;
   `look_together` shows each batch to several eyes. Only sums are kept, and
   features where a score asks for them, so memory is that of a few batches.
3. A hash of the pixels goes along: it tells whether two reports are of the same
   images, wherever those lay.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree
from tqdm import tqdm

from marjax import outputs, schema
from marjax.evaluate import sets
from marjax.evaluate.begun import Begun
from marjax.evaluate.networks import kinds as networks
from marjax.evaluate.networks.protocol import Network
from marjax.evaluate.scores.gathered import Gathered, Gatherer, Plan
from marjax.evaluate.scores.options import DEFAULTS, Options
from marjax.evaluate.set_kinds import sides
from marjax.evaluate.sets import ImageSet
from marjax.experiment import DataConfig
from marjax.parallel.mesh import make_mesh
from marjax.requests import batching
from marjax.requests.kept_programs import keep_programs
from marjax.schema import Positive, Range, Seed, Size
from marjax.ticks import repeating

LARGEST_BATCH, LARGEST_ON_CPU = 256, 64
"""Images that the network sees at a time, on each device."""

Place = Path | DataConfig


@schema.config
class Taken:
  """Which images are taken of the sets; each is a flag.

  Attributes:
    num_images: of the images to be looked at, and of the control (default:
      all).
    num_real: of the real images (default: as many as of the others, or all
      there are if those are fewer).
    image_size: cut the middle square out of each file of a folder, shrunk to
      that many pixels as for training (default: all must have one size).
    channels: 1 or 3, grey or RGB, to which files of a folder are converted.
    split: of a data source (default: its data.train_split).
    batch_size: images that the network sees at a time (default: up to 64 on a
      CPU, 256 on each other device).
    draw: seed by which images are drawn from sets with more than are taken.
  """

  num_images: Positive | None = None
  num_real: Positive | None = None
  image_size: Annotated[int, Range(1, 2**14)] | None = None
  channels: Literal[1, 3] = 3
  split: str = ""
  batch_size: Size | None = None
  draw: Seed = 0

  def open(self, place: Place) -> ImageSet:
    """The images of a place; errors as of `sets.open_set`."""
    return sets.open_set(place, self.image_size, self.channels, self.split)

  def choose(self, images: ImageSet, count: int | None) -> "Chosen":
    """`count` images of a set; None for all."""
    if count is not None and count > len(images):
      raise ValueError(
        f"{count} images are asked for of {images.description}; expected at"
        f" most {len(images)}: lower --num_images or --num_real, or add images."
      )
    count = len(images) if count is None else count
    return Chosen(images, sets.choose(len(images), count, self.draw))


class Chosen(NamedTuple):
  """Some images of a set, by ascending indices."""

  images: ImageSet
  indices: Int[np.ndarray, " N"]


class Eye(NamedTuple):
  """A network that is ready to look.

  Attributes:
    network: with its parameters. digest: SHA-256 of the file of its weights.
    options: of scores. mesh: whose devices share a batch.
  """

  network: Network
  params: PyTree
  digest: str
  options: Options
  mesh: jax.sharding.Mesh


class Seen(NamedTuple):
  """What an eye saw of some images; `about` them, for a report."""

  gathered: Gathered
  about: dict[str, Any]


def load_eye(name: str, file: str, options: Options = DEFAULTS) -> Eye:
  """A network by its name, with the weights of a file; see `networks.load`.

  Its programs are kept for the next process, as `kept_programs` says.

  Raises:
    ValueError: no such network, or other weights. FileNotFoundError: there is
      no such file; says how it is made.
  """
  keep_programs()
  network, params, digest = networks.load(name, file)
  return Eye(network, params, digest, options, make_mesh())


def look(
  chosen: Chosen,
  eye: Eye,
  needs: frozenset[str],
  taken: Taken,
  title: str = "images",
  progress: bool = False,
  begun: Begun | None = None,
) -> Seen:
  """Shows images to the network, each once.

  Args:
    needs: see `Plan`. title: of the bar of progress.
    begun: folder of a run, in which what was gathered is kept by its title; it
      is then not looked at again, and its pixels have no hash.

  Raises:
    ValueError: an image cannot be read, or has another size; it is named. What
      the network sees of one is not finite.
  """
  images, indices = chosen
  gatherer = _gatherer(chosen, eye, needs)
  about = {
    "source": images.description,
    "count": len(indices),
    "of": len(images),
    "size": list(images.shape),
    "crop": images.crop,
  }
  if begun and (state := begun.restored(title)):
    gatherer.restore(state)
    return Seen(gatherer.gathered(), about)
  digest = _show(chosen, [gatherer], eye.mesh, taken, title, progress)
  if begun:
    begun.save(title, gatherer.state())
  about["pixels_sha256"] = digest
  return Seen(gatherer.gathered(), about)


def look_together(
  chosen: Chosen,
  asked: Sequence[tuple[Eye, frozenset[str]]],
  taken: Taken,
  title: str = "images",
  progress: bool = False,
  begun: Begun | None = None,
) -> list[Gathered]:
  """What each eye gathers of images that are read once for all of them.

  Args:
    asked: eyes of one mesh, and what each needs. Others, and errors: see
      `look`.
  """
  gatherers = [_gatherer(chosen, *each) for each in asked]
  names = [f"{title}_{eye.network.name}" for eye, _ in asked]
  kept = [begun.restored(name) if begun else None for name in names]
  if all(kept):
    for gatherer, state in zip(gatherers, kept, strict=True):
      gatherer.restore(state)
  else:
    _show(chosen, gatherers, asked[0][0].mesh, taken, title, progress)
    for name, gatherer in zip(names, gatherers, strict=True):
      if begun:
        begun.save(name, gatherer.state())
  return [gatherer.gathered() for gatherer in gatherers]


def _gatherer(chosen: Chosen, eye: Eye, needs: frozenset[str]) -> Gatherer:
  plan = Plan(eye.network, needs, len(chosen.indices), eye.options)
  return Gatherer(plan, eye.params, eye.mesh)


def _show(
  chosen: Chosen,
  gatherers: list[Gatherer],
  mesh: jax.sharding.Mesh,
  taken: Taken,
  title: str,
  progress: bool,
) -> str:
  """Has all images gathered; the hash of their pixels."""
  images, indices = chosen
  is_cpu = mesh.devices.flat[0].platform == "cpu"
  largest = LARGEST_ON_CPU if is_cpu else LARGEST_BATCH
  size = batching.batch_size(mesh, len(indices), taken.batch_size, largest)
  pixels, waiting = hashlib.sha256(), deque()
  with (
    tqdm(
      total=len(indices), unit="image", desc=title, disable=not progress
    ) as bar,
    repeating(bar.refresh),
  ):
    for batch in sets.batches(images, indices, size):
      count = int(batch.is_real.sum())
      placed = [*map(gatherers[0].placed, batch)]
      waiting.append(([each.sums(*placed) for each in gatherers], count))
      pixels.update(batch.images[:count].data)
      # The device works on a batch while the next one is read.
      if len(waiting) > 1:
        _add(gatherers, waiting, bar)
    _add(gatherers, waiting, bar)
  return pixels.hexdigest()


def check_shape(shape: tuple[int, int, int], whose: str, eye: Eye) -> None:
  """Refuses images (H, W, C) that the network cannot take."""
  row = jax.ShapeDtypeStruct((1, *shape), np.uint8)
  try:
    jax.eval_shape(eye.network, eye.params, row)
  except Exception as error:
    raise ValueError(
      f"the network {eye.network.name} cannot take images of {sides(shape)}, as"
      f" {whose} has them"
      f" ({outputs.reason(error)}); expected those that its weights are for:"
      " pass --image_size or --channels, or another network."
    ) from error


def _add(gatherers: list[Gatherer], waiting: deque, bar: tqdm) -> None:
  """Adds the sums that have waited longest."""
  every, count = waiting.popleft()
  for gatherer, sums in zip(gatherers, every, strict=True):
    gatherer.add(sums)
  bar.update(count)
