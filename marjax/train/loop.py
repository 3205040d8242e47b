"""The training loop.

1. Claim the work directory; lay the state out on the mesh; restore the newest
   checkpoint, or initialise.
2. For each step, in this order, which is a contract:

       save, then sample from and score, the state that enters the step, if due
       draw the batch
       dispatch the step
       report the step before, which had this time to finish

   So the device always has work, and nothing waits for the newest step but
   saving and sampling, which need its result.
3. A non-finite number stops the run and names the step. A state is saved only
   after the step that made it, and all its arrays, were seen to be finite.
4. Told that the machine will be taken away, save the state that enters the next
   step and return; see `marjax.train.preemption`.

What a step computes depends on the state and the step's number alone: a run
that was killed and resumed ends with the same bits as one that was not.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from marjax.arrays import not_finite
from marjax.data import contents
from marjax.data.batches import Batches
from marjax.experiment import Experiment
from marjax.outputs import AnyPath
from marjax.parallel import hosts
from marjax.parallel.mesh import mesh_for
from marjax.parallel.rules import global_batch, local_rows
from marjax.schema import to_dict
from marjax.ticks import ticking
from marjax.train import autoencoder, initial
from marjax.train.checkpoint import Checkpointer
from marjax.train.flops import training_flops
from marjax.train.metrics import Averages, Stopwatch, parameter_table
from marjax.train.preemption import watched
from marjax.train.profile import Profile
from marjax.train.samples import Sampler
from marjax.train.scores import open_scorer
from marjax.train.state import TrainState
from marjax.train.step import TrainProgram, make_train_program
from marjax.train.workdir import (
  check_length,
  claim_workdir,
  forget_stop,
  note_digest,
)
from marjax.train.writers import JsonLinesWriter, Writer, open_writer

log = logging.getLogger(__name__)

LEAVING = (
  "SIGTERM: stopped at step %d of %d; the same command goes on from there"
)


def train(
  experiment: Experiment,
  workdir: str | os.PathLike,
  profile_steps: tuple[int, int] | None = None,
) -> TrainState:
  """Trains until the configured number of steps, resuming where it can.

  Args:
    experiment: the whole configuration.
    workdir: see `marjax.train.workdir`; made when missing.
    profile_steps: which steps to trace, see `marjax.train.profile`.

  Returns:
    The state after the last step, or the step before a preemption, which is
    also the newest checkpoint.

  Raises:
    ValueError: a configuration that does not fit the data, the devices, the
      work directory or that of another process; a damaged checkpoint.
    OSError: something cannot be written.
    FloatingPointError: a metric or an array of the state is not finite.
    KeyboardInterrupt: Ctrl-C, with a sentence on what is kept.
  """
  training = experiment.training
  fields = flatten_dict(to_dict(experiment), sep=".")
  hosts.agree({"workdir": str(workdir)} | fields)
  with contextlib.ExitStack() as stack:
    is_preempted = stack.enter_context(watched())
    stack.enter_context(ticking("training"))
    workdir = stack.enter_context(claim_workdir(workdir, experiment))
    habits = training.keep_checkpoints, training.checksums
    checkpoints = stack.enter_context(Checkpointer(workdir, *habits))
    mesh = mesh_for(experiment)
    rows = local_rows(mesh, training.batch_size)
    data, size = experiment.data, training.batch_size
    is_new = checkpoints.latest_step() is None
    names = contents.chosen(workdir, data, is_new)
    batches = Batches(data, data.train_split, size, rows=rows, names=names)
    read = contents.keep(
      batches, workdir, data.accept, is_new, data.num_classes
    )
    num_steps = training.steps(batches.num_examples)
    codec = autoencoder.of_run(
      experiment.codec,
      data.autoencoder,
      batches.cache,
      workdir,
      needs_params=experiment.model.backbone.code_dim > 0,
    )
    program = make_train_program(
      experiment, mesh, batches.num_examples, codec.params
    )
    state, start = restore_or_init(
      program,
      checkpoints,
      codec.digest,
      lambda: first_state(experiment, program, workdir, read.class_names),
    )
    check_length(num_steps, start, workdir)
    if start == num_steps:
      log.info("%s is finished: %d of %d steps", workdir, start, num_steps)
      return state

    writer = open_writer(workdir, num_steps, start)
    stack.callback(writer.close)
    if start == 0:
      writer.write_hparams(fields)
    line = batches.iterate(from_step=start)
    stack.callback(line.close)
    report = Report(experiment, num_steps, writer, start)
    sampler = Sampler(experiment, mesh, workdir, writer, codec.folder)
    metrics = workdir / "metrics.jsonl"
    scorer = open_scorer(experiment, mesh, state, metrics, writer, codec.folder)
    autoencoder.keep_copy(codec, workdir)
    pause = report.stopwatch.paused
    profile = Profile(profile_steps, workdir, start, num_steps, pause)
    stack.enter_context(profile)
    ids = Writer()
    if training.log_ids:  # which examples made each update
      name = f"ids_{jax.process_index()}.jsonl"
      ids = JsonLinesWriter(workdir / name, start)
    stack.callback(ids.close)
    stack.enter_context(jax.transfer_guard("disallow"))

    stack.enter_context(ticking("training", report.where))
    compiling = ticking("compiling the step")
    for step in range(start, num_steps + 1):
      is_last = step == num_steps
      is_leaving = is_preempted(step) and not is_last
      is_sample_due = is_due(step, training.sample_every, is_last)
      is_score_due = is_due(step, training.evaluate_every, is_last)
      is_last = is_last or is_leaving
      if step > start and is_due(step, training.checkpoint_every, is_last):
        with report.paused("saving", is_last):
          report.check_state(step, state)
          # Where the data is, and whose latents it is of.
          noted = {"step": step, "autoencoder": codec.digest}
          checkpoints.save(step, state, noted)
          forget_stop(workdir)
      # There may be half a minute left, which neither of these may take.
      if step > start and is_sample_due and not is_leaving:
        with report.paused("drawing samples"):
          sampler.draw(step, state.ema_params)
      if is_score_due and not is_leaving and scorer.is_missing(step, start):
        with report.paused("scoring"):
          scorer.score(step, state.ema_params)
      if is_last:
        if is_leaving:
          checkpoints.wait()
          log.info(LEAVING, step, num_steps)
        break
      with report.stopwatch.waiting():
        local = next(line)
        batch = place(local, mesh)
      ids.write_scalars(step + 1, {"ids": local["id"].tolist()})
      with compiling if step == start else contextlib.nullcontext():
        state, metrics = profile.run(step, program.step, state, batch)
      report.add(step + 1, metrics)
    return state


def is_due(step: int, every: int, is_last: bool) -> bool:
  """Whether something done `every` so many steps, 0 for never, is due now."""
  return every > 0 and (is_last or step % every == 0)


def restore_or_init(
  program: TrainProgram,
  checkpoints: Checkpointer,
  digest: str,
  first: Callable[[], TrainState],
) -> tuple[TrainState, int]:
  """The state to go on from, and how many steps made it.

  `digest`: of the codec's weights, "" where it has none. `first`: gives the
  state of a new run.
  """
  # Who trains many models may set this one to be silent.
  log.getChild("parameters").info(
    "%s", parameter_table(program.abstract_state.params)
  )
  if checkpoints.latest_step() is None:
    with ticking("making the first state"):
      return first(), 0
  with ticking("reading the newest checkpoint"):
    state, data = checkpoints.restore(program.abstract_state)
  workdir = checkpoints.directory.parent
  autoencoder.check_same(data.get("autoencoder", ""), digest, workdir)
  log.info("resumed from step %d", data["step"])
  return state, data["step"]


def first_state(
  experiment: Experiment,
  program: TrainProgram,
  workdir: AnyPath,
  class_names: Sequence[str],
) -> TrainState:
  """The state before the first step; config.json notes what it starts from.

  Raises:
    ValueError: weights that do not fit; see `marjax.train.initial`.
  """
  training = experiment.training
  if not training.init_from:
    return program.init()
  wanted = training.init_from, program.mesh, training.init_digest
  source = initial.load(*wanted)
  state = initial.start(experiment, source, program.init(), class_names)
  note_digest(workdir, experiment, source.digest)
  return state


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Host arrays of this process to one global array each."""
  # With several processes this transfer counts as an implicit one.
  with jax.transfer_guard("allow"):
    return global_batch(batch, mesh)


class Report:
  """Checks each step one step late, and writes means and rates when due.

  A line is also written at each checkpoint: so no mean spans a kill, and the
  curves of a resumed run are those of an uninterrupted one.
  """

  def __init__(
    self, experiment: Experiment, num_steps: int, writer: Writer, start: int = 0
  ):
    training = experiment.training
    self._periods = training.log_every, training.checkpoint_every
    self._num_steps, self._writer = num_steps, writer
    self._averages, self._pending = Averages(), None
    self._newest, self._since = start, time.monotonic()
    self._learning_rate = training.peak_learning_rate()
    flops = training_flops(experiment.model) * training.batch_size
    self.stopwatch = Stopwatch(training.batch_size, num_steps, flops)

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of update number `step`; reads those before them."""
    before, self._pending = self._pending, (step, metrics)
    self._newest, self._since = step, time.monotonic()
    if before:
      self._write(before[0], self._checked(*before))

  def where(self) -> str:
    """For example "step 13/100: 8 s", of the newest step since it was sent."""
    seconds = time.monotonic() - self._since
    lasts = f": {seconds:.0f} s" if seconds >= 1 else ""
    return f"step {self._newest}/{self._num_steps}{lasts}"

  @contextlib.contextmanager
  def paused(self, stage: str, is_leaving: bool = False):
    """Reads what is pending; time spent inside counts in no rate.

    A line that cannot be written is told after what is inside, a save perhaps.

    Args:
      stage: what is inside, for the log if it takes long.
      is_leaving: write what was read since the last line, however little.
    """
    pending, self._pending, failure = self._pending, None, None
    if pending:
      numbers = self._checked(*pending)
      try:
        self._write(pending[0], numbers, is_leaving)
      except Exception as error:
        failure = error
    with self.stopwatch.paused(), ticking(stage):
      yield
    if failure:
      raise failure

  def check_state(self, step: int, state: TrainState) -> None:
    """Refuses a state with NaN or infinity, which metrics may not show."""
    with jax.transfer_guard("allow"):
      name = not_finite(state)
    if name:
      self._stop(f"{name} has NaN or infinity", step)

  def _checked(self, step: int, metrics: dict) -> dict:
    numbers = jax.device_get(metrics)
    for name, number in numbers.items():
      if not math.isfinite(number):
        self._stop(f"{name} is {number}", step)
    return numbers

  def _stop(self, what: str, step: int) -> None:
    lower = f"--config.training.learning_rate={self._learning_rate / 2:.3g}"
    raise FloatingPointError(
      f"{what} at step {step}; training stopped, and every checkpoint is from"
      f" before that step: run the same command with {lower}, or with another"
      " warm-up or clip_norm, or look at the data."
    )

  def _write(self, step: int, numbers: dict, is_leaving: bool = False) -> None:
    self.stopwatch.tick(step)
    self._averages.add(numbers)
    is_last = is_leaving or step == self._num_steps
    if any(is_due(step, every, is_last) for every in self._periods):
      self._writer.write_scalars(
        step, self._averages.pop() | self.stopwatch.pop()
      )
      self._writer.flush()
