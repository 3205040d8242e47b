"""One training step, and the state it starts from, placed on a mesh.

1. Loss and gradient of the batch (`marjax.train.gradients`).
2. Clip, AdamW or Muon, EMA, of what is trained (`marjax.train.trained`).

Shapes come before values and shardings before arrays: the abstract state gives
the shardings, and `jit(init, out_shardings)` makes each shard on its device.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.tree_util import DictKey
from jaxtyping import PyTree

from marjax import keys
from marjax.arrays import named
from marjax.backbone.embeddings import CODE_VECTORS
from marjax.experiment import Experiment, TrainingConfig
from marjax.layers import lora
from marjax.model import TrainingDraws, init_params, param_shapes
from marjax.parallel import rules
from marjax.parallel.compiler import compiler_options
from marjax.train.gradients import (
  Batch,
  batch_shapes,
  draw_for,
  loss_and_gradient,
)
from marjax.train.optimizer import (
  learning_rate,
  make_optimizer,
  update_ema,
)
from marjax.train.state import TrainState
from marjax.train.trained import joined, split


@dataclass(frozen=True)
class TrainProgram:
  """The jitted pieces of training and where their arrays live.

  Attributes:
    mesh: the devices.
    abstract_state: shapes, dtypes and shardings of the state.
    abstract_batch: the same of a batch, by name.
    init: () to the state at step 0.
    step: (state, batch) to (state, metrics); the state is donated.
  """

  mesh: Mesh
  abstract_state: TrainState
  abstract_batch: dict[str, jax.ShapeDtypeStruct]
  init: Callable[[], TrainState]
  step: Callable[[TrainState, Batch], tuple[TrainState, dict]]


def make_train_program(
  experiment: Experiment,
  mesh: Mesh,
  num_examples: int,
  codec_params: PyTree = None,
) -> TrainProgram:
  """Builds init and step for a mesh; nothing is computed yet.

  Args:
    experiment: all of it. mesh: from `marjax.parallel.mesh.make_mesh`.
    num_examples: size of the training set, which epochs are counted in.
    codec_params: numpy arrays, of a codec that has some, where its records are
      no cache or the backbone takes its code vectors; what the step uses of
      them is constant in it, so they should be small.
  """
  training = experiment.training
  schedule = learning_rate(training, num_examples)
  optimizer = make_optimizer(training, schedule)

  def first_state(fresh: PyTree) -> TrainState:
    params = with_code_vectors(experiment, fresh, codec_params)
    return _first_state(training, params, optimizer)

  def init() -> TrainState:
    return first_state(nn.unbox(_boxed_params(experiment)))

  with_factors = functools.partial(_with_factors, experiment)
  boxed = jax.eval_shape(with_factors, param_shapes(experiment.model))
  abstract = jax.eval_shape(first_state, nn.unbox(boxed))
  params_placed = rules.shardings(boxed, mesh)
  trained_placed = split(training, params_placed)[0]
  placed = _like_params(abstract, params_placed, mesh)
  batches = rules.batch_sharding(mesh)

  fixed = functools.partial(train_step, experiment, optimizer, schedule)

  def step(state: TrainState, batch: Batch):
    with nn.logical_axis_rules(rules.RULES):
      return fixed(state, batch, trained_placed, codec_params=codec_params)

  return TrainProgram(
    mesh=mesh,
    abstract_state=rules.placed(abstract, placed),
    abstract_batch=rules.placed(batch_shapes(experiment), batches),
    init=_within(mesh, jax.jit(init, out_shardings=placed)),
    step=_within(
      mesh,
      jax.jit(
        step,
        in_shardings=(placed, batches),
        out_shardings=(placed, rules.replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
      ),
    ),
  )


def train_step(
  experiment: Experiment,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  state: TrainState,
  batch: Batch,
  placed: PyTree | None = None,
  *,
  draws: TrainingDraws | None = None,
  deterministic: bool = False,
  codec_params: PyTree = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """State and metrics after one step on a batch of `batch_shapes`.

  Metrics are float32 scalars: the head's losses, grad_norm (before clipping),
  update_norm, learning_rate.

  Args:
    experiment, optimizer, schedule: of the run.
    state, batch: what enters the step.
    placed: shardings of the gradient, which is placed like the parameters
      that are trained.
    draws: recorded order, masks and loss draws, to replay a step; None draws
      them by seed, step and image. deterministic: True turns dropout off.
    codec_params: as in `make_train_program`.
  """
  tokens, drawn = draw_for(experiment, batch, state.step, codec_params)
  losses, grads = loss_and_gradient(
    experiment,
    state.params,
    tokens,
    drawn if draws is None else draws,
    state.step,
    deterministic=deterministic,
  )
  if placed is not None:
    grads = jax.lax.with_sharding_constraint(grads, placed)
  training = experiment.training
  trained, frozen = split(training, state.params)
  averages, frozen_averages = split(training, state.ema_params)
  with jax.named_scope("optimizer"):
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
  with jax.named_scope("ema"):
    averages = update_ema(training, averages, trained, state.step)
  metrics = {
    **losses,
    "grad_norm": optax.tree.norm(grads),
    "update_norm": optax.tree.norm(updates),
    "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
  }
  new_state = TrainState(
    step=state.step + 1,
    params=joined(trained, frozen),
    ema_params=joined(averages, frozen_averages),
    opt_state=opt_state,
  )
  return new_state, metrics


def with_code_vectors(
  experiment: Experiment, params: PyTree, codec_params: PyTree
) -> PyTree:
  """New parameters; the codec's code vectors in place where it takes them."""
  if not (experiment.model.backbone.code_dim and codec_params):
    return params
  backbone = params["backbone"]
  vectors = experiment.codec.code_vectors(codec_params)
  embedding = {**backbone["embed_token"], CODE_VECTORS: jnp.asarray(vectors)}
  return {**params, "backbone": {**backbone, "embed_token": embedding}}


def _boxed_params(experiment: Experiment) -> PyTree:
  """New parameters, all of them, with names of axes."""
  key = keys.stream(keys.root(experiment.seed), "parameters")
  return _with_factors(experiment, init_params(experiment.model, key))


def _with_factors(experiment: Experiment, boxed: PyTree) -> PyTree:
  """Parameters, and factors of low-rank updates, with names of axes."""
  key = keys.stream(keys.root(experiment.seed), "lora")
  return lora.added(boxed, experiment.training.lora, key)


def _first_state(
  training: TrainingConfig,
  params: PyTree,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(split(training, params)[0]),
  )


def _like_params(abstract: PyTree, placed: PyTree, mesh: Mesh) -> PyTree:
  """Shardings of a whole state: whatever mirrors a parameter, like it.

  `placed`: of all parameters.
  """
  known = named(placed)

  def place(path, _):
    names = [str(entry.key) for entry in path if isinstance(entry, DictKey)]
    ends = ("/".join(names[start:]) for start in range(len(names)))
    return next((known[n] for n in ends if n in known), rules.replicated(mesh))

  return jax.tree_util.tree_map_with_path(place, abstract)


def _within(mesh: Mesh, function):
  """The function, always traced, lowered and run under this mesh."""

  def under_mesh(call):
    def run(*args):
      with jax.set_mesh(mesh):
        return call(*args)

    return run

  run = under_mesh(function)
  run.lower = under_mesh(function.lower)
  return run
