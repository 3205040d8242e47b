"""Any number of images through programs compiled for one batch, on a mesh.

1. N images are split into device batches of one size; the last is padded with
   repeats of the last image, so there is one program for all of them.
2. A generation runs segment after segment of its plan; what is shown of its
   progress is known between segments. Nothing comes to the host before the end.
   All segments are traced first, then compiled at the same time in threads.
3. Encoding and decoding go batch by batch, so that their memory does not grow
   with the number of images.

Random numbers are addressed by image and position, so none of this changes an
image.
"""

import functools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from marjax.arrays import RootKey
from marjax.generate import masked
from marjax.generate.draws import Draws, draw_batch
from marjax.generate.masked import Given, Static
from marjax.head.noise import KeyedNoise, RecordedNoise
from marjax.latents.images import to_float, to_uint8
from marjax.parallel.compiler import compiler_options
from marjax.parallel.hosts import fetch, spread
from marjax.parallel.rules import RULES, batch_sharding, replicated
from marjax.release.card import Codec
from marjax.schema import check
from marjax.settings import Settings
from marjax.tokens.patches import unpatchify

LARGEST_BATCH = 64
"""Images of one device batch, on each device, unless told otherwise."""

CODEC_BATCH = 8
"""Images that an autoencoder works on at a time, on each device."""


def batch_size(mesh: Mesh, count: int, asked: int | None, largest: int) -> int:
  """Images per device call: a multiple of the devices that share a batch.

  Raises:
    ValueError: fewer than one was asked for.
  """
  devices = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
  if asked is not None and asked < 1:
    raise ValueError(f"batch_size is {asked}; expected 1 or more.")
  size = min(count, asked or largest * devices)
  return math.ceil(size / devices) * devices


def batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
  """(indices of a batch, how many of them are not padding), in order."""
  for start in range(0, count, size):
    index = np.arange(start, start + size)
    yield np.minimum(index, count - 1), min(size, count - start)


@dataclass(frozen=True, eq=False)
class Request:
  """What to generate.

  Attributes:
    static: see `masked.static_for`. settings: resolved.
    labels: int32 [N]. draws: of all N images.
    given: tokens to keep, None unless it is an edit.
    keep_steps: whether tokens after every step are wanted.
  """

  static: Static
  settings: Settings
  labels: np.ndarray
  draws: Draws
  given: Given | None = None
  keep_steps: bool = False

  def __post_init__(self):
    check(
      self.given is None or not self.keep_steps,
      "an edit keeps no steps; leave keep_steps out.",
    )
    recorded = self.draws.order.shape[0]
    check(
      recorded == len(self.labels),
      f"draws were recorded for {recorded} images; expected"
      f" {len(self.labels)}, one for each label.",
    )


def generate(
  mesh: Mesh, params: PyTree, request: Request, size: int, progress: bool
) -> tuple[np.ndarray, np.ndarray | None]:
  """Tokens [N, L, D] and, if kept, those after each step [S, N, L, D].

  Args:
    mesh: the devices. params: of the model, on them.
    request: what to generate.
    size: images per device call, from `batch_size`.
    progress: show rate and time left, in steps of a device batch.
  """
  count = len(request.labels)
  first = _first_segment(request)
  segments = request.static.plan.segments
  steps = sum(len(segment.num_known) for segment in segments[first:])
  tokens, kept = [], []
  with _bar(math.ceil(count / size) * steps, progress) as bar:
    for index, keep in batches(count, size):
      made, after = _generate_batch(mesh, params, request, index, first, bar)
      tokens.append(fetch(made)[:keep])
      if request.keep_steps:
        kept.append(fetch(after)[:, :keep])
  if not request.keep_steps:
    return np.concatenate(tokens), None
  return np.concatenate(tokens), np.concatenate(kept, axis=1)


def _first_segment(request: Request) -> int:
  """Segments before it reveal nothing of any image."""
  if request.given is None:
    return 0
  fewest = int(np.min(np.asarray(request.given.num_given)))
  return request.static.plan.first_segment(fewest)


def _generate_batch(mesh, params, request: Request, index, first: int, bar):
  static, settings = request.static, request.settings
  labels = np.asarray(request.labels, np.int32)[index]
  draws = take(request.draws, index)
  given = request.given and jax.tree.map(lambda a: a[index], request.given)
  labels, draws, given = place(mesh, (labels, draws, given))
  everywhere = replicated(mesh)
  scales, temperature = (
    spread(masked.step_scales(static.plan, settings), everywhere),
    spread(np.asarray(settings.temperature, np.float32), everywhere),
  )
  kept = []
  with jax.set_mesh(mesh):
    carry, fixed = begin(static, labels, draws, given)
    rest = (params, fixed, scales, temperature)
    bar.set_description("compiling")
    programs = compiled(mesh, static, first, request.keep_steps, carry, *rest)
    bar.set_description()
    for run, segment in zip(
      programs, static.plan.segments[first:], strict=True
    ):
      carry, after = run(params, carry, *rest[1:])
      kept.append(after)
      if not bar.disable:
        jax.block_until_ready(carry)
        bar.update(len(segment.num_known))
    return finish(static, carry, fixed, kept if request.keep_steps else None)


@functools.partial(jax.jit, static_argnums=0)
def begin(static: Static, labels, draws: Draws, given: Given | None):
  """`masked.begin`, compiled."""
  with nn.logical_axis_rules(RULES):
    return masked.begin(static, labels, draws, given)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def run_segment(
  static: Static, index: int, keep_steps: bool, params, carry, *fixed
):
  """`masked.run_segment`, compiled."""
  with nn.logical_axis_rules(RULES):
    return masked.run_segment(static, index, keep_steps, params, carry, *fixed)


_COMPILED = {}


def compiled(
  mesh: Mesh, static: Static, first: int, keep_steps: bool, carry, params, *rest
) -> list[Callable]:
  """The programs of all segments from `first` on: (params, carry, *rest).

  Those that are new are compiled at the same time: XLA works on each with one
  core, most of the time. All are kept for the life of the process.
  """
  shapes = jax.tree.map(_abstract, (params, carry, *rest))
  leaves, structure = jax.tree.flatten(shapes)

  precision = jax.config.jax_default_matmul_precision

  def key(index):
    traced = (mesh, static, index, keep_steps, precision)
    return (*traced, tuple(leaves), structure)

  indices = range(first, len(static.plan.segments))
  missing = [index for index in indices if key(index) not in _COMPILED]
  lowered = [
    run_segment.lower(static, index, keep_steps, *shapes) for index in missing
  ]
  options = compiler_options(mesh)
  with ThreadPoolExecutor() as pool:
    made = pool.map(lambda one: one.compile(options), lowered)
    _COMPILED.update(zip(map(key, missing), made, strict=True))
  return [_COMPILED[key(index)] for index in indices]


def _abstract(array):
  """Shape, dtype and, unless it may go anywhere, place of an array."""
  place = array.sharding if array.committed else None
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)


@functools.partial(jax.jit, static_argnums=0)
def finish(static: Static, carry, fixed, kept: list | None):
  """Tokens in raster order and, if kept, those after each step."""
  tokens = masked.finish(carry, fixed)
  if kept is None:
    return tokens, None
  after = jnp.concatenate(kept)
  return tokens, masked.kept_in_raster(static, after, fixed)


def encode(
  mesh: Mesh, codec: Codec, codec_params: PyTree, images: np.ndarray, size: int
) -> np.ndarray:
  """Checked images [N, H, W, C] to latents float32 [N, rows, columns, C]."""
  outputs = []
  for index, keep in batches(len(images), size):
    batch = spread(to_float(images[index]), batch_sharding(mesh))
    outputs.append(fetch(_encode(codec, codec_params, batch))[:keep])
  return np.concatenate(outputs)


def decode(
  mesh: Mesh, codec: Codec, codec_params: PyTree, latents: np.ndarray, size: int
) -> np.ndarray:
  """Latents [N, rows, columns, C] to images uint8 [N, H, W, C]."""
  outputs = []
  for index, keep in batches(len(latents), size):
    batch = spread(latents[index], batch_sharding(mesh))
    made = fetch(_decode(codec, codec_params, batch))
    outputs.append(to_uint8(made)[:keep])
  return np.concatenate(outputs)


def latents_of(codec: Codec, tokens: np.ndarray) -> np.ndarray:
  """Tokens [N, L, D] to latents [N, rows, columns, C], on the host."""
  return np.asarray(unpatchify(tokens, codec.latent_shape, codec.patch))


@functools.partial(jax.jit, static_argnums=0)
def _encode(codec: Codec, codec_params, images):
  return codec.encode(codec_params, images)


@functools.partial(jax.jit, static_argnums=0)
def _decode(codec: Codec, codec_params, latents):
  return codec.decode(codec_params, latents)


def draw(key: RootKey, num_images: int, num_tokens: int) -> Draws:
  """`draw_batch` for images 0 .. num_images - 1, compiled."""
  return _draw(key, jnp.arange(num_images), num_tokens)


@functools.partial(jax.jit, static_argnums=2)
def _draw(key, image_ids, num_tokens: int) -> Draws:
  return draw_batch(key, image_ids, num_tokens)


def take(draws: Draws, index: np.ndarray) -> Draws:
  """The draws of some of the images."""
  noise = draws.noise
  if isinstance(noise, RecordedNoise):
    noise = RecordedNoise(noise.start[index], noise.steps[:, index])
  else:
    noise = KeyedNoise(noise.row_keys[index])
  return Draws(draws.order[index], noise)


def place(mesh: Mesh, tree):
  """Puts every array on the mesh, its batch axis split over the devices."""
  by_batch = batch_sharding(mesh)
  second = NamedSharding(mesh, PartitionSpec(None, *by_batch.spec))

  def put(path, array):
    is_steps = getattr(path[-1], "name", "") == "steps"
    return spread(array, second if is_steps else by_batch)

  return jax.tree_util.tree_map_with_path(put, tree)


def _bar(total: int, is_shown: bool):
  from tqdm import tqdm

  return tqdm(total=total, unit="step", disable=not is_shown)
