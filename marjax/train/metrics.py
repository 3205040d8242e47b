"""What a report says: means of the steps since the last one, and rates.

1. `Averages` collects the metrics of single steps.
2. `Stopwatch` times them: images per second, time left, share of the time spent
   waiting for data, arithmetic per second. Saving and sampling do not count.
3. `marjax.train.writers` writes both where people look.
"""

import collections
import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from marjax.parallel.chips import chip_of


def parameter_table(params: Any) -> str:
  """Name, shape and size of each (unboxed) parameter, and their total."""
  from clu import parameter_overview

  return parameter_overview.get_parameter_overview(params, include_stats=False)


class Averages:
  """Means of scalar metrics since the last report, in float64 on the host."""

  def __init__(self):
    self._values = collections.defaultdict(list)

  def add(self, metrics: Mapping[str, Any]) -> None:
    """Takes in one step: name to a number on the host."""
    for name, value in metrics.items():
      self._values[name].append(float(value))

  def pop(self) -> dict[str, float]:
    """The means; starts anew."""
    means = {name: statistics.fmean(v) for name, v in self._values.items()}
    self._values.clear()
    return means


class Stopwatch:
  """Rates since the last report; starts with the first `tick`.

  That first step compiles, so it is counted nowhere.
  """

  def __init__(self, batch_size: int, num_steps: int, flops_per_step: float):
    """`flops_per_step`: of the whole batch, forward and backward."""
    self._batch_size, self._num_steps = batch_size, num_steps
    self._flops = flops_per_step
    chip = chip_of(jax.devices()[0])
    self._peak = chip and 1e12 * chip.tflops * jax.device_count()
    self._start = None
    self._waited = 0.0

  def tick(self, step: int) -> None:
    """Update number `step` is known to be finished."""
    if self._start is None:
      self._restart(step)
    self._step = step

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Time inside is counted as waiting for data."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time inside is not counted."""
    start = time.perf_counter()
    yield
    if self._start is not None:
      self._start += time.perf_counter() - start

  def pop(self) -> dict[str, float]:
    """The rates, empty when no step was timed; starts anew."""
    steps = self._step - self._first
    seconds = time.perf_counter() - self._start
    if not steps:
      return {}
    rates = {
      "images_per_second": steps * self._batch_size / seconds,
      "seconds_left": (self._num_steps - self._step) * seconds / steps,
      "data_wait_share": min(1.0, self._waited / seconds),
      "tflops_per_second": steps * self._flops / seconds / 1e12,
    }
    if self._peak:
      rates["flop_utilization"] = steps * self._flops / seconds / self._peak
    self._restart(self._step)
    return rates

  def _restart(self, step: int) -> None:
    self._start, self._first, self._waited = time.perf_counter(), step, 0.0
