"""The optimizer: clip, direction, decay mask, warm-up, EMA (spec section 6).

1. Clip the global gradient norm.
2. AdamW, as MAR trains; weight decay on kernels, tables and tokens of the
   backbone, none on biases, norms and everything in the head. Or Muon: kernels
   between the first and the last layer take the nearest orthogonal matrix of
   their momentum, as large as updates of Adam are, so that learning rates and
   decay mean the same (arXiv 2502.16982); all else is Adam's, without decay.
   Momentum is Nesterov's in both.
3. Learning rate: linear from 0 over the warm-up, then constant or cosine to 0.
   A run that goes on with more steps has, from there on, the rates of a run of
   that length: a cosine leaves 0 again.
4. Each parameter's update, its decay too, times its factor.
5. EMA of the parameters after each update.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from optax import contrib

from marjax.arrays import named
from marjax.backbone.embeddings import CODE_VECTORS
from marjax.experiment import TrainingConfig
from marjax.train.trained import factor

_UNDECAYED = ("bias", "scale", CODE_VECTORS, "down", "up")

_ENDS = ("embed_token", "embed_x", "time_in", "final_linear", "linear")
"""Layers whose inputs or outputs are data, which Muon leaves to Adam."""

_MUON_SIZE = 0.2
"""Root mean square of an update that is orthogonal, about that of Adam's."""


def learning_rate(config: TrainingConfig, num_examples: int) -> optax.Schedule:
  """Step to learning rate, for a training set of num_examples images."""
  peak = config.peak_learning_rate()
  warmup = config.warmup(num_examples)
  total = config.steps(num_examples)

  def schedule(step):
    ramp = jnp.minimum(step / warmup, 1.0) if warmup else 1.0
    if config.schedule == "constant":
      return peak * ramp
    share = jnp.clip((step - warmup) / max(total - warmup, 1.0), 0.0, 1.0)
    return peak * ramp * 0.5 * (1.0 + jnp.cos(jnp.pi * share))

  return schedule


def is_decayed(params: PyTree) -> PyTree:
  """For each parameter: does weight decay apply to it?"""

  def decide(path, _):
    names = [entry.key for entry in path]
    return names[0] != "head" and names[-1] not in _UNDECAYED

  return jax.tree_util.tree_map_with_path(decide, params)


def matrices(params: PyTree) -> PyTree:
  """For each parameter: its axes as matrices for Muon, None for Adam's."""

  def decide(path, leaf):
    names = [entry.key for entry in path]
    if names[-1] != "kernel" or names[-2] in _ENDS:
      return None
    begin = int("layers" in names)
    inputs = 2 if names[-2] == "projection" else 1
    # Queries, keys and values are a matrix each.
    outputs = begin + inputs + int(names[-2] == "qkv")
    return contrib.MuonDimensionNumbers(
      tuple(range(begin, begin + inputs)), tuple(range(outputs, leaf.ndim))
    )

  return jax.tree_util.tree_map_with_path(decide, params)


def make_optimizer(
  config: TrainingConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Clip, then the updates of AdamW or Muon, at the schedule's learning rate.

  It takes what is trained of the parameters, see `marjax.train.trained`.
  """
  if config.optimizer == "muon":
    updates = contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      weight_decay_mask=is_decayed,
      adam_b1=config.adam_b1,
      adam_b2=config.adam_b2,
      adam_learning_rate=schedule,
      muon_weight_dimension_numbers=matrices,
      consistent_rms=_MUON_SIZE,
    )
  else:
    updates = optax.adamw(
      schedule,
      b1=config.adam_b1,
      b2=config.adam_b2,
      weight_decay=config.weight_decay,
      mask=is_decayed,
    )
  steps = [optax.clip_by_global_norm(config.clip_norm), updates]
  if any(number not in (0.0, 1.0) for _, number in config.factors):
    steps.append(optax.stateless(lambda updates, _: _scaled(config, updates)))
  return optax.chain(*steps)


def _scaled(config: TrainingConfig, updates: PyTree) -> PyTree:
  """Each update times the factor of its parameter."""
  scaled = [
    leaf * factor(config, name) for name, leaf in named(updates).items()
  ]
  return jax.tree.structure(updates).unflatten(scaled)


def update_ema(config: TrainingConfig, ema: PyTree, params: PyTree, step):
  """The moving average after optimizer step number `step` (from 0)."""
  rate = config.ema_rate
  if config.ema_warmup:
    rate = jnp.minimum(rate, (1.0 + step) / (10.0 + step))
  return jax.tree.map(
    lambda old, new: rate * old + (1.0 - rate) * new, ema, params
  )
