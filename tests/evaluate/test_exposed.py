"""Exposed communication is what collectives cover and nothing else does."""

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from benchmarks import exposed

EVENTS = {"gemm": 1, "ncclDevKernel_AllReduce_Sum_f32_RING_LL": 2, "own": 3}


def line(name, *events):
  """A line of a plane; an event is (name, start, end in ns, hlo_op)."""
  written = [
    f"events {{ metadata_id: {EVENTS[kernel]} offset_ps: {1000 * start}"
    f" duration_ps: {1000 * (end - start)} stats {{ metadata_id: 1 str_value:"
    f' "{op}" }} }}'
    for kernel, start, end, op in events
  ]
  return f'lines {{ name: "{name}" {" ".join(written)} }}'


def plane(name, *lines):
  names = [
    f'event_metadata {{ key: {key} value {{ id: {key} name: "{kernel}" }} }}'
    for kernel, key in EVENTS.items()
  ]
  stat = 'stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }'
  return f'planes {{ name: "{name}" {" ".join([*names, stat, *lines])} }}'


def profile(*planes):
  return ProfileData.from_text_proto("\n".join(planes))


NCCL = "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
BUSY = (
  line("Stream #1(Compute)", ("gemm", 0, 400, "f.1"), ("gemm", 600, 800, "f")),
  line("Stream #2(Compute)", (NCCL, 300, 1000, "")),
  # By module, all of it: no more work.
  line("XLA Modules", ("gemm", 0, 1000, "")),
)
IDLE = (
  line("Stream #1(Compute)", ("gemm", 0, 400, "f.1")),
  # XLA has reductions of its own, without NCCL.
  line("Stream #2", ("own", 500, 600, "all-reduce-start.3")),
)


def test_seconds_are_means_over_gpus_and_calls():
  found = exposed.read(
    profile(
      plane("/device:GPU:0", *BUSY),
      plane("/device:GPU:1", *IDLE),
      plane("/device:GPU:2", line("Stream #1")),
      plane("/host:CPU", *BUSY),
    ),
    num_calls=2,
    num_devices=2,
  )
  # 400 to 600 and 800 to 1000; 500 to 600.
  assert found.exposed_seconds == pytest.approx(1e-9 * (400 + 100) / 2 / 2)
  assert found.seconds == pytest.approx(1e-9 * (700 + 100) / 2 / 2)
  assert found.reason == ""


def test_what_a_profile_does_not_say_has_a_reason():
  def reason(*planes, num_devices=1):
    found = exposed.read(profile(*planes), 1, num_devices)
    assert found.seconds is found.exposed_seconds is None
    return found.reason

  one = plane("/device:GPU:0", *BUSY)
  assert "kernels of 1 GPUs, not of 2" in reason(one, num_devices=2)
  odd = plane("/device:GPU:0", line("Queue 1", ("gemm", 0, 1, "")))
  assert reason(odd).endswith("its lines: Queue 1")
  alone = plane("/device:GPU:0", line("Stream #1", ("gemm", 0, 1, "f")))
  assert "no collective" in reason(alone)


def test_covered_counts_no_time_twice():
  spans = [(4, 6), (0, 3), (1, 2), (2, 3.5), (5, 7)]
  assert exposed.covered(spans) == 3.5 + 3
  assert exposed.covered([]) == 0


def test_a_cpu_has_no_such_profile():
  add = jax.jit(lambda x: x + 1)
  found = exposed.measure(lambda: add(jnp.zeros(3)), 2, 1)
  assert "kernels of 0 GPUs" in found.reason


def test_collectives_are_counted_in_the_text_of_a_program():
  text = """
  %a = f32[8] all-reduce(%x), to_apply=%all-reduce.sum
  %b = f32[8] all-gather-start(%x)
  %c = f32[8] all-gather-done(%b)
  %d = f32[8] fusion(%all-reduce), calls=%f
  %e = f32[8] all-reduce-start(%x)
"""
  assert exposed.collectives(text) == {"all-gather": 1, "all-reduce": 2}
