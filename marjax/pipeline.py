"""The whole line as code: labels → images, and images → latents.

    image ─encode▶ latents ─patchify▶ tokens          (tokenise)
    label ─────────▶ generate ─▶ tokens ─unpatchify▶ latents ─decode▶ image
    image, mask, label ─edit▶ image

1. `load` reads a released checkpoint or a work directory, with its settings.
2. Any number of images runs in device batches (`requests.batching`). Each
   image's random numbers are addressed by (seed, image id, position, purpose),
   so it does not depend on the batch it was in, nor on the devices.
"""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from marjax import keys
from marjax.arrays import (
  NO_LABEL,
  check_shapes,
  checked,
  count,
  flag,
  instance,
  one_of,
  path,
  shapes_of,
)
from marjax.convert import fetching
from marjax.experiment import Experiment
from marjax.generate import reveal
from marjax.generate.draws import Draws, as_draws
from marjax.generate.plan import Plan
from marjax.generate.settings import Changes, Settings
from marjax.latents.images import check_images, check_latents
from marjax.model import ModelConfig, param_shapes
from marjax.outputs import AnyPath
from marjax.parallel.mesh import check_mesh, make_mesh
from marjax.protocols import Codec
from marjax.release import loading, workdir
from marjax.release.card import Card
from marjax.requests import batching, editing
from marjax.requests.batching import CODEC_BATCH, LARGEST_BATCH, How, Request
from marjax.requests.compiled import Programs
from marjax.requests.editing import Edited
from marjax.requests.kept_programs import keep_programs
from marjax.requests.trajectory import Trajectory, Watch, watched
from marjax.tokens import regions

DTYPE = one_of("float32", "bfloat16", None)
SETTINGS = instance(
  Settings | str | Mapping,
  'changes, such as {"guidance_scale": 2.0}, the name of a preset, or'
  " marjax.Settings",
)
HOW: dict[str, Any] = {
  "seed": keys.check_seed,
  "settings": SETTINGS,
  "num_images": count,
  "batch_size": count,
  "progress": flag,
  "watch": instance(Callable, "a function that takes images"),
}


def _mesh(value: Any, name: str) -> Mesh:
  return make_mesh() if value is None else check_mesh(value, name)


@checked(
  name_or_dir=path, mesh=_mesh, dtype=DTYPE, codec_dtype=DTYPE, verify=flag
)
def load(
  name_or_dir: str | os.PathLike,
  mesh: Mesh | None = None,
  *,
  dtype: str | None = None,
  codec_dtype: str | None = None,
  verify: bool = True,
) -> "Pipeline":
  """The pipeline of a published model, a release or a work directory.

  What is compiled is kept for the next process, see
  `marjax.requests.kept_programs`.

  Args:
    name_or_dir: "mar-base", "mar-large", "mar-huge" (fetched and converted on
      first use, see `marjax.convert`), or a folder made by `marjax convert`,
      `marjax export` or `marjax train`.
    mesh: devices to generate on; None for all of them, data-parallel.
    dtype: "bfloat16" or "float32" for the matmuls of the model; None leaves
      what the checkpoint says. Parameters and diffusion stay float32.
    codec_dtype: the same for the convolutions of the autoencoder.
    verify: False skips the hashes of a release's files.

  Raises:
    FileNotFoundError: no such folder, or no checkpoint in it.
    ValueError: an unknown name, a damaged or newer checkpoint, an argument of
      another type.
  """
  keep_programs()
  mesh = mesh or make_mesh()
  loaded = loading.load(fetching.find(name_or_dir), mesh, verify)
  card = loaded.card.in_dtype(dtype, codec_dtype)
  return Pipeline(
    card, loaded.params, mesh, loaded.codec_params, loaded.autoencoder
  )


@functools.lru_cache(maxsize=8)
def _codec_shapes(codec: Codec) -> dict[str, tuple[int, ...]]:
  return shapes_of(jax.eval_shape(lambda: codec.init_params(keys.root(0))))


@dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
  """A model that generates, with its codec.

  Attributes:
    card: what it is: configurations, settings, class names, origin.
    params: the model's, on the mesh. mesh: the devices.
    codec_params: the autoencoder's; {} where the codec has none, None where
      the release's autoencoder was not found.
    autoencoder: where that was looked for.
    programs: what was compiled; `dataclasses.replace` with other parameters
      uses the same.
  """

  card: Card
  params: PyTree
  mesh: Mesh
  codec_params: PyTree | None = field(default_factory=dict)
  autoencoder: AnyPath | None = None
  programs: Programs = field(default_factory=Programs)

  def __post_init__(self):
    check_mesh(self.mesh)

  @classmethod
  def of_experiment(
    cls,
    experiment: Experiment,
    params: PyTree,
    mesh: Mesh,
    step: int = 0,
    codec_params: PyTree | None = None,
  ) -> "Pipeline":
    """The pipeline of a model in training; all parameters are on the mesh."""
    card = workdir.card_of(experiment, step)
    return cls(card, params, mesh, codec_params or {})

  def __repr__(self) -> str:
    card, devices = self.card, self.mesh.devices
    sizes = [leaf.size for leaf in jax.tree.leaves(self.params)]
    parts = [f"{sum(sizes):,} parameters"]
    if card.model is not None:
      parts += [f"{card.model.backbone.num_tokens} tokens"]
    side, several = card.codec.image_size, "s" * (devices.size > 1)
    parts += [
      f"images of {side} x {side} x {card.codec.channels}",
      f"{devices.size} {devices.flat[0].platform} device{several}",
      f"step {card.step}",
    ]
    return f"Pipeline({card.name!r}: {', '.join(parts)})"

  @checked(settings=SETTINGS)
  def settings(
    self, settings: Any = None, **changes: Unpack[Changes]
  ) -> Settings:
    """Complete settings of this model.

    Args:
      settings: changes of the checkpoint's own settings, nested as they are;
        the name of a preset, of `card.presets` or of the head; `Settings` as
        they are; None for the checkpoint's own.
      changes: what differs from those, by name: guidance_scale=2.0.

    Raises:
      ValueError: an unknown preset or field, or what this model cannot do.
    """
    return self.card.settings(settings, changes)

  @checked(settings=SETTINGS)
  def plan(self, settings: Any = None, **changes: Unpack[Changes]) -> Plan:
    """The printable plan of a generation with these settings."""
    return reveal.plan_for(self._model(), self.settings(settings, **changes))

  def generate(
    self,
    labels: Any = None,
    seed: Any = 0,
    settings: Any = None,
    **how: Unpack[How],
  ) -> np.ndarray:
    """Generates one image per label, uint8 [N, H, W, C].

    Args:
      labels: numbers or names of classes, -1 for "no class"; None with
        num_images for images without a class.
      seed: image i of a seed is the same whatever else is generated.
      settings: what differs from the checkpoint's own settings, such as
        {"guidance_scale": 2.0, "head": {"num_steps": 50}}, or the name of one
        of its presets, or whole `Settings`. One that is given by name, as in
        generate("otter", guidance_scale=2.0), differs from those in turn.
      num_images: that many of one label, or without a class.
      batch_size: images per device call; None chooses. Does not change images.
      draws: recorded order and noise of all images, instead of a seed.
      progress: show rate and time left.
      watch: called every few steps with what is known of the images drawn at a
        time, uint8 [n, H, W, C], the rest grey. Does not change images.

    Raises:
      ValueError: labels unknown or out of range, wrong counts, bad settings.
      FileNotFoundError: the autoencoder is not there.
    """
    self._codec_params()
    return self.decode(self.latents(labels, seed, settings, **how))

  def latents(
    self,
    labels: Any = None,
    seed: Any = 0,
    settings: Any = None,
    **how: Unpack[How],
  ) -> np.ndarray:
    """Latents [N, *latent_shape] of what `generate`, with these, gives."""
    return self._latents_of(self._generation(labels, seed, settings, **how)[1])

  def reveal(
    self,
    labels: Any = None,
    seed: Any = 0,
    settings: Any = None,
    **how: Unpack[How],
  ) -> Trajectory:
    """Images as `generate` gives them, with what each step had of them."""
    self._codec_params()
    asked = labels, seed, settings
    request, tokens = self._generation(*asked, frames=(seen := []), **how)
    images = self._images_of(tokens)
    return Trajectory.of(self.card.codec, request, images, seen)

  @checked(**HOW, draws=as_draws)
  def _generation(
    self,
    labels: Any = None,
    seed: int = 0,
    settings: Any = None,
    *,
    num_images: int | None = None,
    batch_size: int | None = None,
    draws: Draws | None = None,
    progress: bool = False,
    watch: Watch | None = None,
    frames: list | None = None,
    **changes: Unpack[Changes],
  ) -> tuple[Request, np.ndarray]:
    """The request and its tokens; for watch and frames see `watched`."""
    labels = self.labels(labels, num_images)
    chosen = self.settings(settings, **changes)
    chosen = batching.for_count(chosen, len(labels), self.mesh)
    static = reveal.static_for(self._model(), chosen)
    draws = self.draws(seed, len(labels)) if draws is None else draws
    request = Request(static, chosen, labels, draws)
    return request, self._run(request, batch_size, progress, watch, frames)

  def _latents_of(self, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(self.card.codec.to_latents(tokens))

  def _images_of(self, tokens: np.ndarray) -> np.ndarray:
    return self.decode(self._latents_of(tokens))

  @checked(**HOW, keep_pixels=flag)
  def edit(
    self,
    image: Any,
    mask: Any,
    labels: Any = None,
    seed: int = 0,
    settings: Any = None,
    *,
    num_images: int | None = None,
    batch_size: int | None = None,
    keep_pixels: bool = False,
    progress: bool = False,
    watch: Watch | None = None,
    **changes: Unpack[Changes],
  ) -> Edited:
    """Draws the masked region anew and keeps the rest.

    Args:
      image: uint8, or floats in [-1, 1], [H, W, C] or [N, H, W, C].
      mask: True where to draw anew, in pixels, [H, W] or [N, H, W]; rounded
        outwards to tokens. `marjax.regions` makes some.
      labels: class of the result, one for all or one each; None for no class.
      seed: image i of a seed is the same whatever else is edited with it.
      settings: as in `generate`, changes too; num_ar_steps is that of a whole
        image.
      num_images: that many results of one image and label.
      batch_size: images per device call; None chooses. Does not change images.
      keep_pixels: put the image's own pixels back outside the mask, which an
        autoencoder gives back only nearly.
      progress: show rate and time left. watch: as in `generate`.

    Returns:
      `Edited`: images, the mask that was used, latents.

    Raises:
      ValueError: an image or mask of another kind, size or range; a mask that
        covers no token or all of them; labels and settings as in `generate`.
    """
    model, codec = self._model(), self.card.codec
    images = check_images(image, codec.channels, codec.image_size)
    labels = self.labels([NO_LABEL] if labels is None else labels)
    total = editing.count_of(images, labels, num_images)
    is_masked = editing.token_mask(mask, total, codec.image_size, codec.cell)
    tokens = editing.repeated(np.asarray(self.tokenise(images)), total)
    chosen = self.settings(settings, **changes)
    chosen = batching.for_count(chosen, total, self.mesh)
    request = Request(
      reveal.static_for(model, chosen, is_edit=True),
      chosen,
      editing.repeated(labels, total),
      editing.kept_first(self.draws(seed, total), is_masked),
      editing.given(tokens, is_masked),
    )
    tokens = self._run(request, batch_size, progress, watch)
    latents = self._latents_of(tokens)
    edited, cells = self.decode(latents), codec.image_size // codec.cell
    drawn = regions.pixel_mask(is_masked, cells, cells, codec.cell)
    if keep_pixels:
      edited = editing.pasted(edited, editing.repeated(images, total), drawn)
    return Edited(edited, drawn, latents)

  @checked(batch_size=count)
  def encode(self, images: Any, batch_size: int | None = None) -> np.ndarray:
    """Images to latents [N, rows, columns, C], the posterior mean.

    They are float32; of a codec of codes int32 [N, rows, columns].

    Args:
      images: uint8, or floats in [-1, 1], [H, W, C] or [N, H, W, C], of the
        model's size; an autoencoder alone takes any multiple of its stride.
      batch_size: images per device call; None chooses.

    Raises:
      ValueError: images of another kind, size or range.
      FileNotFoundError: the autoencoder is not there.
    """
    codec, params = self.card.codec, self._codec_params()
    side = None if self.card.model is None else codec.image_size
    found = check_images(images, codec.channels, side, codec.stride)
    size = self._codec_batch(len(found), batch_size)
    return batching.encode(self.programs, self.mesh, codec, params, found, size)

  @checked(batch_size=count, as_float=flag)
  def decode(
    self,
    latents: Any,
    batch_size: int | None = None,
    *,
    as_float: bool = False,
  ) -> np.ndarray:
    """Latents [N, *latent_shape] to images uint8 [N, H, W, C].

    Args:
      latents: as `encode` and `latents` give them; an autoencoder alone takes
        any rows and columns.
      batch_size: images per device call; None chooses.
      as_float: give float32 in about [-1, 1], neither clipped nor rounded.

    Raises:
      ValueError: latents of another shape.
      FileNotFoundError: the autoencoder is not there.
    """
    codec, params = self.card.codec, self._codec_params()
    values = check_latents(latents, codec, self.card.model is None)
    size = self._codec_batch(len(values), batch_size)
    return batching.decode(
      self.programs, self.mesh, codec, params, values, size, as_float
    )

  def reconstruct(self, images: Any) -> np.ndarray:
    """Images encoded and decoded again, uint8 [N, H, W, C]; see `encode`."""
    return self.decode(self.encode(images))

  def tokenise(self, images: Any) -> Array:
    """Images, as `encode` takes them, to tokens [N, L, *token_shape]."""
    return jnp.asarray(self.card.codec.to_tokens(self.encode(images)))

  @checked(seed=keys.check_seed, num_images=count)
  def draws(self, seed: int, num_images: int) -> Draws:
    """Order and noise that `generate` uses for a seed; pass it to replay."""
    backbone = self._model().backbone
    root = keys.root(seed)
    return batching.draw(self.programs, self.mesh, root, num_images, backbone)

  def _run(self, request, asked, progress: bool, *told: Any) -> np.ndarray:
    """Tokens of a request; `told` is as in `watched`."""
    self._check_params()
    request = watched(request, self.card.codec, self._images_of, *told)
    number, largest = len(request), LARGEST_BATCH
    size = batching.batch_size(self.mesh, number, asked, largest)
    return batching.generate(
      self.programs, self.mesh, self.params, request, size, progress
    )

  def _model(self) -> ModelConfig:
    if self.card.model is None:
      raise ValueError(
        f"{self.card.name} is an autoencoder without a model; it encodes and"
        " decodes: load a model to generate."
      )
    return self.card.model

  def _check_params(self) -> None:
    """Refuses parameters of another model: some would only be left out."""
    expected = shapes_of(nn.unbox(param_shapes(self._model())))
    check_shapes(self.params, expected, self.card.name)

  def _codec_params(self) -> PyTree:
    if self.codec_params is None:
      raise FileNotFoundError(
        f"{self.autoencoder} is not there, and {self.card.name} needs that"
        " autoencoder: convert it to that folder, or ask for latents."
      )
    expected = _codec_shapes(self.card.codec)
    check_shapes(self.codec_params, expected, "its autoencoder")
    return self.codec_params

  def _codec_batch(self, number: int, asked: int | None) -> int:
    largest = CODEC_BATCH if self.codec_params else LARGEST_BATCH
    return batching.batch_size(self.mesh, number, asked, largest)

  def labels(self, labels: Any, num_images: int | None = None) -> Any:
    """What people ask for to conditions [N, ...]; see `generate`.

    Of a model with classes: numbers or names to integers [N].
    """
    condition = self._model().backbone.condition
    return condition.parse(labels, num_images, self.card.class_names)
