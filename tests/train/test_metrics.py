"""Means and rates between two reports."""

import dataclasses

import jax
import numpy as np
import pytest

from marjax.parallel.chips import CHIPS, Chip
from marjax.train import metrics
from marjax.train.metrics import Averages, Stopwatch


@dataclasses.dataclass
class Clock:
  """Stands in for time.perf_counter."""

  now: float = 100.0

  def __call__(self) -> float:
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(metrics.time, "perf_counter", clock)
  return clock


def test_averages_are_of_the_steps_since_the_last_report():
  averages = Averages()
  averages.add({"loss": np.float32(1), "mse": np.float32(4)})
  averages.add({"loss": np.float32(2), "mse": np.float32(8)})
  assert averages.pop() == {"loss": 1.5, "mse": 6.0}
  averages.add({"loss": np.float32(7), "mse": np.float32(0)})
  assert averages.pop() == {"loss": 7.0, "mse": 0.0}


def test_averages_do_not_lose_small_differences():
  averages = Averages()
  for _ in range(1000):
    averages.add({"loss": np.float32(0.1)})
  assert abs(averages.pop()["loss"] - float(np.float32(0.1))) < 1e-12


def test_averaging_runs_nothing_on_the_device():
  averages = Averages()
  with jax.transfer_guard("disallow_explicit"):
    averages.add({"loss": np.float32(1)})
    averages.add({"loss": np.float32(3)})
    assert averages.pop() == {"loss": 2.0}


def test_rates_leave_out_the_first_step_and_pauses(clock):
  watch = Stopwatch(batch_size=8, num_steps=100, flops_per_step=5e12)
  clock.now += 50
  watch.tick(1)
  for step in range(2, 12):
    with watch.waiting():
      clock.now += 0.5
    clock.now += 1.5
    watch.tick(step)
  with watch.paused():
    clock.now += 30
  rates = watch.pop()
  assert rates["images_per_second"] == pytest.approx(8 / 2)
  assert rates["seconds_left"] == pytest.approx((100 - 11) * 2)
  assert rates["data_wait_share"] == pytest.approx(0.25)
  assert rates["tflops_per_second"] == pytest.approx(5 / 2)
  assert "flop_utilization" not in rates, "no CPU has a known peak"


def test_rates_start_anew_after_a_report(clock):
  watch = Stopwatch(batch_size=1, num_steps=10, flops_per_step=0.0)
  watch.tick(3)
  clock.now += 4
  watch.tick(4)
  assert watch.pop()["images_per_second"] == pytest.approx(1 / 4)
  clock.now += 1
  watch.tick(5)
  assert watch.pop()["images_per_second"] == pytest.approx(1)


def test_a_report_right_after_the_first_step_has_no_rates(clock):
  watch = Stopwatch(batch_size=1, num_steps=10, flops_per_step=0.0)
  watch.tick(1)
  assert watch.pop() == {}


def test_utilisation_is_of_all_devices(clock, monkeypatch):
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(CHIPS, kind, Chip("fake", 10.0, 1.0, 1.0, 1.0))
  flops = 1e12 * jax.device_count()
  watch = Stopwatch(batch_size=1, num_steps=10, flops_per_step=flops)
  watch.tick(0)
  clock.now += 0.5
  watch.tick(1)
  assert watch.pop()["flop_utilization"] == pytest.approx(0.2)


def test_the_parameter_table_counts():
  params = {"backbone": {"kernel": np.zeros((3, 4))}, "bias": np.zeros(5)}
  table = metrics.parameter_table(params)
  assert "backbone/kernel" in table
  assert "Total: 17" in table
