"""What a new part must be: codec, condition, backbone, head, noise.

    image ─codec─▶ tokens ─▶ backbone ─▶ z ─▶ head ─▶ tokens ─codec─▶ image
                   condition ───▲              ▲─── noise

1. A part is a frozen dataclass, made by `schema.config`, with a field `kind`
   whose default is its name in config files. `build` makes its linen module.
2. A new one is a file of its own and one line: `schema.register(HeadConfig,
   MyHeadConfig)`; those of this library are registered in `marjax.model`.
3. `tests/protocols` says what every implementation must hold to.

Axes are those of `marjax.arrays`; shapes are without the batch where a part is
asked for one image or token.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PyTree

from marjax.arrays import (
  Counts,
  ImageKeys,
  Images,
  Order,
  RootKey,
  Scalar,
)

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@runtime_checkable
class Codec(Protocol):
  """Images ↔ latents ↔ tokens, and what of an image is kept for training.

  Attributes:
    image_size, channels: of its images. stride: pixels per side of a latent.
    cell: pixels per side of a token. num_tokens: L. token_shape: of one token.
    num_codes: V where tokens are int32 codes 0 .. V - 1, of shape (); 0 where
      they are float32.
    latent_shape: rows, columns, channels of one image's latents; of codes rows
      and columns.
    is_cached: whether training is on records that were computed before. Where
      it is not, tokens are computed from the images at each step.
    FREE: fields in which codecs of the same weights may differ.
  """

  kind: str
  image_size: int
  channels: int
  stride: int
  cell: int
  num_tokens: int
  token_shape: tuple[int, ...]
  num_codes: int
  latent_shape: tuple[int, ...]
  is_cached: ClassVar[bool]
  FREE: ClassVar[frozenset[str]]

  def has_params(self) -> bool:
    """Whether there are weights, which a run takes from a release."""

  def init_params(self, key: RootKey) -> PyTree:
    """New parameters; {} where there are no weights."""

  def encode(self, params: PyTree, images: Images) -> Array:
    """Latents [B, *latent_shape] of images in [-1, 1]."""

  def decode(self, params: PyTree, latents: Array) -> Images:
    """Images in about [-1, 1]."""

  def to_tokens(self, latents: Array) -> Array:
    """Tokens [B, L, *token_shape] in raster order."""

  def to_latents(self, tokens: Array) -> Array:
    """Latents [B, *latent_shape]; the inverse of `to_tokens`."""

  def record(self, params: PyTree, images: Images) -> dict[str, Array]:
    """What is kept of images for training, [B, ...] by name."""

  def record_shapes(self) -> Shapes:
    """Of one image's record."""

  def draw(
    self, params: PyTree, record: Mapping[str, Array], keys: ImageKeys
  ) -> Array:
    """Latents [B, *latent_shape] of records, one draw for each.

    `params`: {} may stand for them where `is_cached`.
    """


@runtime_checkable
class Condition(Protocol):
  """What images are asked for by: classes, for example.

  Attributes:
    num_slots: vectors of one condition. dropout: share of training images that
      are asked for by nothing.
  """

  kind: str
  num_slots: int
  dropout: float

  def nothing(self, batch: int) -> PyTree:
    """The condition of that many images that are asked for by nothing."""

  def build(self, width: int) -> nn.Module:
    """A module: conditions of B images to vectors [B, num_slots, width]."""

  def parse(
    self, asked: Any, num_images: int | None, names: tuple[str, ...]
  ) -> PyTree:
    """What people ask for, one for each image, to conditions [N, ...]."""


@runtime_checkable
class BackboneConfig(Protocol):
  """The shape of a backbone.

  Attributes:
    num_tokens: L. token_shape: of one token.
    num_codes: V where tokens are codes 0 .. V - 1, 0 where they are floats.
    code_dim: numbers of the codec's code vectors, if it takes those, or 0.
    width: W. condition: see there. dtype: of the matmuls.
    batch_multiple: what batches of training are multiples of.
    is_sequential: whether a step gives one token only.
    has_cache: whether a step computes new slots only.
    is_raster: whether the order of generation is always that of the raster.
  """

  kind: str
  num_tokens: int
  token_shape: tuple[int, ...]
  num_codes: int
  code_dim: int
  width: int
  dtype: str
  condition: Condition
  batch_multiple: int
  is_sequential: bool
  has_cache: bool
  is_raster: bool

  def orders(self, image_keys: ImageKeys) -> Order:
    """The generation order of each image [B, L]."""

  def build(self) -> nn.Module:
    """The module of this shape, a `Backbone`."""

  def draw(self, image_keys: ImageKeys) -> PyTree:
    """Everything random about training on B images, with their `order`."""

  def num_predicted(self, draws: PyTree) -> Scalar:
    """How many tokens the loss with these draws is the mean of."""

  def step_cost(self, num_known: int) -> float:
    """Multiplications of a step of generation that knows so many tokens."""

  def is_float32(self, path: tuple[str, ...]) -> bool:
    """Whether the parameter of that path stays float32 in every dtype."""


class Backbone(Protocol):
  """Known tokens and a condition → z, in order space; like a solver."""

  def training_z(
    self, tokens: Array, draws: PyTree, condition: PyTree, deterministic: bool
  ) -> Float[Array, "B L W"]:
    """z of tokens in order space, where they are predicted."""

  def rows(self, values: Array) -> Array:
    """Of [B, L, ...] in order space, what training may predict."""

  def start(
    self, condition: PyTree, order: Order, known: Array | None
  ) -> PyTree:
    """The state before the first step.

    `known`: tokens in order space, some of which are known from the start.
    """

  def step(
    self,
    state: PyTree,
    tokens: Array,
    num_known: Counts,
    window: Array,
    num_new: int,
  ) -> tuple[Float[Array, "B Q W"], PyTree]:
    """z at the generation indices `window` [Q], and the next state.

    At most num_new of the known tokens became so since the step before.
    """


@runtime_checkable
class HeadSettings(Protocol):
  """How a head draws.

  Attributes:
    num_steps: evaluations of the network per token. final_num_steps: those of
      the last step's tokens; None for as many.
    has_temperature: whether a temperature changes what is drawn.
    PRESETS: changes by name, of settings without final_num_steps.
  """

  kind: str
  num_steps: int
  final_num_steps: int | None
  has_temperature: bool
  PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]]

  def walk(self) -> PyTree:
    """The same as arrays: other numbers need no other program."""


@runtime_checkable
class HeadConfig(Protocol):
  """The shape of a head.

  Attributes:
    token_shape: of one token. num_codes: V where a token is one of V codes, an
      int32 of shape (); 0 where it is floats.
    noise_shape: of the random numbers that one evaluation takes for a token.
    dtype: of the matmuls.
  """

  kind: str
  Settings: ClassVar[type]
  token_shape: tuple[int, ...]
  num_codes: int
  noise_shape: tuple[int, ...]
  dtype: str

  def build(self) -> nn.Module:
    """The module of this shape, a `Head`."""

  def row_cost(self, settings: HeadSettings, z_width: int) -> float:
    """Multiplications to draw one token with these settings, of z [z_width]."""

  def is_float32(self, path: tuple[str, ...]) -> bool:
    """Whether the parameter of that path stays float32 in every dtype."""


class Head(Protocol):
  """z ↔ the distribution of one token."""

  def loss(
    self, z: Array, target: Array, weights: Array, *, key: Any, draws: Any
  ) -> dict[str, Scalar]:
    """ "loss", and what it is made of, as means over weighted tokens."""

  def sample(
    self,
    z: Array,
    settings: Any,
    *,
    key: Any,
    noise: Any,
    temperature: Any,
    guidance: Any,
  ) -> Array:
    """One token [*batch, *token_shape] for each z [*batch, W]."""


@runtime_checkable
class Noise(Protocol):
  """Random numbers of tokens; the batch's axes come first in every leaf."""

  def initial(self, shape: tuple[int, ...]) -> Array:
    """What every token starts from, [*batch, *shape]."""

  def at_steps(self, indices: Array, shape: tuple[int, ...]) -> Array:
    """Of evaluations by how many are left [C], [C, *batch, *shape]."""

  def check(
    self,
    batch: tuple[int, ...],
    shape: tuple[int, ...],
    num_steps: int,
    name: str,
  ) -> None:
    """Refuses noise of other tokens with a ValueError that calls it `name`."""
