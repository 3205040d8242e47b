"""One program on the first n devices: compiled, timed, looked into.

1. A `Program` says what runs: task, size, mesh, number of devices, images.
2. `compiled` compiles several of them in threads, since XLA works on each with
   one core, most of the time. Nothing is timed meanwhile.
3. `Compiled.measure` places the arrays, times rounds (`benchmarks.timing`) and,
   where the program has collectives, profiles a few calls
   (`benchmarks.exposed`).
4. Memory is what the compiler reserves on one device, as the most that was ever
   in use would be that of all programs of the process.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from benchmarks import exposed, generation, sizes, timing, training
from experiments import rows
from marjax.experiment import Experiment, MeshConfig
from marjax.generate import reveal
from marjax.parallel.mesh import make_mesh, sizes_of
from marjax.parallel.rules import batch_sharding
from marjax.train.step import make_train_program

ONE = "one"
"""The mesh of one device, where all presets are one program."""

TRACED_STEPS = 3


@dataclass(frozen=True)
class Program:
  """What runs.

  Attributes:
    task: "train", one step, or "generate", one batch of tokens.
    size: of `benchmarks.sizes`. preset: of the mesh, "dp" or "fsdp", or ONE.
    num_devices: the first of those present.
    batch_size: images on all of them together.
    dtype: of the matmuls. remat: see `MaskedConfig`.
  """

  task: str
  size: str
  preset: str
  num_devices: int
  batch_size: int
  dtype: str
  remat: str

  @property
  def mesh(self) -> Mesh:
    """Of the first devices."""
    preset = "dp" if self.preset == ONE else self.preset
    devices = jax.devices()[: self.num_devices]
    return make_mesh(*sizes_of(MeshConfig(preset)), devices=devices)

  @property
  def experiment(self) -> Experiment:
    """The configuration; the published sizes train on cached latents."""
    is_latent = self.task == "train" and self.size not in ("tiny", "digits")
    made = sizes.experiment(
      self.size,
      self.batch_size,
      self.dtype,
      self.remat,
      "latents" if is_latent else "pixels",
    )
    sampling = made.sampling.for_model(made.model)
    return dataclasses.replace(made, sampling=sampling)


@dataclass(frozen=True)
class Compiled:
  """A program that can be timed.

  Attributes:
    compile_seconds: beside others, so more than alone.
    memory_bytes: of one device. collectives: instructions by kind.
    place: () to a call, its arrays placed.
    trace: a call to what of its time is communication; it is not asked where
      there are no collectives.
    columns: what else a row says.
  """

  compile_seconds: float
  memory_bytes: int
  collectives: dict[str, int]
  place: Callable[[], Callable]
  trace: Callable[[Callable], exposed.Communication]
  columns: dict

  def measure(self, batch_size: int, repeats: int) -> dict:
    """Columns of a row; its arrays are given back."""
    call = self.place()
    seconds = timing.rounds(call, repeats)
    found = self.trace(call) if self.collectives else exposed.NONE
    return {
      **timing.speed(seconds, batch_size),
      "memory_bytes": self.memory_bytes,
      "communication_seconds": found.seconds,
      "exposed_seconds": found.exposed_seconds,
      "exposed_reason": found.reason,
      "collectives": self.collectives,
      "compile_seconds": self.compile_seconds,
      **self.columns,
    }


def compiled(
  programs: Sequence[Program],
) -> Iterator[tuple[Program, Compiled | Exception]]:
  """Each program, compiled beside the others, or why it could not be."""
  with ThreadPoolExecutor() as pool:
    futures = [pool.submit(COMPILERS[p.task], p) for p in programs]
  for program, future in zip(programs, futures, strict=True):
    error = future.exception()
    if error and not isinstance(error, jax.errors.JaxRuntimeError):
      raise error
    yield program, error or future.result()


def compile_training(program: Program) -> Compiled:
  """One optimizer step, and what makes its first state."""
  experiment, mesh = program.experiment, program.mesh
  start = time.perf_counter()
  train = make_train_program(experiment, mesh, training.IMAGENET_IMAGES)
  lowered = train.step.lower(train.abstract_state, train.abstract_batch)
  init = train.init.lower().compile()
  step = lowered.compile()
  seconds = time.perf_counter() - start

  def place() -> Callable:
    state = init()
    batch = training.random_batch(experiment)
    batch = jax.device_put(batch, batch_sharding(mesh))

    def call():
      nonlocal state
      state, metrics = step(state, batch)
      return metrics

    return call

  return Compiled(
    round(seconds, 2),
    timing.memory(step),
    exposed.collectives(step.as_text()),
    place,
    lambda call: exposed.measure(call, TRACED_STEPS, mesh.size),
    {},
  )


def compile_generation(program: Program) -> Compiled:
  """The programs of one batch; its arrays are there from here on."""
  experiment, mesh = program.experiment, program.mesh
  static = reveal.static_for(experiment.model, experiment.sampling)
  with jax.set_mesh(mesh):
    inputs = generation.make_inputs(static, experiment, mesh)
    jax.block_until_ready(inputs.params)
    start = time.perf_counter()
    programs = generation.compile_generation(static, inputs)
    seconds = time.perf_counter() - start
  return Compiled(
    round(seconds, 2),
    max(map(timing.memory, programs.segments)),
    exposed.collectives("".join(s.as_text() for s in programs.segments)),
    lambda: lambda: generation.generate(programs, inputs),
    lambda _: exposed.unknown("a generation is too long to be traced"),
    {"settings": rows.as_row(experiment.sampling)},
  )


COMPILERS = {"train": compile_training, "generate": compile_generation}
