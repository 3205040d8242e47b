"""Loss and gradient of one batch, whole or in microbatches.

1. A batch becomes tokens: images through the codec; cached moments by one draw
   from each posterior, anew every step as the published program does.
2. Everything random is addressed by seed ⊕ step ⊕ image id.
3. With n microbatches, a scan works on one n-th of the batch at a time:

       images   0 1 2 3 | 4 5 6 7 | 8 9 ...      strata of 2, n = 2
       part     a a b b | a a b b | a a ...      each device keeps its own

   Each part's mean weighs as many tokens as it has, so gradients add up to
   those of the whole batch; only dropout falls elsewhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from marjax import keys
from marjax.arrays import Tokens
from marjax.experiment import Experiment
from marjax.head.diffusion import HeadLoss
from marjax.latents.kl import Moments
from marjax.layers.placed import constrained
from marjax.model import ModelConfig, TrainingDraws, draw
from marjax.tokens.patches import patchify

Batch = dict[str, Any]


def batch_shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
  """A global batch: image or moments, with label and id, all [B, ...]."""
  size, codec = experiment.training.batch_size, experiment.codec
  shapes = {
    name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ("label", "id")
  }
  if experiment.data.source == "latents":
    rows, columns, channels = codec.latent_shape
    shapes["moments"] = jax.ShapeDtypeStruct(
      (size, rows, columns, 2 * channels), jnp.float16
    )
  else:
    side = codec.image_size
    shapes["image"] = jax.ShapeDtypeStruct(
      (size, side, side, codec.channels), jnp.float32
    )
  return shapes


def tokens_of(experiment: Experiment, batch: Batch, image_keys) -> Tokens:
  """The batch's tokens [B, L, D] in raster order, float32.

  Args:
    batch: images in [-1, 1], or moments [B, rows, columns, 2C] (mean, then
      log-variance) in float16 or float32.
    image_keys: one key per image [B], folded with step and image id.
  """
  codec = experiment.codec
  if "moments" not in batch:
    return patchify(codec.encode({}, batch["image"]), codec.patch)
  moments = batch["moments"].astype(jnp.float32)
  mean, log_variance = jnp.split(moments, 2, axis=-1)
  purpose = jax.vmap(lambda key: keys.stream(key, "latents"))(image_keys)
  noise = keys.normal(purpose, mean.shape[1:])
  latents = codec.draw(Moments(mean, log_variance), noise)
  return patchify(latents, codec.patch)


def loss_and_gradient(
  experiment: Experiment, params: PyTree, batch: Batch, step
) -> tuple[HeadLoss, PyTree]:
  """Mean losses over the unknown tokens of a batch, and their gradient."""
  config = experiment.model
  root = keys.stream(keys.root(experiment.seed), "training")
  dropout = keys.at(keys.stream(root, "dropout"), step)
  with jax.named_scope("encode"):
    image_keys = keys.at(root, step, batch["id"])
    tokens = tokens_of(experiment, batch, image_keys)
  with jax.named_scope("draw"):
    draws = draw(config, image_keys, batch["label"])
  count = experiment.training.num_microbatches
  if count == 1:
    return _of_part(config, params, tokens, draws, dropout)

  def cut(array):
    return _parts(array, count, config.masking.num_strata)

  whole = _num_unknown(config, draws)

  def add(total, scanned):
    """total holds the weighted sums over the parts before this one."""
    index, tokens, draws = scanned
    part = _of_part(config, params, tokens, draws, keys.at(dropout, index))
    share = _num_unknown(config, draws) / whole
    return jax.tree.map(lambda a, b: a + share * b, total, part), None

  nothing = (HeadLoss(*jnp.zeros(3)), jax.tree.map(jnp.zeros_like, params))
  parts = (jnp.arange(count), cut(tokens), jax.tree.map(cut, draws))
  return jax.lax.scan(add, nothing, parts)[0]


def _of_part(
  config: ModelConfig, params: PyTree, tokens, draws: TrainingDraws, dropout
) -> tuple[HeadLoss, PyTree]:
  def loss_of(params):
    losses = config.build().apply(
      {"params": params},
      tokens,
      draws,
      method="loss",
      rngs={"dropout": dropout},
    )
    return losses.loss, losses

  with jax.named_scope("loss"):
    gradient, losses = jax.grad(loss_of, has_aux=True)(params)
  return losses, gradient


def _num_unknown(config: ModelConfig, draws: TrainingDraws):
  """How many tokens the loss is the mean of, float32."""
  unknown = config.backbone.num_tokens - draws.num_known
  return jnp.sum(unknown).astype(jnp.float32)


def _parts(array, count: int, num_strata: int):
  """[B, ...] to [count, B / count, ...], strata and devices undisturbed."""
  groups = array.reshape(-1, count, num_strata, *array.shape[1:])
  parts = jnp.moveaxis(groups, 1, 0).reshape(count, -1, *array.shape[1:])
  return constrained(parts, (None, "batch", *(None,) * (array.ndim - 1)))
