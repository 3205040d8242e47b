"""The training loop.

1. Claim the work directory; lay the state out on the mesh; restore the newest
   checkpoint, or initialise.
2. For each step, in this order, which is a contract:

       sample from and save the state that enters the step, where due
       draw the batch
       dispatch the step
       report the step before, which had this time to finish

   So the device always has work, and nothing waits for the newest step but
   saving and sampling, which need its result.
3. A non-finite number stops the run and names the step. A state is saved only
   after the step that made it was seen to be finite.

What a step computes depends on the state and the step's number alone: a run
that was killed and resumed ends with the same bits as one that was not.
"""

import contextlib
import dataclasses
import logging
import math
import os
from typing import Any

import jax
from jax.sharding import Mesh

from marjax.data.batches import Batches
from marjax.experiment import Experiment
from marjax.model import training_flops
from marjax.parallel.mesh import make_mesh
from marjax.schema import to_dict
from marjax.train.checkpoint import Checkpointer
from marjax.train.metrics import Averages, Stopwatch, parameter_table
from marjax.train.samples import Sampler
from marjax.train.state import TrainState
from marjax.train.step import TrainProgram, make_train_program
from marjax.train.workdir import claim_workdir, flatten
from marjax.train.writers import Writer, open_writer

log = logging.getLogger(__name__)


def train(experiment: Experiment, workdir: str | os.PathLike) -> TrainState:
  """Trains until the configured number of steps, resuming where it can.

  Args:
    experiment: the whole configuration.
    workdir: see `marjax.train.workdir`; made when missing.

  Returns:
    The state after the last step, which is also the newest checkpoint.

  Raises:
    ValueError: a configuration that does not fit the data, the devices or the
      work directory; a damaged checkpoint.
    OSError: something cannot be written.
    FloatingPointError: a metric is not finite.
  """
  training = experiment.training
  with contextlib.ExitStack() as stack:
    workdir = stack.enter_context(claim_workdir(workdir, experiment))
    keep = training.keep_checkpoints
    checkpoints = stack.enter_context(Checkpointer(workdir, keep))
    batches = open_batches(experiment)
    num_steps = training.steps(batches.num_examples)
    mesh = mesh_for(experiment)
    program = make_train_program(experiment, mesh, batches.num_examples)
    state, start = restore_or_init(program, checkpoints)
    if start >= num_steps:
      log.info("%s is finished: %d of %d steps", workdir, start, num_steps)
      return state

    writer = open_writer(workdir, num_steps, start)
    stack.callback(writer.close)
    if start == 0:
      writer.write_hparams(flatten(to_dict(experiment)))
    line = batches.iterate(from_step=start)
    stack.callback(line.close)
    report = Report(experiment, num_steps, writer)
    sampler = Sampler(experiment, mesh, workdir, writer)
    stack.enter_context(jax.transfer_guard("disallow"))

    for step in range(start, num_steps + 1):
      is_last = step == num_steps
      if step > start and is_due(step, training.sample_every, is_last):
        with report.paused():
          sampler.draw(step, state.ema_params)
      if step > start and is_due(step, training.checkpoint_every, is_last):
        with report.paused():
          checkpoints.save(step, state, {"step": step})
      if is_last:
        break
      with report.stopwatch.waiting():
        batch = place(next(line), program)
      state, metrics = program.step(state, batch)
      report.add(step + 1, metrics)
    return state


def is_due(step: int, every: int, is_last: bool) -> bool:
  """Whether something done `every` so many steps, 0 for never, is due now."""
  return every > 0 and (is_last or step % every == 0)


def open_batches(experiment: Experiment) -> Batches:
  """This process's share of the training data."""
  return Batches(
    experiment.data,
    experiment.data.train_split,
    experiment.training.batch_size,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )


def mesh_for(experiment: Experiment) -> Mesh:
  """The configured mesh, whose data axes must divide the batch."""
  mesh = make_mesh(**dataclasses.asdict(experiment.mesh))
  size = experiment.training.batch_size
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  if size % parts:
    raise ValueError(
      f"training.batch_size is {size}; expected a multiple of {parts}, the"
      " devices that the mesh splits a batch over."
    )
  return mesh


def restore_or_init(
  program: TrainProgram, checkpoints: Checkpointer
) -> tuple[TrainState, int]:
  """The state to go on from, and how many steps made it."""
  log.info("%s", parameter_table(program.abstract_state.params))
  if checkpoints.latest_step() is None:
    return program.init(), 0
  state, data = checkpoints.restore(program.abstract_state)
  log.info("resumed from step %d", data["step"])
  return state, data["step"]


def place(batch: dict[str, Any], program: TrainProgram) -> dict[str, jax.Array]:
  """Host arrays of this process to one global array each."""
  # With several processes this transfer counts as an implicit one.
  with jax.transfer_guard("allow"):
    return {
      name: jax.make_array_from_process_local_data(
        program.batch_sharding, array
      )
      for name, array in batch.items()
    }


class Report:
  """Checks each step one step late, and writes means and rates when due.

  A line is also written at each checkpoint: so no mean spans a kill, and the
  curves of a resumed run are those of an uninterrupted one.
  """

  def __init__(self, experiment: Experiment, num_steps: int, writer: Writer):
    training = experiment.training
    self._periods = training.log_every, training.checkpoint_every
    self._num_steps, self._writer = num_steps, writer
    self._averages, self._pending = Averages(), None
    flops = training_flops(experiment.model) * training.batch_size
    self.stopwatch = Stopwatch(training.batch_size, num_steps, flops)

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of update number `step`; reads those before them."""
    before, self._pending = self._pending, (step, metrics)
    if before:
      self._read(*before)

  @contextlib.contextmanager
  def paused(self):
    """Reads what is pending; time spent inside counts in no rate."""
    if self._pending:
      self._read(*self._pending)
    self._pending = None
    with self.stopwatch.paused():
      yield

  def _read(self, step: int, metrics: dict[str, jax.Array]) -> None:
    numbers = jax.device_get(metrics)
    for name, number in numbers.items():
      if not math.isfinite(number):
        raise FloatingPointError(
          f"{name} is {number} at step {step}; training stopped, and every"
          " checkpoint is from before that step: lower the learning rate, or"
          " look at the data."
        )
    self.stopwatch.tick(step)
    self._averages.add(numbers)
    is_last = step == self._num_steps
    if any(is_due(step, every, is_last) for every in self._periods):
      self._writer.write_scalars(
        step, self._averages.pop() | self.stopwatch.pop()
      )
      self._writer.flush()
