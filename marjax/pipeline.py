"""The whole line as code: labels → images, and images → tokens.

    image ─encode▶ latents ─patchify▶ tokens          (tokenise)
    label ─────────▶ generate ─▶ tokens ─unpatchify▶ latents ─decode▶ image

1. `load` reads a checkpoint, with its own settings.
2. `Pipeline.generate` splits the labels into device batches of one size (the
   last one padded), so it compiles once; each image's random numbers are
   addressed by (seed, image id, position, purpose), so its pixels do not
   depend on the batch it was in, nor on the devices.
"""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from marjax import keys, release
from marjax.arrays import NO_LABEL, Images, Tokens
from marjax.experiment import Experiment
from marjax.generate import masked
from marjax.generate.masked import Draws, Static
from marjax.generate.plan import Plan
from marjax.latents.pixels import PixelsConfig, to_uint8
from marjax.parallel.mesh import RULES, batch_sharding, make_mesh, replicated
from marjax.settings import Settings
from marjax.tokens.patches import patchify, unpatchify

LARGEST_BATCH = 64


def load(directory: str | os.PathLike, mesh: Mesh | None = None) -> "Pipeline":
  """The pipeline of a work directory, with its averaged parameters.

  Args:
    directory: made by `marjax train`.
    mesh: devices to generate on; None for all of them, data-parallel.

  Raises:
    FileNotFoundError: no such directory, or no checkpoint in it.
    ValueError: a damaged configuration or checkpoint.
  """
  mesh = make_mesh() if mesh is None else mesh
  loaded = release.load(directory, mesh)
  return Pipeline(loaded.experiment, loaded.params, mesh, loaded.step)


@dataclass(frozen=True)
class Trajectory:
  """Images and how they were revealed.

  Attributes:
    images: uint8 [N, H, W, C].
    frames: uint8 [S, N, H, W, C] after each autoregressive step; pixels of
      unknown tokens are those of latent 0.
    is_known: bool [S, N, H, W], which pixels of a frame are final.
    num_known: known tokens after each step, S integers.
  """

  images: np.ndarray
  frames: np.ndarray
  is_known: np.ndarray
  num_known: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pipeline:
  """A model that generates.

  Attributes:
    experiment: how it was made; `experiment.sampling` are its settings.
    params: on the mesh. step: optimizer steps behind them.
  """

  experiment: Experiment
  params: PyTree
  mesh: Mesh
  step: int = 0

  def settings(self, settings: Settings | None = None) -> Settings:
    """Complete settings: those given, else the checkpoint's, else published."""
    chosen = (settings or Settings()).over(self.experiment.sampling)
    return chosen.resolved()

  def plan(self, settings: Settings | None = None) -> Plan:
    """The printable plan of a generation with these settings."""
    return masked.plan_for(self.experiment.model, self.settings(settings))

  def generate(
    self,
    labels: Sequence | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    *,
    num_images: int | None = None,
    batch_size: int | None = None,
    draws: Draws | None = None,
    return_trajectory: bool = False,
    progress: bool = False,
  ) -> Any:
    """Generates one image per label.

    Args:
      labels: classes, -1 for "no class"; None with num_images for images
        without a class.
      seed: image i of a seed is the same whatever else is generated.
      settings: what differs from the checkpoint's own settings.
      num_images: only with labels=None.
      batch_size: images per device call; None chooses. Does not change images.
      draws: recorded order and noise of all images, instead of the seed.
      return_trajectory: return a `Trajectory` instead of the images.
      progress: show rate and time left.

    Returns:
      uint8 [N, H, W, C], or a `Trajectory`.

    Raises:
      ValueError: labels out of range or of the wrong count, bad settings.
    """
    labels = self._checked_labels(labels, num_images)
    chosen = self.settings(settings)
    static = masked.static_for(self.experiment.model, chosen)
    count = len(labels)
    if draws is None:
      draws = self.draws(seed, count)
    elif draws.order.shape[0] != count:
      raise ValueError(
        f"draws were recorded for {draws.order.shape[0]} images; expected"
        f" {count}, one for each label."
      )
    size = self._batch_size(count, batch_size)
    outputs = []
    with _bar(count, progress) as bar:
      for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        batch = (np.asarray(labels, np.int32)[index], _take(draws, index))
        done = self._run(static, *batch, chosen, return_trajectory)
        keep = min(size, count - start)
        outputs.append(jax.tree.map(lambda a, k=keep: np.asarray(a[:k]), done))
        bar.update(keep)
    images, frames = jax.tree.map(lambda *a: np.concatenate(a), *outputs)
    if not return_trajectory:
      return to_uint8(images)
    return self._trajectory(static.plan, images, frames, draws)

  def tokenise(self, images: Images) -> Tokens:
    """Images in [-1, 1], [N, H, W, C], to tokens [N, L, D]."""
    codec = self.experiment.codec
    return patchify(codec.encode(jnp.asarray(images)), codec.patch)

  def draws(self, seed: int, num_images: int) -> Draws:
    """Order and noise that `generate` uses for a seed; pass it to replay."""
    num_tokens = self.experiment.model.backbone.num_tokens
    return _draw(keys.root(seed), jnp.arange(num_images), num_tokens)

  def _checked_labels(self, labels, num_images) -> list[int]:
    if labels is None:
      if not num_images or num_images < 1:
        raise ValueError(
          "labels is None; give num_images, 1 or more, to generate without"
          " classes."
        )
      return [NO_LABEL] * num_images
    labels = np.asarray(labels)
    is_count_right = num_images in (None, labels.size)
    if labels.ndim != 1 or labels.size == 0 or not is_count_right:
      raise ValueError(
        f"labels has shape {labels.shape} and num_images is {num_images};"
        " expected a list with one class per image."
      )
    classes = self.experiment.model.backbone.num_classes
    if (
      not np.issubdtype(labels.dtype, np.integer)
      or not ((labels >= NO_LABEL) & (labels < classes)).all()
    ):
      raise ValueError(
        f"labels {labels.tolist()} are not all classes of this model; expected"
        f" integers in 0 .. {classes - 1}, or -1 for no class."
      )
    return labels.tolist()

  def _batch_size(self, count: int, batch_size: int | None) -> int:
    devices = math.prod(self.mesh.shape[axis] for axis in ("data", "fsdp"))
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
    size = min(count, batch_size or LARGEST_BATCH * devices)
    return math.ceil(size / devices) * devices

  def _run(self, static, labels, draws, settings: Settings, keep_steps: bool):
    """One device batch: images and, if kept, frames."""
    labels, draws = _place(self.mesh, (labels, draws))
    numbers = (
      masked.step_scales(static.plan, settings),
      np.float32(settings.temperature),
    )
    with jax.set_mesh(self.mesh):
      return _images(
        static,
        self.experiment.codec,
        keep_steps,
        self.params,
        labels,
        draws,
        *jax.device_put(numbers, replicated(self.mesh)),
      )

  def _trajectory(self, plan: Plan, images, frames, draws) -> Trajectory:
    num_known = plan.known_after
    rank = np.argsort(np.asarray(draws.order), axis=1)
    is_known = rank[None] < np.asarray(num_known)[:, None, None]
    codec = self.experiment.codec
    rows = np.repeat(
      is_known.reshape(-1, codec.num_tokens, 1), codec.token_dim, 2
    )
    shape = (*is_known.shape[:2], *codec.latent_shape)
    pixels = np.asarray(
      unpatchify(jnp.asarray(rows), codec.latent_shape, codec.patch)
    )
    return Trajectory(
      to_uint8(images),
      to_uint8(np.moveaxis(frames, 1, 0)),
      pixels.reshape(shape)[..., 0],
      num_known,
    )


@functools.partial(jax.jit, static_argnums=2)
def _draw(key, image_ids, num_tokens: int) -> Draws:
  return masked.draw(key, image_ids, num_tokens)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _images(
  static: Static,
  codec: PixelsConfig,
  keep_steps: bool,
  params: PyTree,
  labels,
  draws: Draws,
  scales: Float[Array, " S"],
  temperature: Float[Array, ""],
):
  """Images [B, H, W, C] in [-1, 1] and, if kept, frames [B, S, H, W, C]."""

  def decode(tokens):
    return codec.decode(unpatchify(tokens, codec.latent_shape, codec.patch))

  with nn.logical_axis_rules(RULES):
    tokens, kept = masked.generate(
      static,
      params,
      labels,
      draws,
      scales,
      temperature,
      keep_steps=keep_steps,
    )
  frames = jnp.moveaxis(jax.vmap(decode)(kept), 0, 1) if keep_steps else None
  return decode(tokens), frames


def _take(draws: Draws, index: np.ndarray) -> Draws:
  noise = draws.noise
  if isinstance(noise, masked.RecordedNoise):
    noise = masked.RecordedNoise(noise.start[index], noise.steps[:, index])
  else:
    noise = masked.KeyedNoise(noise.row_keys[index])
  return Draws(draws.order[index], noise)


def _place(mesh: Mesh, tree):
  """Puts every array on the mesh, its batch axis split over the devices."""
  by_batch = batch_sharding(mesh)
  second = NamedSharding(mesh, PartitionSpec(None, *by_batch.spec))

  def place(path, array):
    is_steps = getattr(path[-1], "name", "") == "steps"
    return jax.device_put(array, second if is_steps else by_batch)

  return jax.tree_util.tree_map_with_path(place, tree)


def _bar(total: int, is_shown: bool):
  from tqdm import tqdm

  return tqdm(total=total, unit="image", disable=not is_shown)
