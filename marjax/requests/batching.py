"""Any number of images through programs compiled for one batch, on a mesh.

1. N images are split into device batches of one size; the last is padded with
   repeats of the last image, so there is one program for all of them.
2. A generation runs segment after segment of its plan; what is shown of its
   progress is known between segments. Nothing comes to the host before the end.
   All segments are traced first, then compiled at the same time in threads.
   Settings that change no shape are arrays, and change no program.
   For who watches, a segment's program runs a few of its steps at a time, and
   the tokens so far come to the host.
3. Encoding and decoding go batch by batch, so that their memory does not grow
   with the number of images.

Random numbers are addressed by image and position, so none of this changes an
image.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from marjax.arrays import RootKey, check_finite
from marjax.generate import reveal
from marjax.generate.draws import Draws, check_draws, draw_batch
from marjax.generate.plan import Plan, Segment
from marjax.generate.reveal import Given, Static
from marjax.generate.settings import Changes, Settings
from marjax.keys import is_keys
from marjax.latents.images import to_float, to_uint8
from marjax.parallel.hosts import fetch, spread
from marjax.parallel.rules import RULES, batch_sharding, replicated
from marjax.protocols import BackboneConfig, Codec
from marjax.requests.compiled import Program, Programs
from marjax.schema import check
from marjax.ticks import repeating

LARGEST_BATCH = 64
"""Images of one device batch, on each device, unless told otherwise."""

CODEC_BATCH = 8
"""Images that an autoencoder works on at a time, on each device."""

DRAWN_AT_ONCE = 1024
"""Images whose order and keys are drawn at a time."""


FEW = 4
"""Images for which compiling takes longer than drawing, on a CPU."""


class How(Changes, total=False):
  """What `Pipeline.generate` takes by name: settings, and these."""

  num_images: int | None
  batch_size: int | None
  draws: Draws | None
  progress: bool
  watch: Callable[[np.ndarray], None] | None


def batch_size(mesh: Mesh, count: int, asked: int | None, largest: int) -> int:
  """Images per device call: a multiple of the devices that share a batch.

  Untold, the smallest `padded` number of images on each device that makes as
  few batches as `largest` on each would.

  Raises:
    ValueError: fewer than one was asked for.
  """
  devices = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
  if asked is None:
    num_batches = math.ceil(count / (largest * devices))
    return padded(math.ceil(count / num_batches / devices)) * devices
  if asked < 1:
    raise ValueError(f"batch_size is {asked}; expected 1 or more.")
  return math.ceil(min(padded(count), asked) / devices) * devices


def for_count(settings: Settings, count: int, mesh: Mesh) -> Settings:
  """The settings, with one segment for a few images on CPUs if it is left open.

  Eight segments of the digits model took 30 s of a core to compile, one 5 s,
  and an image 30 ms with either. On an accelerator an image's time counts more.
  """
  is_few = count <= FEW and mesh.devices.flat[0].platform == "cpu"
  if is_few and settings.num_buckets is None:
    return dataclasses.replace(settings, num_buckets=1)
  return settings


def padded(count: int) -> int:
  """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., at most half as much more.

  So there are few programs, however many numbers of images are asked for.
  """
  power = 1 << (count - 1).bit_length()
  return 3 * power // 4 if power >= 4 and 3 * power // 4 >= count else power


def batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
  """(indices of a batch, how many of them are not padding), in order."""
  for start in range(0, count, size):
    index = np.arange(start, start + size)
    yield np.minimum(index, count - 1), min(size, count - start)


@dataclass(frozen=True, eq=False)
class Request:
  """What to generate.

  Attributes:
    static: see `reveal.static_for`. settings: resolved.
    condition: of each image [N, ...]. draws: of all N images.
    given: tokens to keep, None unless it is an edit.
    watch: told what was drawn, between the first step and the last, with the
      indices of the images [B], the number of steps that are done, and the
      tokens [B, L, *token], of which those that are not known yet are 0.
    every: steps that are done before it is told again.
  """

  static: Static
  settings: Settings
  condition: PyTree
  draws: Draws
  given: Given | None = None
  watch: Callable[[np.ndarray, int, np.ndarray], None] | None = None
  every: int = 1

  def __post_init__(self):
    config = self.static.config
    check_draws(
      self.draws,
      len(jax.tree.leaves(self.condition)[0]),
      config.backbone.num_tokens,
      config.head.noise_shape,
      max(part.num_head_steps for part in self.static.plan.segments),
    )
    backbone = self.static.config.backbone
    check(
      not backbone.is_raster
      or bool((np.diff(np.asarray(self.draws.order), axis=1) == 1).all()),
      f"the model's {backbone.kind} backbone draws in raster order only, and"
      " this mask, or these draws, ask for another; expected a mask that, read"
      " like a page, covers all tokens from one on: for any other, take a model"
      " that was trained in random order.",
    )

  def __len__(self) -> int:
    return len(self.draws.order)


def generate(
  programs: Programs,
  mesh: Mesh,
  params: PyTree,
  request: Request,
  size: int,
  progress: bool,
) -> np.ndarray:
  """Tokens [N, L, *token].

  Args:
    programs: those compiled so far.
    mesh: the devices. params: of the model, on them.
    request: what to generate.
    size: images per device call, from `batch_size`.
    progress: show rate and time left, in steps of a device batch.
  """
  count = len(request)
  first = _first_segment(request)
  static = request.static
  segments = static.plan.segments
  steps = sum(len(segment.num_known) for segment in segments[first:])
  values = numbers(mesh, static.plan, request.settings)
  tokens = []
  with _bar(math.ceil(count / size) * steps, progress) as bar:
    for index, keep in batches(count, size):
      for done, drawn in _generate_batch(
        programs, mesh, params, request, values, index, first, bar
      ):
        drawn, is_fine = drawn[:keep], are_fine(drawn[:keep])
        check_drawn(is_fine, int(index[0]), params, static, request.settings)
        if request.watch and done < static.plan.num_ar_steps:
          request.watch(index[:keep], done, drawn)
      tokens.append(drawn)
  return np.concatenate(tokens)


def are_fine(tokens):
  """Of which images [B] all tokens [B, L, *token] are finite; numpy or jax."""
  # A categorical head says -1 where its numbers were not finite.
  is_code, finite = tokens.dtype.kind in "iu", tokens.__array_namespace__()
  is_fine = tokens >= 0 if is_code else finite.isfinite(tokens)
  return is_fine.all(tuple(range(1, tokens.ndim)))


def check_drawn(
  is_fine: np.ndarray,
  first: int,
  params: PyTree,
  static: Static,
  settings: Settings,
) -> None:
  """Refuses NaN and infinity, which would be shown as black or white.

  Args:
    is_fine: of a batch of images [B]. first: the number of its first.
    params, static, settings: of the model and the generation.
  """
  if is_fine.all():
    return
  check_finite(params, "the parameters of the model")
  head = static.config.head
  causes = [
    f"temperature {settings.temperature:g} or guidance_scale"
    f" {settings.guidance_scale:g} is too large"
  ]
  if "bfloat16" in (head.dtype, static.config.backbone.dtype):
    causes.append('a matmul overflows in bfloat16 (try dtype="float32")')
  raise ValueError(
    f"{np.sum(~is_fine)} generated images, the first of them image"
    f" {first + np.argmin(is_fine)}, have NaN or infinity, though the"
    f" parameters have none; probably {', or '.join(causes)}, or the checkpoint"
    " is one of a run that diverged."
  )


def _first_segment(request: Request) -> int:
  """Segments before it reveal nothing of any image."""
  if request.given is None:
    return 0
  fewest = int(np.min(np.asarray(request.given.num_given)))
  return request.static.plan.first_segment(fewest)


def _spans(
  mesh: Mesh, request: Request, segment: Segment
) -> list[tuple[int, tuple]]:
  """For each run of a segment the steps done after it, and what it is told.

  Nothing is told to one that runs the whole segment, with its length known.
  """
  start, every, steps = segment.first_step, request.every, segment.num_known
  if request.watch is None or len(steps) == 1:
    return [(segment.end, ())]
  cuts = [n for n in range(1, len(steps)) if (start + n) % every == 0]
  return [
    (start + last, (_number(mesh, [first, last]),))
    for first, last in itertools.pairwise([0, *cuts, len(steps)])
  ]


def _number(mesh: Mesh, value) -> jax.Array:
  return spread(np.asarray(value, np.int32), replicated(mesh))


def _generate_batch(
  programs: Programs,
  mesh: Mesh,
  params: PyTree,
  request: Request,
  values: reveal.Numbers,
  index: np.ndarray,
  first: int,
  bar,
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields steps that are done and tokens so far [B, L, *token]; all at last.

  Segments before the first are left out. The bar is told of each step.
  """
  static, plan = request.static, request.static.plan
  asked = (request.condition, request.draws, request.given)
  asked = place(mesh, take(asked, index))
  scales, temperature, walks = values
  segments, walks = plan.segments[first:], walks[first:]
  spans = [_spans(mesh, request, segment) for segment in segments]
  with jax.set_mesh(mesh):
    carry, fixed = programs.run(mesh, begin, (static,), params, *asked)
    rest = (fixed, scales, temperature)
    bar.set_description("compiling")
    compiled = programs.of(
      mesh,
      [
        segment_program(
          static, first + n, params, carry, *rest, walk, *spans[n][0][1]
        )
        for n, walk in enumerate(walks)
      ],
    )
    bar.set_description()
  done = segments[0].first_step
  for run, walk, parts in zip(compiled, walks, spans, strict=True):
    for now, told in parts:
      carry = run(params, carry, *rest, walk, *told)
      if not bar.disable:
        jax.block_until_ready(carry)
        bar.update(now - done)
      done = now
      if request.watch or done == plan.num_ar_steps:
        ends = (carry, fixed, _number(mesh, plan.known_after[done - 1]))
        yield done, fetch(programs.run(mesh, reveal.finish, (), *ends))


def numbers(mesh: Mesh, plan: Plan, settings: Settings) -> reveal.Numbers:
  """`reveal.numbers_for`, on the mesh."""
  return jax.tree.map(
    lambda array: spread(array, replicated(mesh)),
    reveal.numbers_for(plan, settings),
  )


def begin(static: Static, params, condition, draws, given: Given | None):
  """`reveal.begin`, to be compiled."""
  with nn.logical_axis_rules(RULES):
    return reveal.begin(static, params, condition, draws, given)


def run_segment(static: Static, index: int, params, carry, *rest):
  """`reveal.run_segment`, to be compiled."""
  with nn.logical_axis_rules(RULES):
    return reveal.run_segment(static, index, params, carry, *rest)


def segment_program(static: Static, index: int, *args) -> Program:
  """A segment to be compiled, for (params, carry, fixed, *numbers, *span)."""
  return Program(run_segment, (static, index), args, donated=(1,))


def encode(
  programs: Programs,
  mesh: Mesh,
  codec: Codec,
  codec_params: PyTree,
  images: np.ndarray,
  size: int,
) -> np.ndarray:
  """Checked images [N, H, W, C] to latents [N, *latent_shape].

  Raises:
    ValueError: the latents have NaN or infinity.
  """
  outputs = []
  for index, keep in batches(len(images), size):
    batch = spread(to_float(images[index]), batch_sharding(mesh))
    latents = programs.run(mesh, _encode, (codec,), codec_params, batch)
    outputs.append(fetch(latents)[:keep])
    check(
      bool(np.isfinite(outputs[-1]).all()),
      "the encoded latents have NaN or infinity; expected finite numbers: an"
      ' autoencoder can overflow in bfloat16 (codec_dtype="float32" helps), or'
      " its weights are damaged.",
    )
  return np.concatenate(outputs)


def decode(
  programs: Programs,
  mesh: Mesh,
  codec: Codec,
  codec_params: PyTree,
  latents: np.ndarray,
  size: int,
  as_float: bool = False,
) -> np.ndarray:
  """Latents [N, *latent_shape] to images uint8, or float32, [N, H, W, C]."""
  outputs = []
  for index, keep in batches(len(latents), size):
    batch = spread(latents[index], batch_sharding(mesh))
    images = programs.run(mesh, _decode, (codec,), codec_params, batch)
    images = fetch(images)[:keep]
    outputs.append(images if as_float else to_uint8(images))
  return np.concatenate(outputs)


def _encode(codec: Codec, codec_params, images):
  return codec.encode(codec_params, images)


def _decode(codec: Codec, codec_params, latents):
  return codec.decode(codec_params, latents)


def draw(
  programs: Programs,
  mesh: Mesh,
  key: RootKey,
  num_images: int,
  backbone: BackboneConfig,
) -> Draws:
  """`draw_batch` for images 0 .. num_images - 1, compiled; on the host."""
  size = padded(min(num_images, DRAWN_AT_ONCE))
  parts = []
  for index, keep in batches(num_images, size):
    drawn = programs.run(mesh, _draw, (backbone,), key, index)
    parts.append(take(drawn, np.arange(keep)))
  return jax.tree.map(_joined, *parts)


def _draw(backbone: BackboneConfig, key, image_ids) -> Draws:
  return draw_batch(key, image_ids, backbone)


def take(tree: PyTree, index: np.ndarray) -> PyTree:
  """Of what some of the images have; nothing is compiled for it."""
  return jax.tree.map(lambda leaf: _on_host(leaf, lambda a: a[index]), tree)


def _joined(*leaves):
  return _on_host(leaves[0], lambda _: np.concatenate([*map(_bits, leaves)]))


def _on_host(leaf, function):
  """What a numpy function makes of an array, or of keys by their bits."""
  result = function(_bits(leaf))
  if not is_keys(leaf):
    return result
  return jax.random.wrap_key_data(result, impl=jax.random.key_impl(leaf))


def _bits(leaf) -> np.ndarray:
  return np.asarray(jax.random.key_data(leaf) if is_keys(leaf) else leaf)


def place(mesh: Mesh, tree: PyTree) -> PyTree:
  """Puts every array on the mesh, its batch axis split over the devices."""
  return jax.tree.map(lambda leaf: spread(leaf, batch_sharding(mesh)), tree)


@contextlib.contextmanager
def _bar(total: int, is_shown: bool):
  """A bar whose time goes on while nothing else does, as in compiling."""
  from tqdm import tqdm

  with (
    tqdm(total=total, unit="step", disable=not is_shown) as bar,
    repeating(bar.refresh),
  ):
    yield bar
