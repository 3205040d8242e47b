"""One training step, and the state it starts from, placed on a mesh.

1. Images to latents to tokens (the codec), in float32.
2. Draw order, mask, label dropout, timesteps and noise from
   seed ⊕ step ⊕ image id.
3. Loss and gradient, clip, AdamW, EMA.

Shapes come before values and shardings before arrays: the abstract state gives
the shardings, and `jit(init, out_shardings)` makes each shard on its device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from marjax import keys
from marjax.experiment import Experiment
from marjax.model import draw, init_params
from marjax.parallel.mesh import (
  RULES,
  batch_sharding,
  replicated,
  shardings,
)
from marjax.tokens.patches import patchify
from marjax.train.optimizer import (
  learning_rate,
  make_optimizer,
  update_ema,
)
from marjax.train.state import TrainState

Batch = dict[str, Any]


@dataclass(frozen=True)
class TrainProgram:
  """The jitted pieces of training and where their arrays live.

  Attributes:
    abstract_state: shapes, dtypes and shardings of the state.
    batch_sharding: of every array of a batch.
    init: () to the state at step 0.
    step: (state, batch) to (state, metrics); the state is donated.
  """

  abstract_state: TrainState
  batch_sharding: NamedSharding
  init: Callable[[], TrainState]
  step: Callable[[TrainState, Batch], tuple[TrainState, dict]]


def make_train_program(
  experiment: Experiment, mesh: Mesh, num_examples: int
) -> TrainProgram:
  """Builds init and step for a mesh; nothing is computed yet.

  Args:
    experiment: the whole configuration.
    mesh: from `marjax.parallel.mesh.make_mesh`.
    num_examples: size of the training set, which epochs are counted in.
  """
  schedule = learning_rate(experiment.training, num_examples)
  optimizer = make_optimizer(experiment.training, schedule)

  def boxed_params():
    key = keys.stream(keys.root(experiment.seed), "parameters")
    return init_params(experiment.model, key)

  def init() -> TrainState:
    params = nn.unbox(boxed_params())
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      ema_params=jax.tree.map(jnp.copy, params),
      opt_state=optimizer.init(params),
    )

  placed = shardings(jax.eval_shape(boxed_params), mesh)
  state_shardings = _like_params(jax.eval_shape(init), placed, mesh)
  abstract_state = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    jax.eval_shape(init),
    state_shardings,
  )

  def step(state: TrainState, batch: Batch):
    with nn.logical_axis_rules(RULES):
      return train_step(experiment, optimizer, schedule, state, batch)

  batches = batch_sharding(mesh)
  return TrainProgram(
    abstract_state=abstract_state,
    batch_sharding=batches,
    init=_within(mesh, jax.jit(init, out_shardings=state_shardings)),
    step=_within(
      mesh,
      jax.jit(
        step,
        in_shardings=(state_shardings, batches),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
      ),
    ),
  )


def train_step(
  experiment: Experiment,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  state: TrainState,
  batch: Batch,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """State and metrics after one step on {"image", "label", "id"}.

  Metrics are float32 scalars: loss, mse, vlb, grad_norm (before clipping),
  update_norm, learning_rate.
  """
  codec, config = experiment.codec, experiment.model
  tokens = patchify(codec.encode({}, batch["image"]), codec.patch)
  root = keys.stream(keys.root(experiment.seed), "training")
  image_keys = keys.at(root, state.step, batch["id"])
  draws = draw(config, image_keys, batch["label"])
  dropout = keys.at(keys.stream(root, "dropout"), state.step)

  def loss_of(params):
    losses = config.build().apply(
      {"params": params},
      tokens,
      draws,
      method="loss",
      rngs={"dropout": dropout},
    )
    return losses.loss, losses

  grads, losses = jax.grad(loss_of, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    **losses._asdict(),
    "grad_norm": optax.tree.norm(grads),
    "update_norm": optax.tree.norm(updates),
    "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
  }
  new_state = TrainState(
    step=state.step + 1,
    params=params,
    ema_params=update_ema(
      experiment.training, state.ema_params, params, state.step
    ),
    opt_state=opt_state,
  )
  return new_state, metrics


def _like_params(abstract, placed, mesh: Mesh):
  """Shardings of a whole state: whatever mirrors the parameters, like them."""
  params_tree = jax.tree.structure(placed)

  def is_params(node):
    return jax.tree.structure(node) == params_tree

  def place(node):
    if is_params(node):
      return placed
    return jax.tree.map(lambda _: replicated(mesh), node)

  return jax.tree.map(place, abstract, is_leaf=is_params)


def _within(mesh: Mesh, function):
  """The function, always traced and run under this mesh."""

  def run(*args):
    with jax.set_mesh(mesh):
      return function(*args)

  run.lower = function.lower
  return run
