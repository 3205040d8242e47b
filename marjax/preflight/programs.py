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
import numpy as np
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
from marjax.protocols import Codec
from marjax.release.workdir import abstract_params
from marjax.requests import batching, compiled
from marjax.train import flops
from marjax.train.step import make_train_program

NUM_EXAMPLES = 1_281_167
"""Of ImageNet; epochs are counted in it, and no shape depends on it."""


@dataclass(frozen=True, eq=False)
class Program:
  """One compiled program and what is known of it beforehand.

  Attributes:
    name: for people. compiled: by XLA.
    state: name of a part → bytes of it on one chip, among the arguments.
  """

  name: str
  compiled: Any
  state: dict[str, float]

  def memory(self) -> dict[str, float]:
    """Bytes on one chip while the program runs, by what takes them."""
    sizes = self.compiled.memory_analysis()
    others = sizes.argument_size_in_bytes - sum(self.state.values())
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return {
      **self.state,
      "other arguments": max(0.0, float(others)),
      "temporaries": sizes.temp_size_in_bytes + max(0.0, float(results)),
      "program": float(sizes.generated_code_size_in_bytes),
    }


def state(experiment: Experiment, mesh: Mesh, program: str) -> dict[str, float]:
  """Part → bytes of it that one chip has through every step."""
  if program == "generate":
    trees = {"parameters": abstract_params(experiment.model, mesh)}
  else:
    step = make_train_program(experiment, mesh, NUM_EXAMPLES)
    trees = {
      "parameters": step.abstract_state.params,
      "averages": step.abstract_state.ema_params,
      "optimizer": step.abstract_state.opt_state,
      "batch": step.abstract_batch,
    }
  return {name: bytes_per_chip(tree) for name, tree in trees.items()}


def train_programs(experiment: Experiment, mesh: Mesh) -> Iterator[Program]:
  """The training step, as its only program."""
  weights = _placeholder(experiment.codec)
  program = make_train_program(experiment, mesh, NUM_EXAMPLES, weights)
  lowered = program.step.lower(program.abstract_state, program.abstract_batch)
  yield Program("step", lowered.compile(), state(experiment, mesh, "train"))


def _placeholder(codec: Codec) -> PyTree:
  """Zeros for the weights of a codec that are constants of the step."""
  if codec.is_cached or not codec.has_params():
    return {}
  shapes = jax.eval_shape(lambda: codec.init_params(jax.random.key(0)))
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def generate_programs(
  experiment: Experiment, mesh: Mesh, size: int
) -> Iterator[Program]:
  """The programs of one device batch of `size` images, guided as configured."""
  settings = experiment.sampling.for_model(experiment.model)
  static = reveal.static_for(experiment.model, settings)
  params = abstract_params(experiment.model, mesh)
  asked = _abstract(_asked(static, size), batch_sharding(mesh))
  numbers = reveal.numbers_for(static.plan, settings)
  *numbers, walks = _abstract(numbers, replicated(mesh))
  with jax.set_mesh(mesh):
    arrays = (params, *asked, None)
    first = compiled.Program(batching.begin, (static,), arrays)
    started = first.lowered()
    program = started.compile()
    yield Program("begin", program, {})
    carry, fixed = _results(started, program)
    for index, segment in enumerate(static.plan.segments):
      arrays = (params, carry, fixed, *numbers, walks[index])
      wanted = batching.segment_program(static, index, *arrays)
      lowered = wanted.lowered()
      program = lowered.compile(compiler_options(mesh))
      name = f"steps {segment.first_step} to {segment.end - 1}"
      yield Program(name, program, {"parameters": bytes_per_chip(params)})
      carry = _results(lowered, program)
    last = compiled.Program(reveal.finish, (), (carry, fixed))
    yield Program("finish", last.lowered().compile(), {})


def useful_flops(experiment: Experiment, size: int) -> Counter[str]:
  """Of one device batch, over all chips, were nothing padded; by part."""
  settings = experiment.sampling.for_model(experiment.model)
  exact = dataclasses.replace(settings, num_buckets=settings.num_ar_steps)
  static = reveal.static_for(experiment.model, exact)
  params = _abstract(abstract_params(experiment.model, host_mesh()))

  def generate(params, *rest):
    return reveal.generate(static, params, *rest)

  useful = Counter()
  numbers = reveal.numbers_for(static.plan, exact)
  scopes = flops.by_scope(generate, params, *_asked(static, size), numbers)
  for scope, number in scopes.items():
    useful[parts.part_of(scope)] += number
  return useful


def bytes_per_chip(tree: PyTree) -> float:
  """Bytes of the largest share that one device has of abstract arrays."""
  sizes = (
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
  return sum(sizes, 0.0)


def _asked(static: reveal.Static, size: int) -> tuple:
  """Labels and draws of a batch, abstract."""
  labels = jax.ShapeDtypeStruct((size,), jnp.int32)
  backbone = static.config.backbone
  draws = jax.eval_shape(
    lambda: draw_batch(keys.root(0), jnp.arange(size), backbone)
  )
  return labels, draws


def _abstract(tree: PyTree, sharding: NamedSharding | None = None) -> PyTree:
  """Abstract arrays, placed there or nowhere."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
  )


def _results(lowered: Any, program: Any) -> PyTree:
  """Results of a compiled program as abstract arrays where it leaves them."""
  return jax.tree.map(_abstract, lowered.out_info, program.output_shardings)
