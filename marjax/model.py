"""The model: backbone and head as one linen module, and all kinds of parts.

Training, `loss`:

1. Draw what the backbone needs (order, known tokens), hide some conditions.
2. Permute the tokens once by the generation order.
3. The backbone gives z of the tokens that it predicts, the head their loss.

Generation (`marjax.generate`) uses `start`, `step` and `sample`. This is the
only place where backbone and head meet, and where each kind of part is named.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PyTree

from marjax import keys, schema
from marjax.arrays import (
  Counts,
  ImageKeys,
  Leaf,
  Order,
  Scalar,
  Tokens,
  token_dtype,
)
from marjax.backbone.causal import CausalConfig
from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.guided import GuidedConfig
from marjax.backbone.masked import MaskedConfig
from marjax.head.categorical import CategoricalHeadConfig
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.flow import FlowHeadConfig
from marjax.head.regression import RegressionHeadConfig
from marjax.latents.codebook import CodebookConfig
from marjax.latents.kl import KLConfig
from marjax.latents.pixels import PixelsConfig
from marjax.latents.vq import VQConfig
from marjax.layers.plain import Plain
from marjax.protocols import (
  BackboneConfig,
  Codec,
  Condition,
  HeadConfig,
  HeadSettings,
)
from marjax.schema import check
from marjax.tokens.order import to_order_space


def register(protocol: type, *configs: type) -> None:
  """Makes kinds of parts known to config files and checkpoints.

  Args:
    protocol: `Codec`, `Condition`, `BackboneConfig` or `HeadConfig`, of
      `marjax.protocols`. configs: made by `schema.config`; the `kind` is what
      each is called.
  """
  schema.register(protocol, *configs)
  if protocol is HeadConfig:
    schema.register(HeadSettings, *(config.Settings for config in configs))


register(Codec, PixelsConfig, KLConfig, CodebookConfig, VQConfig)
register(Condition, ClassesConfig)
register(BackboneConfig, MaskedConfig, CausalConfig, GuidedConfig)
register(HeadConfig, DiffusionHeadConfig, FlowHeadConfig, RegressionHeadConfig)
register(HeadConfig, CategoricalHeadConfig)


@schema.config
class ModelConfig:
  """Backbone and head of one model, hashable."""

  backbone: BackboneConfig
  head: HeadConfig

  def __post_init__(self):
    own, other = map(token_words, (self.backbone, self.head))
    check(
      own == other,
      f"the backbone takes tokens that are {own} and the {self.head.kind} head"
      f" draws {other}; make them equal, by token_dim or by num_codes.",
    )

  def build(self) -> "MarModel":
    """The linen module of this shape."""
    return MarModel(self)

  def in_dtype(self, dtype: str) -> "ModelConfig":
    """The same model with another dtype of its matmuls."""
    return ModelConfig(
      dataclasses.replace(self.backbone, dtype=dtype),
      dataclasses.replace(self.head, dtype=dtype),
    )


def token_words(part: BackboneConfig | HeadConfig | Codec) -> str:
  """What a part's tokens are, for messages."""
  if part.num_codes:
    return f"codes 0 .. {part.num_codes - 1}"
  return f"floats of shape {part.token_shape}"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingDraws:
  """Everything random about the loss of one batch, but dropout.

  Attributes:
    backbone: what `config.backbone.draw` gives, with the `order` [B, L].
    condition: of each image [B, ...], nothing where it is hidden.
    head: one key per token [B, L], or what the head draws from it; in order
      space.
  """

  backbone: Leaf
  condition: Leaf
  head: Leaf


class MarModel(Plain):
  """Masked autoregressive model; see the module docstring."""

  config: ModelConfig

  def setup(self):
    self.backbone = self.config.backbone.build()
    self.head = self.config.head.build()

  def __call__(self, tokens: Tokens, draws: TrainingDraws) -> dict[str, Scalar]:
    """The loss without dropout; also what initialises all parameters."""
    return self.loss(tokens, draws, deterministic=True)

  def loss(
    self, tokens: Tokens, draws: TrainingDraws, *, deterministic: bool = False
  ) -> dict[str, Scalar]:
    """The head's losses, as means over all predicted tokens of the batch.

    Args:
      tokens: [B, L, *token] in raster order; B a multiple of what the backbone
        says.
      draws: see `draw`.
      deterministic: True turns dropout off.
    """
    x = to_order_space(tokens, draws.backbone.order)
    z, weights = self.backbone.training_z(
      x, draws.backbone, draws.condition, deterministic
    )
    z, x, weights, drawn = jax.tree.map(
      self.backbone.rows, (z, x, weights, draws.head)
    )
    given = {"key" if keys.is_keys(drawn) else "draws": drawn}
    return self.head.loss(z, x, weights, **given)

  def start(self, condition: PyTree, order: Order, known: Any = None) -> PyTree:
    """The backbone's state before the first step of a generation."""
    return self.backbone.start(condition, order, known)

  def step(
    self,
    state: PyTree,
    tokens: Any,
    num_known: Counts,
    window: Any = None,
    num_new: int = 1,
  ) -> tuple[Float[Array, "B Q W"], PyTree]:
    """z of tokens in order space, see `Backbone.step`, and the next state."""
    return self.backbone.step(state, tokens, num_known, window, num_new)

  def z(
    self,
    known: Num[Array, "B K *token"],
    num_known: Counts,
    order: Order,
    condition: PyTree,
    window: Int[Array, " Q"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """z of every token, or of a window, in order space, without dropout."""
    state = self.start(condition, order)
    return self.step(state, known, num_known, window)[0]

  def sample(self, z, settings, **kwargs) -> Array:
    """One token per z; arguments as `MLPHead.sample`."""
    return self.head.sample(z, settings, **kwargs)


def draw(
  config: ModelConfig, image_keys: ImageKeys, condition: PyTree
) -> TrainingDraws:
  """Draws everything random about one batch's loss.

  Args:
    config: of the model.
    image_keys: one key per image [B], already folded with step and image id.
    condition: what each image is [B, ...].
  """
  kind = config.backbone.condition
  backbone = config.backbone.draw(image_keys)
  chance = keys.uniform(keys.each(image_keys, "label dropout"))
  is_hidden = chance < kind.dropout

  def hide(nothing, own):
    return jnp.where(
      is_hidden.reshape(-1, *(1,) * (own.ndim - 1)), nothing, own
    )

  nothing = kind.nothing(image_keys.shape[0])
  head = keys.at(keys.each(image_keys, "diffusion loss"), backbone.order)
  return TrainingDraws(backbone, jax.tree.map(hide, nothing, condition), head)


def init_params(config: ModelConfig, key):
  """Boxed parameters (with logical axis names) of a new model.

  Call it inside jit with out_shardings, or under `jax.eval_shape`.
  """
  batch, c = config.backbone.batch_multiple, config.backbone
  draws = draw(
    config, keys.at(key, jnp.arange(batch)), c.condition.nothing(batch)
  )
  shape = (batch, c.num_tokens, *c.token_shape)
  tokens = jnp.zeros(shape, token_dtype(c.num_codes))
  return config.build().boxed_init(key, tokens, draws)["params"]


@functools.lru_cache(maxsize=8)
def param_shapes(config: ModelConfig) -> PyTree:
  """Boxed parameters of a new model, abstract."""
  return jax.eval_shape(lambda: init_params(config, keys.root(0)))


def in_matmul_dtype(config: ModelConfig, params: PyTree) -> PyTree:
  """Parameters with what only enters matrix products in the dtype of those.

  Every `Linear` would round its weights to the same numbers itself; XLA leaves
  such a conversion inside the loops that use it. Without a gradient only.
  """

  def convert(path, leaf):
    name, *names = [entry.key for entry in path]
    part = getattr(config, name)
    return leaf if part.is_float32(tuple(names)) else leaf.astype(part.dtype)

  return jax.tree_util.tree_map_with_path(convert, params)
