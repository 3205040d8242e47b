"""The very programs that training and generation run, lowered but not run.

1. Training: the step of `marjax.train.step` with abstract state and batch.
2. Generation: `requests.batching`'s begin, each segment, and finish, one after
   the other, so that each is lowered with the placement that the one before it
   gave its results.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from marjax import keys
from marjax.experiment import Experiment
from marjax.generate import reveal
from marjax.generate.draws import draw_batch
from marjax.parallel.compiler import compiler_options
from marjax.parallel.mesh import host_mesh
from marjax.parallel.rules import batch_sharding, replicated
from marjax.preflight import parts
from marjax.release.workdir import abstract_params
from marjax.requests import batching, compiled
from marjax.train import flops
from marjax.train.flops import training_flops
from marjax.train.step import make_train_program


@dataclass(frozen=True, eq=False)
class Program:
  """One compiled program and what is known of it beforehand.

  Attributes:
    name: for people. compiled: by XLA.
    held: name of a part → bytes of it on one chip, among the arguments.
  """

  name: str
  compiled: Any
  held: dict[str, float]


def held(experiment: Experiment, mesh: Mesh, program: str) -> dict[str, float]:
  """Part → bytes of it that one chip holds through every step."""
  if program == "generate":
    params = abstract_params(experiment.model, mesh)
    return {"parameters": bytes_per_chip(params)}
  made = make_train_program(experiment, mesh, num_examples=10**6)
  state = made.abstract_state
  return {
    "parameters": bytes_per_chip(state.params),
    "averages": bytes_per_chip(state.ema_params),
    "optimizer": bytes_per_chip(state.opt_state),
    "batch": bytes_per_chip(made.abstract_batch),
  }


def train_programs(
  experiment: Experiment, mesh: Mesh, num_examples: int
) -> Iterator[Program]:
  """The training step, as its only program."""
  program = make_train_program(experiment, mesh, num_examples)
  lowered = program.step.lower(program.abstract_state, program.abstract_batch)
  yield Program("step", lowered.compile(), held(experiment, mesh, "train"))


def useful_train_flops(experiment: Experiment) -> float:
  """Of one step, over all chips, without recomputation."""
  return training_flops(experiment.model) * experiment.training.batch_size


def generate_programs(
  experiment: Experiment, mesh: Mesh, size: int
) -> Iterator[Program]:
  """The programs of one device batch of `size` images, guided as configured."""
  settings = experiment.sampling.resolved(experiment.codec.num_tokens)
  static = reveal.static_for(experiment.model, settings)
  params = abstract_params(experiment.model, mesh)
  kept = held(experiment, mesh, "generate")
  labels, draws, scales, temperature = _inputs(static, mesh, size)
  with jax.set_mesh(mesh):
    first = compiled.Program(batching.begin, (static,), (labels, draws, None))
    started = first.lowered()
    program = started.compile()
    yield Program("begin", program, {})
    carry, fixed = _placed(started.out_info, program)
    for index, segment in enumerate(static.plan.segments):
      walk = _with(static.walk(index), replicated(mesh))
      lowered = batching.segment_program(
        *(static, index, False, params, carry, fixed, scales, temperature, walk)
      ).lowered()
      program = lowered.compile(compiler_options(mesh))
      yield Program(
        f"steps {segment.first_step} to {segment.end - 1}", program, kept
      )
      carry, _ = _placed(lowered.out_info, program)
    last = compiled.Program(batching.finish, (static,), (carry, fixed, None))
    yield Program("finish", last.lowered().compile(), {})


def plan_padding(experiment: Experiment) -> tuple[parts.Padding, ...]:
  """What the plan of a generation pads, segment by segment."""
  settings = experiment.sampling.resolved(experiment.codec.num_tokens)
  plan = reveal.plan_for(experiment.model, settings)
  return parts.padding(plan, experiment.model.backbone.num_buffer)


def useful_generate_flops(experiment: Experiment, size: int) -> Counter[str]:
  """Of one device batch, over all chips, were nothing padded; by part."""
  settings = experiment.sampling.resolved(experiment.codec.num_tokens)
  exact = dataclasses.replace(settings, num_buckets=settings.num_ar_steps)
  static = reveal.static_for(experiment.model, exact)
  shapes = [strip(shape) for shape in _shapes(static, size)]
  params = strip(abstract_params(experiment.model, host_mesh()))

  def generate(params, *rest):
    return reveal.generate(static, params, *rest)

  found = Counter()
  for scope, number in flops.by_scope(generate, params, *shapes).items():
    found[parts.part_of(scope)] += number
  return found


def bytes_per_chip(tree: PyTree) -> float:
  """Bytes of the largest share that one device holds of abstract arrays."""
  sizes = (
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
  return sum(sizes, 0.0)


def strip(tree: PyTree) -> PyTree:
  """Abstract arrays without their placement."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
  )


def _shapes(static: reveal.Static, size: int) -> tuple:
  """Labels, draws, scales and temperature of a batch."""
  labels = jax.ShapeDtypeStruct((size,), jnp.int32)
  length = static.config.backbone.num_tokens
  draws = jax.eval_shape(
    lambda: draw_batch(keys.root(0), jnp.arange(size), length)
  )
  scales = jax.ShapeDtypeStruct((static.plan.num_ar_steps,), jnp.float32)
  return labels, draws, scales, jax.ShapeDtypeStruct((), jnp.float32)


def _inputs(static: reveal.Static, mesh: Mesh, size: int) -> tuple:
  """`_shapes`, placed as `batching` places them."""
  labels, draws, *rest = _shapes(static, size)
  labels, draws = _with((labels, draws), batch_sharding(mesh))
  return labels, draws, *_with(rest, replicated(mesh))


def _with(tree: PyTree, where: NamedSharding) -> PyTree:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
    tree,
  )


def _placed(shapes: PyTree, compiled: Any) -> PyTree:
  """Results of a compiled program as abstract arrays where it leaves them."""
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    shapes,
    compiled.output_shardings,
  )
