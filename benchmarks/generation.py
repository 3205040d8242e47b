"""Times generation as users run it, and its parts by themselves.

1. `requests.batching`'s programs (begin, one per segment, finish) are compiled
   as it compiles them and run one after the other on the first device.
2. The transformer alone: the same loop with a head of one narrow block, which
   is the L2 control, so every z is computed and every token written.
3. The head alone: the same steps from given z, tokens written.
4. What is left is the rest: the whole less both.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from benchmarks import floors, needed, timing
from experiments import rows
from marjax import keys
from marjax.experiment import Experiment
from marjax.generate import reveal
from marjax.generate.draws import Draws, cut, pad
from marjax.generate.reveal import Static
from marjax.head.regression import RegressionHeadConfig
from marjax.model import ModelConfig, in_matmul_dtype, init_params
from marjax.parallel.compiler import compiler_options
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import shardings
from marjax.requests import batching, compiled
from marjax.requests.compiled import Program
from marjax.train import flops


@dataclass(frozen=True)
class Inputs:
  """What a generation is called with, on the device."""

  params: PyTree
  labels: jax.Array
  draws: Draws
  scales: jax.Array
  temperature: jax.Array
  walks: list

  @property
  def first(self) -> tuple:
    """What `batching.begin` takes."""
    return (self.params, self.labels, self.draws, None)


@dataclass(frozen=True)
class Programs:
  """The compiled pieces of one generation."""

  begin: Any
  segments: list[Any]
  finish: Any


def time_generation(
  experiment: Experiment, repeats: int, is_split: bool
) -> dict:
  """Columns of one batch of images, tokens only, on the first device."""
  settings, batch = experiment.sampling, experiment.training.batch_size
  mesh = make_mesh(devices=jax.devices()[:1])
  static = reveal.static_for(experiment.model, settings)
  inputs = jax.block_until_ready(make_inputs(static, experiment, mesh))
  before = timing.peak_memory()
  with jax.set_mesh(mesh):
    start = time.perf_counter()
    programs = compile_generation(static, inputs)
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(generate(programs, inputs))
    first_call_seconds = time.perf_counter() - start
    seconds = timing.rounds(lambda: generate(programs, inputs), repeats)
    found = timing.rates(seconds, batch, count_flops(static, inputs))
    found.update(timing.new_peak(before))
    if is_split:
      found.update(split(static, inputs, found["seconds"], repeats))
  total, heads = needed.of_generation(static, batch)
  work = timing.Work(
    found["flops"],
    total,
    heads,
    floors.weight_bytes(static, inputs.params),
    floors.cache_bytes(static, batch),
  )
  return {
    **found,
    **timing.floors(found["seconds"], work),
    "compile_seconds": round(compile_seconds, 2),
    "first_call_seconds": round(first_call_seconds, 2),
    "memory_bytes": max(map(timing.memory, programs.segments)),
    "parameters": timing.count_parameters(inputs.params),
    "settings": rows.as_row(settings),
  }


def make_inputs(static: Static, experiment: Experiment, mesh: Mesh) -> Inputs:
  """Parameters as initialised, labels and draws, placed as users have them."""
  config, settings = experiment.model, experiment.sampling
  batch = experiment.training.batch_size
  labels = (
    np.arange(batch, dtype=np.int32) % config.backbone.condition.num_classes
  )
  draws = batching.draw(
    compiled.Programs(),
    mesh,
    keys.root(0),
    batch,
    config.backbone,
  )
  labels, draws = batching.place(mesh, (labels, draws))
  values = batching.numbers(mesh, static.plan, settings)
  return Inputs(make_params(config, mesh), labels, draws, *values)


def make_params(config: ModelConfig, mesh: Mesh) -> PyTree:
  """Parameters as initialised, on the mesh."""

  def boxed():
    return init_params(config, keys.root(0))

  placed = shardings(jax.eval_shape(boxed), mesh)
  with jax.set_mesh(mesh):
    return jax.jit(lambda: nn.unbox(boxed()), out_shardings=placed)()


def compile_generation(static: Static, inputs: Inputs) -> Programs:
  """Traces, lowers and compiles every program of a generation."""
  mesh, owner = inputs.labels.sharding.mesh, compiled.Programs()
  first = (inputs.params, inputs.labels, inputs.draws, None)
  (begin,) = owner.of(mesh, [Program(batching.begin, (static,), first)])
  carry, fixed = begin(*first)
  rest = (fixed, inputs.scales, inputs.temperature)
  segments = owner.of(
    mesh,
    [
      batching.segment_program(static, index, inputs.params, carry, *rest, walk)
      for index, walk in enumerate(inputs.walks)
    ],
  )
  last = (carry, fixed)
  (finish,) = owner.of(mesh, [Program(reveal.finish, (), last)])
  return Programs(begin, segments, finish)


def generate(programs: Programs, inputs: Inputs) -> jax.Array:
  """One batch: tokens in raster order, still on the device."""
  carry, fixed = programs.begin(*inputs.first)
  rest = (fixed, inputs.scales, inputs.temperature)
  for segment, walk in zip(programs.segments, inputs.walks, strict=True):
    carry = segment(inputs.params, carry, *rest, walk)
  return programs.finish(carry, fixed)


def count_flops(static: Static, inputs: Inputs) -> int:
  """Of one batch, as the programs are: padding included."""
  begin = functools.partial(batching.begin, static)
  begun = jax.eval_shape(begin, *inputs.first)
  rest = (*begun, inputs.scales, inputs.temperature)
  return flops.count(begin, *inputs.first) + sum(
    flops.count(
      functools.partial(batching.run_segment, static, index),
      inputs.params,
      *rest,
      walk,
    )
    for index, walk in enumerate(inputs.walks)
  )


def split(
  static: Static, inputs: Inputs, whole: float, repeats: int
) -> dict[str, float]:
  """Columns of how the seconds are shared out."""
  alone = without_head(static)
  fresh = make_params(alone.config, inputs.labels.sharding.mesh)
  params = {**fresh, "backbone": inputs.params["backbone"]}
  walks = [needed.walk_of(alone, i) for i in range(len(inputs.walks))]
  narrow = dataclasses.replace(inputs, params=params, walks=walks)
  programs = compile_generation(alone, narrow)
  transformer = timing.rounds(lambda: generate(programs, narrow), repeats)
  head = timing.rounds(head_alone(static, inputs), repeats)
  return timing.parts(whole, transformer, head)


def without_head(static: Static) -> Static:
  """The same loop and backbone, with a head that costs next to nothing."""
  return dataclasses.replace(static, config=without_diffusion(static.config))


def without_diffusion(config: ModelConfig) -> ModelConfig:
  """The model with the control's head, one block of 64."""
  head = RegressionHeadConfig(config.head.token_dim, 64, 1)
  return dataclasses.replace(config, head=head)


def head_alone(static: Static, inputs: Inputs) -> Callable[[], jax.Array]:
  """A call that draws all tokens of a batch from given z."""
  _, fixed = batching.begin(static, *inputs.first)
  config, widest = static.config, static.plan.widest
  shape = (2, *fixed.order.shape, config.backbone.width)
  z = jax.jit(lambda: jax.random.normal(jax.random.key(0), shape))()
  tokens = jnp.zeros((*shape[1:3], config.backbone.token_dim))
  args = [pad(part, widest) for part in (tokens, z[0], z[1])]
  lowered = [
    jax.jit(functools.partial(_draw_segment, static, index)).lower(
      inputs.params, *args, fixed, inputs.scales, inputs.temperature
    )
    for index in range(len(static.plan.segments))
  ]
  options = compiler_options(inputs.labels.sharding.mesh)
  with ThreadPoolExecutor() as pool:
    segments = list(pool.map(lambda one: one.compile(options), lowered))

  def call():
    tokens, *given = args
    for segment in segments:
      tokens = segment(
        inputs.params,
        tokens,
        *given,
        fixed,
        inputs.scales,
        inputs.temperature,
      )
    return tokens

  return call


def _draw_segment(
  static, index, params, tokens, z, z_uncond, fixed, scales, temperature
):
  """`reveal.run_segment` with z given for every token."""
  segment = static.plan.segments[index]
  width, walk = segment.head_width, needed.walk_of(static, index)
  params = in_matmul_dtype(static.config, params)
  steps = reveal.Step(
    jnp.asarray(segment.num_known, jnp.int32),
    scales[segment.first_step : segment.end],
  )

  def step(tokens, step):
    """Draws the next tokens; those before step.num_known are final."""
    own, other = (
      jax.lax.dynamic_slice_in_dim(part, step.num_known, width, axis=1)
      for part in (z, z_uncond)
    )
    new = static.config.build().apply(
      {"params": params},
      own,
      walk,
      noise=cut(fixed.noise, step.num_known, width),
      temperature=temperature,
      guidance=(other, step.guidance_scale) if static.is_guided else None,
      method="sample",
    )
    return jax.lax.dynamic_update_slice_in_dim(
      tokens, new, step.num_known, axis=1
    ), None

  return jax.lax.scan(step, tokens, steps)[0]
