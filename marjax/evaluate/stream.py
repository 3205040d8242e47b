"""Images of a model through a network, batch by batch: only sums come out.

1. Image i of N has class i mod K, and random numbers addressed by (seed, i): it
   is the same image in any batch, on any mesh and with any number of hosts.
2. The programs of a batch follow each other on the devices, and leave there
   what the next one needs:

       index ─▶ labels, draws ─▶ segments of the plan ─▶ end
       end:  tokens ─▶ latents ─▶ pixels ─▶ uint8 ─▶ network ─▶ sums

   An autoencoder works on a few images at a time, so that its memory does not
   grow with the batch. Pixels become uint8 as `marjax.latents.images` has it.
3. Settings that change no shape are arrays: a sweep over them compiles nothing
   new. The last program is the same whether a generation is guided or not.
4. Sums of a batch are added while the next is computed. Images come to the host
   only where somebody asks for them, to be saved or shown.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Int32, PyTree, UInt8

from marjax import keys
from marjax.arrays import NO_LABEL
from marjax.evaluate.scores import gathered
from marjax.evaluate.scores.gathered import BatchSums
from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.generate.settings import Settings
from marjax.parallel.hosts import spread
from marjax.parallel.rules import RULES, batch_sharding, replicated
from marjax.pipeline import Pipeline
from marjax.protocols import Codec
from marjax.requests import batching
from marjax.requests.batching import CODEC_BATCH, LARGEST_BATCH
from marjax.requests.compiled import Program
from marjax.schema import check


def check_count(num_images: int, num_classes: int) -> None:
  """Refuses numbers of images of which classes cannot have equal shares.

  Args:
    num_classes: K, 0 where there are none.

  Raises:
    ValueError: it is no positive multiple of K.
  """
  check(
    num_images > 0 and num_images % max(num_classes, 1) == 0,
    f"num_images is {num_images}; expected"
    + (
      f" a multiple of {num_classes} above 0, the same number of each class."
      if num_classes
      else " 1 or more."
    ),
  )


class Seen(NamedTuple):
  """What a batch gives.

  Attributes:
    start: index of its first image. count: images that are no padding.
    sums: of the network; arrays, perhaps still being computed.
    images: of the batch, on the devices, with padding.
  """

  start: int
  count: int
  sums: BatchSums
  images: UInt8[Array, "batch rows columns channels"]


@dataclass(frozen=True, eq=False)
class Stream:
  """A model, a network, and the batches in which the one feeds the other.

  Attributes:
    pipe: the model, with its compiled programs.
    plan: what is gathered of how many images.
    params: of the network, whole on every device.
    seed: of the images.
    batch_size: images of a batch, a multiple of the devices that share it.
  """

  pipe: Pipeline
  plan: gathered.Plan
  params: PyTree
  seed: int
  batch_size: int

  def labels(self, index: Int[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
    """Classes of images, -1 where the model has none."""
    num_classes = self.pipe.card.num_classes
    if not num_classes:
      return np.full(len(index), NO_LABEL, np.int32)
    return (index % num_classes).astype(np.int32)

  def starts(self, start: int = 0) -> range:
    """First images of the batches from the one that has image `start` on."""
    first = start // self.batch_size * self.batch_size
    return range(first, self.plan.num_images, self.batch_size)

  def run(self, settings: Settings, start: int = 0) -> Iterator[Seen]:
    """What the batches from the one with image `start` on give, in order.

    Each is handed out when the next was sent to the devices.

    Raises:
      ValueError: an image has NaN or infinity.
    """
    before = None
    static = reveal.static_for(self.pipe.card.model, settings)
    for first in self.starts(start):
      now = self._batch(static, settings, first)
      if before:
        yield self._checked(static, settings, *before)
      before = now
    if before:
      yield self._checked(static, settings, *before)

  def _checked(self, static, settings, seen: Seen, is_fine) -> Seen:
    drawn, decoded = (np.asarray(part) for part in is_fine)
    params = self.pipe.params
    batching.check_drawn(drawn, seen.start, params, static, settings)
    check(
      bool(decoded.all()),
      f"the decoded image {seen.start + np.argmin(decoded)} has NaN or"
      " infinity; expected finite pixels: an autoencoder can overflow in"
      ' bfloat16 (codec_dtype="float32" helps), or its weights are damaged.',
    )
    return seen

  def _batch(self, static, settings: Settings, start: int):
    """Sends a batch to the devices."""
    pipe, mesh, of = self.pipe, self.pipe.mesh, self.pipe.programs
    count = min(self.batch_size, self.plan.num_images - start)
    # Padding is the last image again.
    index = start + np.minimum(np.arange(self.batch_size), count - 1)
    index = index.astype(np.int32)
    is_real = np.arange(self.batch_size) < count
    index, is_real, labels = batching.place(
      mesh, (index, is_real, self.labels(index))
    )
    scales, temperature, walks = batching.numbers(mesh, static.plan, settings)
    key = spread(keys.root(self.seed), replicated(mesh))
    with jax.set_mesh(mesh):
      carry, fixed = of.run(
        mesh, _begin, (static,), key, pipe.params, index, labels
      )
      rest = (fixed, scales, temperature)
      segments = [
        batching.segment_program(static, i, pipe.params, carry, *rest, walk)
        for i, walk in enumerate(walks)
      ]
      end = Program(
        _end,
        (pipe.card.codec, self.plan, mesh),
        (
          *(carry.tokens, fixed.order, index, is_real, labels),
          *(pipe.codec_params, self.params),
        ),
      )
      *compiled, last = of.of(mesh, [*segments, end])
      for run, walk in zip(compiled, walks, strict=True):
        carry = run(pipe.params, carry, *rest, walk)
      sums, images, is_fine = last(carry.tokens, *end.args[1:])
    return Seen(start, count, sums, images), is_fine


def batch_size(pipe: Pipeline, num_images: int, asked: int | None) -> int:
  """Images of a batch: of all hosts together.

  Raises:
    ValueError: fewer than one was asked for.
  """
  return batching.batch_size(pipe.mesh, num_images, asked, LARGEST_BATCH)


def _begin(static, key, params, index, labels):
  """Labels and addressed draws to what a generation begins with."""
  draws = draw_batch(key, index, static.config.backbone)
  return batching.begin(static, params, labels, draws, None)


def _end(
  codec: Codec,
  plan: gathered.Plan,
  mesh: Mesh,
  tokens,
  order,
  index,
  is_real,
  labels,
  codec_params,
  params,
):
  """Sums, images uint8, and of which images tokens and pixels are finite."""
  tokens = reveal.to_raster(tokens[:, : order.shape[1]], order)
  latents = codec.to_latents(tokens)
  images, is_decoded = _decoded(codec, codec_params, latents, mesh)
  sums = plan.sums(params, images, index, is_real, labels)
  is_fine = batching.are_fine(tokens), is_decoded
  whole = jax.lax.with_sharding_constraint((sums, is_fine), replicated(mesh))
  by_batch = jax.lax.with_sharding_constraint(images, batch_sharding(mesh))
  return whole[0], by_batch, whole[1]


def _decoded(
  codec: Codec, params: PyTree, latents, mesh: Mesh
) -> tuple[UInt8[Array, "B H W C"], Bool[Array, " B"]]:
  """Images, and which of them are finite, a few at a time on each device."""
  devices = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
  each = len(latents) // devices
  size = each
  if jax.tree.leaves(params):
    size = max(n for n in range(1, CODEC_BATCH + 1) if each % n == 0)
  if size == each:
    return _pixels(codec, params, latents)
  spec = PartitionSpec(None, dict(RULES)["batch"])
  split = functools.partial(
    jax.lax.with_sharding_constraint, shardings=NamedSharding(mesh, spec)
  )

  def few(part):
    flat = part.reshape(devices * size, *part.shape[2:])
    return jax.tree.map(
      lambda leaf: leaf.reshape(devices, size, *leaf.shape[1:]),
      _pixels(codec, params, flat),
    )

  # Row r of a batch is on device r // each, before and after.
  parts = latents.reshape(devices, each // size, size, *latents.shape[1:])
  results = jax.lax.map(few, split(parts.swapaxes(0, 1)))
  return jax.tree.map(
    lambda leaf: split(leaf).swapaxes(0, 1).reshape(-1, *leaf.shape[3:]),
    results,
  )


def _pixels(codec: Codec, params: PyTree, latents):
  """Latents to uint8, as `images.to_uint8`, and which images are finite."""
  scaled = (codec.decode(params, latents).astype(jnp.float32) + 1.0) * 127.5
  is_fine = jnp.isfinite(scaled).all((1, 2, 3))
  return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8), is_fine
