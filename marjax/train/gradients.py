"""Loss and gradient of one batch, whole or in microbatches.

1. A batch becomes tokens: images through the codec, with its parameters where
   it has some; cached moments by one draw from each posterior, anew every step
   as the published program does.
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
from jaxtyping import Array, PyTree

from marjax import keys
from marjax.arrays import Scalar
from marjax.experiment import Experiment
from marjax.layers.lora import merged
from marjax.layers.placed import constrained
from marjax.model import TrainingDraws, draw
from marjax.train.trained import joined, split

Losses = dict[str, Scalar]
Batch = dict[str, Any]


def batch_shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
  """A global batch: the codec's record, with label and id, all [B, ...]."""
  size = experiment.training.batch_size
  one = jax.ShapeDtypeStruct((), jnp.int32)
  shapes = {**experiment.codec.record_shapes(), "label": one, "id": one}
  return {
    name: jax.ShapeDtypeStruct((size, *shape.shape), shape.dtype)
    for name, shape in shapes.items()
  }


def draw_for(
  experiment: Experiment, batch: Batch, step, codec_params: PyTree = None
) -> tuple[Array, TrainingDraws]:
  """The batch's tokens [B, L, ...] in raster order, and draws of its loss.

  `codec_params`: of a codec that has some and whose records are no cache.
  """
  root = keys.stream(keys.root(experiment.seed), "training")
  with jax.named_scope("encode"):
    image_keys = keys.at(root, step, batch["id"])
    codec = experiment.codec
    record = {name: batch[name] for name in codec.record_shapes()}
    latent_keys = keys.each(image_keys, "latents")
    latents = codec.draw(codec_params or {}, record, latent_keys)
    tokens = codec.to_tokens(latents)
  with jax.named_scope("draw"):
    return tokens, draw(experiment.model, image_keys, batch["label"])


def loss_and_gradient(
  experiment: Experiment,
  params: PyTree,
  tokens: Array,
  draws: TrainingDraws,
  step,
  *,
  deterministic: bool = False,
) -> tuple[Losses, PyTree]:
  """Mean losses of predicted tokens, and the gradient of what is trained.

  Args:
    experiment: of the run. params: of the model, with LoRA's factors if any.
    tokens, draws: from `draw_for`, or recorded.
    step: index of the step, for dropout. deterministic: True turns that off.
  """
  config, training = experiment.model, experiment.training
  trained, frozen = split(training, params)
  root = keys.stream(keys.root(experiment.seed), "training")
  dropout = keys.at(keys.stream(root, "dropout"), step)

  def of_part(tokens, draws, key):
    def loss_of(trained):
      whole = merged(joined(trained, frozen), training.lora)
      losses = config.build().apply(
        {"params": whole},
        tokens,
        draws,
        deterministic=deterministic,
        method="loss",
        rngs={"dropout": key},
      )
      return losses["loss"], losses

    with jax.named_scope("loss"):
      gradient, losses = jax.grad(loss_of, has_aux=True)(trained)
    return losses, gradient

  count = training.num_microbatches
  if count == 1:
    return of_part(tokens, draws, dropout)

  def cut(array):
    return _parts(array, count, config.backbone.batch_multiple)

  whole = config.backbone.num_predicted(draws.backbone)

  def add(total, scanned):
    """total holds the weighted sums over the parts before this one."""
    index, tokens, draws = scanned
    part = of_part(tokens, draws, keys.at(dropout, index))
    share = config.backbone.num_predicted(draws.backbone) / whole
    return jax.tree.map(lambda a, b: a + share * b, total, part), None

  parts = jax.tree.map(cut, (tokens, draws))
  first = jax.tree.map(lambda array: array[0], parts)
  shapes = jax.eval_shape(of_part, *first, dropout)
  nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
  return jax.lax.scan(add, nothing, (jnp.arange(count), *parts))[0]


def _parts(array, count: int, num_strata: int):
  """[B, ...] to [count, B / count, ...], strata and devices undisturbed."""
  groups = array.reshape(-1, count, num_strata, *array.shape[1:])
  parts = jnp.moveaxis(groups, 1, 0).reshape(count, -1, *array.shape[1:])
  return constrained(parts, (None, "batch", *(None,) * (array.ndim - 1)))
