"""Scores while training: a few images of the averaged weights, now and then.

1. What is asked, the network's weights and the real images are checked before
   the first step; the real images are seen once.
2. All processes generate; the first writes the numbers to where metrics go.
   They are for one run only: with few images a Fréchet distance is large.
3. Scores that fail, for an image that is not finite perhaps, are a line in the
   log, and training goes on. A run that was killed while they were computed
   computes them when it goes on.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from marjax import outputs
from marjax.evaluate import sweep
from marjax.evaluate.scores.gathered import Gatherer
from marjax.evaluate.scores.options import Options
from marjax.experiment import Experiment
from marjax.layers.lora import merged
from marjax.parallel import hosts
from marjax.pipeline import Pipeline
from marjax.requests import pictures
from marjax.train.samples import attempt, decoder
from marjax.train.state import TrainState
from marjax.train.writers import Writer

COUNT = "evaluated_images"
"""Goes with the scores of a step."""


class Scorer:
  """Computes the scores of `experiment.evaluation`, and hands them on.

  Args:
    ema_params: of the model, on the mesh. metrics: the run's metrics.jsonl.
    autoencoder: gives the release that decodes, if the codec has one.

  Raises:
    ValueError, OSError: they cannot be computed.
  """

  def __init__(
    self,
    experiment: Experiment,
    mesh: Mesh,
    ema_params: PyTree,
    metrics: outputs.AnyPath,
    writer: Writer,
    autoencoder: Callable[[], outputs.AnyPath | None],
  ):
    self._writer, self._metrics = writer, metrics
    codec_params, chosen = decoder(autoencoder, mesh), experiment.evaluation
    self._lora = experiment.training.lora
    params = merged(ema_params, self._lora)
    pipe = Pipeline.of_experiment(experiment, params, mesh, 0, codec_params)
    asked = sweep.Asked(
      scores=chosen.scores,
      num_images=chosen.num_images,
      network=chosen.network,
      weights=chosen.weights,
      against=chosen.against,
      batch_size=chosen.batch_size,
      options=Options(allow_few=True),
    )
    run = sweep.prepare(pipe, asked)
    # The parameters are those of the step, not to be kept from one to the next.
    pipe = dataclasses.replace(pipe, params={})
    self._run = run._replace(stream=dataclasses.replace(run.stream, pipe=pipe))
    self._real = None

  def score(self, step: int, ema_params: PyTree) -> None:
    """Computes and writes; blocks until both are done, or have failed."""
    attempt(
      f"scores of step {step}",
      lambda: self._scores(ema_params),
      lambda numbers: self._write(step, numbers),
    )

  def is_missing(self, step: int, start: int) -> bool:
    """Whether a step, of a run that goes on from `start`, lacks its scores.

    Nothing is scored before the first step.
    """
    if step > start or step == 0:
      return step > 0
    is_there = False
    if jax.process_index() == 0 and self._metrics.exists():
      is_there = step in pictures.read_curve(self._metrics, COUNT)[:, 0]
    return not hosts.told(b"yes" if is_there else b"")

  def _scores(self, ema_params: PyTree) -> dict[str, float]:
    run = self._run
    # A number that it multiplies by goes to the devices.
    with jax.transfer_guard("allow"):
      params = merged(ema_params, self._lora)
    pipe = dataclasses.replace(run.stream.pipe, params=params)
    stream = dataclasses.replace(run.stream, pipe=pipe)
    gatherer = Gatherer(stream.plan, stream.params, pipe.mesh)
    # Moving labels and sums is the purpose here, not an accident.
    with jax.transfer_guard("allow"):
      if self._real is None:
        self._real = sweep.look_at_real(run)
      for seen in stream.run(run.settings[0]):
        gatherer.add(seen.sums)
      seen = gatherer.gathered()
      return sweep.scored(seen, self._real, run, is_first=False)["scores"]

  def _write(self, step: int, scores: dict[str, float]) -> None:
    count = self._run.asked.num_images
    self._writer.write_scalars(step, scores | {COUNT: count})
    self._writer.flush()


def open_scorer(
  experiment: Experiment, mesh: Mesh, state: TrainState, *args
) -> Scorer | None:
  """The scorer of a run at a state; None if it wants none.

  Args:
    args: the rest of what `Scorer` takes.
  """
  if not experiment.training.evaluate_every:
    return None
  return Scorer(experiment, mesh, state.ema_params, *args)
