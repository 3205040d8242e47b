"""Times the training step, and its parts by themselves.

1. One optimizer step on a batch that is already on the device, compiled ahead
   of time, on all devices.
2. The transformer alone: draws, forward and backward, with the control's head
   of one narrow block.
3. The head alone: forward and backward of its loss, with respect to its
   parameters and to a given z.
4. What is left is the rest: AdamW and moving average.
"""

import dataclasses
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from benchmarks import needed, timing
from benchmarks.generation import make_params, without_diffusion
from marjax.experiment import Experiment
from marjax.generate.settings import Settings
from marjax.parallel.compiler import compiler_options
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import RULES, batch_sharding
from marjax.train import flops
from marjax.train.gradients import (
  batch_shapes,
  draw_for,
  loss_and_gradient,
)
from marjax.train.step import make_train_program

IMAGENET_IMAGES = 1_281_167


def time_training(experiment: Experiment, repeats: int, is_split: bool) -> dict:
  """Columns of one optimizer step on all devices."""
  mesh = make_mesh()
  program = make_train_program(experiment, mesh, IMAGENET_IMAGES)
  state, batch = program.init(), random_batch(experiment)
  placed = jax.device_put(batch, batch_sharding(program.mesh))
  parameters = timing.count_parameters(state.params)
  jax.block_until_ready((state, placed))
  before, size = timing.peak_memory(), experiment.training.batch_size
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    step = program.step.lower(state, placed).compile()
  compile_seconds = time.perf_counter() - start

  def call():
    nonlocal state
    state, metrics = step(state, placed)
    return metrics

  jax.block_until_ready(call())
  first_call_seconds = time.perf_counter() - start
  seconds = timing.rounds(call, repeats)
  done = 3 * flops.count(forward(experiment), state.params, batch)
  found = timing.rates(seconds, size, done)
  found.update(timing.new_peak(before))
  params = state.params
  state = None
  if is_split:
    whole = found["seconds"]
    found.update(split(experiment, mesh, params, placed, whole, repeats))
  work = timing.Work(done, *needed.of_training(experiment.model, size))
  return {
    **found,
    **timing.floors(found["seconds"], work, jax.device_count()),
    "compile_seconds": round(compile_seconds, 2),
    "first_call_seconds": round(first_call_seconds, 2),
    "memory_bytes": timing.memory(step),
    "parameters": parameters,
    "remat": experiment.model.backbone.remat,
    "data": "pixels" if "image" in batch else "latents",
  }


def random_batch(experiment: Experiment) -> dict[str, np.ndarray]:
  """A batch of noise with labels and ids, as training takes it."""
  rng = np.random.default_rng(0)
  shapes = batch_shapes(experiment)
  size = experiment.training.batch_size
  batch = {
    "label": rng.integers(0, experiment.data.num_classes, size),
    "id": np.arange(size),
  }
  if "ids" in shapes:
    count = experiment.codec.num_codes
    batch["ids"] = rng.integers(0, count, shapes["ids"].shape)
  elif "moments" in shapes:
    batch["moments"] = rng.standard_normal(shapes["moments"].shape, np.float32)
  else:
    batch["image"] = rng.uniform(-1, 1, shapes["image"].shape)
  return {
    name: array.astype(shapes[name].dtype) for name, array in batch.items()
  }


def forward(experiment: Experiment) -> Callable:
  """(params, batch) to the loss, without dropout: what FLOPs are counted in."""
  config = experiment.model

  def loss(params, batch):
    tokens, draws = draw_for(experiment, batch, 0)
    return config.build().apply({"params": params}, tokens, draws)["loss"]

  return loss


def split(
  experiment: Experiment, mesh, params, batch, whole: float, repeats: int
) -> dict[str, float]:
  """Columns of how the seconds are shared out."""
  with jax.set_mesh(mesh):
    transformer = transformer_alone(experiment, mesh, params, batch)
    transformer = timing.rounds(transformer, repeats)
    head = timing.rounds(head_alone(experiment, mesh, params), repeats)
  return timing.parts(whole, transformer, head)


def transformer_alone(experiment: Experiment, mesh, params, batch) -> Callable:
  """A call that gives the gradient with a head that costs next to nothing."""
  config = without_diffusion(experiment.model)
  alone = dataclasses.replace(experiment, model=config, sampling=Settings())
  fresh = make_params(config, mesh)
  params = {**fresh, "backbone": params["backbone"]}

  @jax.jit
  def gradient(params, batch):
    with nn.logical_axis_rules(RULES):
      drawn = draw_for(alone, batch, 0)
      return loss_and_gradient(alone, params, *drawn, 0)[1]

  compiled = gradient.lower(params, batch).compile(compiler_options(mesh))
  return lambda: compiled(params, batch)


def head_alone(experiment: Experiment, mesh, params) -> Callable:
  """A call that gives the gradient of the head's loss, also to z.

  It has as many tokens as the model's loss, weighing 1: all, or of each stratum
  of a masked backbone those that can be unknown.
  """
  config, placed = experiment.model, batch_sharding(mesh)
  shape = _predicted(experiment)

  @jax.jit
  def inputs():
    key = jax.random.key(0)
    z = jax.random.normal(key, (*shape, config.backbone.width))
    tokens = (*shape, *config.head.token_shape)
    if config.head.num_codes:
      target = jax.random.randint(key, tokens, 0, config.head.num_codes)
    else:
      target = jax.random.normal(key, tokens)
    return z, target, jax.random.split(key, shape)

  @jax.jit
  def gradient(params, z, target, row_keys):
    def loss(params, z):
      return config.head.build().apply(
        {"params": params}, z, target, key=row_keys, method="loss"
      )["loss"]

    with nn.logical_axis_rules(RULES):
      return jax.grad(loss, argnums=(0, 1))(params, z)

  arguments = (params["head"], *jax.device_put(inputs(), placed))
  compiled = gradient.lower(*arguments).compile(compiler_options(mesh))
  return lambda: compiled(*arguments)


def _predicted(experiment: Experiment) -> tuple[int, ...]:
  """Rows and columns of the tokens that the loss is the mean of."""
  backbone = experiment.model.backbone
  params = needed.abstract_params(experiment.model)["backbone"]
  shape = (experiment.training.batch_size, backbone.num_tokens)

  def rows(params, values):
    return backbone.build().apply({"params": params}, values, method="rows")

  values = jax.ShapeDtypeStruct(shape, "float32")
  return jax.eval_shape(rows, params, values).shape
