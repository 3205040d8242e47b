"""The MAR model: backbone and head as one linen module.

Training, `loss`:

1. Draw per image: generation order, number of known tokens, hidden label.
2. Permute the tokens once by that order; known tokens are now a prefix.
3. Encode the strata's prefixes side by side, each at its own static length;
   decode all slots: z.
4. Slice the tokens that can be unknown, and give them to the head's loss;
   those that happen to be known weigh 0.

Generation (`marjax.generate`) uses `z` and `sample`. This is the only place
where backbone and head meet.
"""

from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from marjax import keys, schema
from marjax.arrays import (
  NO_LABEL,
  Counts,
  ImageKeys,
  Labels,
  Leaf,
  Order,
  Tokens,
)
from marjax.backbone.masked import MaskedBackbone, MaskedConfig
from marjax.head.diffusion import DiffusionHeadConfig, HeadLoss
from marjax.head.noise import LossDraws
from marjax.head.regression import RegressionHeadConfig
from marjax.schema import check
from marjax.tokens.masking import MaskConfig
from marjax.tokens.order import random_orders, to_order_space

HeadConfig = DiffusionHeadConfig | RegressionHeadConfig


@schema.config
class ModelConfig:
  """Backbone, head and training masks of one model, hashable."""

  backbone: MaskedConfig
  head: DiffusionHeadConfig | RegressionHeadConfig
  masking: MaskConfig = field(default_factory=MaskConfig)

  def __post_init__(self):
    check(
      self.backbone.token_dim == self.head.token_dim,
      f"backbone.token_dim is {self.backbone.token_dim} but head.token_dim is"
      f" {self.head.token_dim}; make them equal.",
    )

  def build(self) -> "MarModel":
    """The linen module of this shape."""
    return MarModel(self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingDraws:
  """Everything random about the loss of one batch, but dropout.

  Attributes:
    order: generation order [B, L]. num_known: [B].
    labels: [B], -1 where the class is hidden.
    head: one key per token [B, L], or recorded `LossDraws`, in order space.
  """

  order: Leaf
  num_known: Leaf
  labels: Leaf
  head: Leaf


class MarModel(nn.Module):
  """Masked autoregressive model; see the module docstring."""

  config: ModelConfig

  def setup(self):
    self.backbone = MaskedBackbone(self.config.backbone)
    self.head = self.config.head.build()

  def __call__(self, tokens: Tokens, draws: TrainingDraws) -> HeadLoss:
    """The loss without dropout; also what initialises all parameters."""
    return self.loss(tokens, draws, deterministic=True)

  def loss(
    self, tokens: Tokens, draws: TrainingDraws, *, deterministic: bool = False
  ) -> HeadLoss:
    """Mean loss over all unknown tokens of the batch.

    Args:
      tokens: [B, L, D] in raster order; B a multiple of masking.num_strata.
      draws: see `draw`.
      deterministic: True turns dropout off.
    """
    x = to_order_space(tokens, draws.order)
    z = self._z_by_strata(x, draws, deterministic)
    is_unknown = jnp.arange(x.shape[1]) >= draws.num_known[:, None]

    def rows(values):
      return self._possibly_unknown(values)

    is_keyed = not isinstance(draws.head, LossDraws)
    head_draws = jax.tree.map(rows, draws.head)
    return self.head.loss(
      rows(z),
      rows(x),
      rows(is_unknown).astype(jnp.float32),
      key=head_draws if is_keyed else None,
      draws=None if is_keyed else head_draws,
    )

  def z(
    self,
    known: Float[Array, "B K D"],
    num_known: Counts,
    order: Order,
    labels: Labels,
    window: Int[Array, " Q"] | None = None,
  ) -> Float[Array, "B Q W"]:
    """z of every token, or of a window, in order space, without dropout."""
    return self.backbone(known, num_known, order, labels, window=window)

  def sample(self, z, settings, **kwargs):
    """One token per z; arguments as `DiffusionHead.sample`."""
    return self.head.sample(z, settings, **kwargs)

  def _bounds(self) -> tuple[tuple[int, int], ...]:
    c = self.config
    return c.masking.known_bounds(c.backbone.num_tokens)

  def _z_by_strata(self, x, draws, deterministic):
    """Encoder at each stratum's length, decoder over the whole batch."""
    bounds = self._bounds()
    longest = max(most for _, most in bounds)

    def stratum(values, g):
      return values.reshape(-1, len(bounds), *values.shape[1:])[:, g]

    parts = [
      (
        stratum(x, g)[:, :most],
        stratum(draws.num_known, g),
        stratum(draws.order, g),
        stratum(draws.labels, g),
      )
      for g, (_, most) in enumerate(bounds)
    ]
    encoded = [
      jnp.pad(slots, ((0, 0), (0, longest - most), (0, 0)))
      for slots, (_, most) in zip(
        self.backbone.encode_all(parts, deterministic=deterministic),
        bounds,
        strict=True,
      )
    ]
    encoded = jnp.stack(encoded, axis=1).reshape(-1, *encoded[0].shape[1:])
    return self.backbone.decode(
      encoded, draws.num_known, draws.order, deterministic=deterministic
    )

  def _possibly_unknown(self, values):
    """[B, L, ...] to [B / G, U, ...]: each stratum's suffix, side by side."""
    bounds = self._bounds()
    grouped = values.reshape(-1, len(bounds), *values.shape[1:])
    return jnp.concatenate(
      [grouped[:, g, fewest:] for g, (fewest, _) in enumerate(bounds)], axis=1
    )


def draw(
  config: ModelConfig, image_keys: ImageKeys, labels: Labels
) -> TrainingDraws:
  """Draws everything random about one batch's loss.

  Args:
    config: of the model.
    image_keys: one key per image [B], already folded with step and image id.
    labels: true classes [B].
  """
  c = config.backbone

  def purpose(name: str) -> ImageKeys:
    return jax.vmap(lambda key: keys.stream(key, name))(image_keys)

  order = random_orders(purpose("order"), c.num_tokens)
  is_hidden = keys.uniform(purpose("label dropout")) < c.label_dropout
  return TrainingDraws(
    order=order,
    num_known=config.masking.draw_num_known(purpose("mask"), c.num_tokens),
    labels=jnp.where(is_hidden, NO_LABEL, labels),
    head=keys.at(purpose("diffusion loss"), order),
  )


def init_params(config: ModelConfig, key):
  """Boxed parameters (with logical axis names) of a new model.

  Call it inside jit with out_shardings, or under `jax.eval_shape`.
  """
  batch = config.masking.num_strata
  labels = jnp.zeros((batch,), jnp.int32)
  draws = draw(config, keys.at(key, jnp.arange(batch)), labels)
  shape = (batch, config.backbone.num_tokens, config.backbone.token_dim)
  return config.build().init(key, jnp.zeros(shape), draws)["params"]


FLOAT32_LAYERS = ("embed_x", "time_in", "time_out", "final_linear")
"""Linear layers of the head that are float32 in every configuration."""


def in_matmul_dtype(config: ModelConfig, params: PyTree) -> PyTree:
  """Parameters with what only enters matrix products in the dtype of those.

  Every `Linear` would round its weights to the same numbers itself; XLA leaves
  such a conversion inside the loops that use it. Without a gradient only.
  """

  def convert(path, leaf):
    names = [entry.key for entry in path]
    is_linear = names[-1] in ("kernel", "bias") and not any(
      "norm" in name or name in FLOAT32_LAYERS for name in names
    )
    part = config.backbone if names[0] == "backbone" else config.head
    return leaf.astype(part.dtype) if is_linear else leaf

  return jax.tree_util.tree_map_with_path(convert, params)
