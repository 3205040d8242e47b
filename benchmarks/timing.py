"""Seconds, rates, memory and floors: the columns that every task shares.

1. Run until the machine is warm, then time rounds, each long enough to be
   timed; the median counts, the fastest and the slowest are kept.
2. Rates follow from the arithmetic: what the program does, and what is needed
   without any padding.
3. Floors: the needed arithmetic at the speed of one large matrix product, and,
   at the speed of a copy, the weights and the caches that must be read; both
   speeds are measured in the same process. Reading goes on beside arithmetic,
   but one read after the other, so the higher one of the two counts.
"""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from marjax.parallel.chips import chip_of

ROUND_SECONDS = 1.0
MAX_CALLS = 100

_MACHINE_SECONDS = 0.2
_MACHINE_REPEATS = 5


@dataclass(frozen=True)
class Work:
  """What one call costs at least.

  Attributes:
    flops: that the program does. needed_flops: without padding.
    needed_head_flops: those of the head.
    weight_bytes: of the weights that are read anew, over all passes.
    cache_bytes: of keys and values that are read, over all steps.
  """

  flops: int
  needed_flops: int
  needed_head_flops: int
  weight_bytes: int = 0
  cache_bytes: int = 0


def rounds(
  call: Callable, repeats: int, round_seconds: float | None = None
) -> list[float]:
  """Seconds per call, from `repeats` rounds of calls after a warm-up."""
  jax.block_until_ready(call())
  start = time.perf_counter()
  jax.block_until_ready(call())
  once = time.perf_counter() - start
  length = ROUND_SECONDS if round_seconds is None else round_seconds
  calls = max(1, min(MAX_CALLS, round(length / once)))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      done = call()
    jax.block_until_ready(done)
    seconds.append((time.perf_counter() - start) / calls)
  return seconds


def speed(seconds: list[float], images: int) -> dict:
  """Columns of speed, from seconds per call."""
  median = statistics.median(seconds)
  return {
    "seconds": median,
    "seconds_fastest": min(seconds),
    "seconds_slowest": max(seconds),
    "repeats": len(seconds),
    "images_per_second": images / median,
  }


def rates(seconds: list[float], images: int, flops: int) -> dict:
  """Those of `speed`, and of the arithmetic, from FLOPs of a call."""
  found = speed(seconds, images)
  found["flops"] = flops
  found["tflops_per_second"] = flops / found["seconds"] / 1e12
  chip = chip_of(jax.devices()[0])
  if chip:
    found["share_of_bfloat16_peak"] = found["tflops_per_second"] / chip.tflops
  return found


def floors(seconds: float, work: Work, num_devices: int = 1) -> dict:
  """Columns that compare seconds per call with what it must take at least."""
  matmul = work.needed_flops / (1e12 * matmul_tflops()) / num_devices
  found = {
    "needed_flops": work.needed_flops,
    "needed_head_flops": work.needed_head_flops,
    "matmul_tflops": matmul_tflops(),
    "floor_matmul_seconds": matmul,
    "floor_seconds": matmul,
  }
  if work.weight_bytes:
    found["copy_gigabytes_per_second"] = copy_gigabytes_per_second()
    rate = 1e9 * copy_gigabytes_per_second()
    weights, caches = work.weight_bytes / rate, work.cache_bytes / rate
    found["floor_weight_seconds"] = weights
    if caches:
      found["floor_cache_seconds"] = caches
    found["floor_seconds"] = max(matmul, weights + caches)
  return {**found, "share_of_floor": found["floor_seconds"] / seconds}


@functools.cache
def matmul_tflops() -> float:
  """TFLOP/s of one large square product on the first device.

  It is of 8192³ in bfloat16; on CPUs of 1024³ in float32.
  """
  is_cpu = jax.devices()[0].platform == "cpu"
  size, dtype = (1024, jnp.float32) if is_cpu else (8192, jnp.bfloat16)
  a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
  product = jax.jit(jnp.matmul)
  return 2 * size**3 / _machine_seconds(lambda: product(a, b)) / 1e12


@functools.cache
def copy_gigabytes_per_second() -> float:
  """GB/s of an elementwise pass over 1 GiB (CPUs: 64 MiB): read and written."""
  is_cpu = jax.devices()[0].platform == "cpu"
  values = jnp.zeros(2**24 if is_cpu else 2**28, jnp.float32)
  add = jax.jit(lambda x: x + 1)
  return 2 * values.nbytes / _machine_seconds(lambda: add(values)) / 1e9


def _machine_seconds(call: Callable) -> float:
  return statistics.median(rounds(call, _MACHINE_REPEATS, _MACHINE_SECONDS))


def parts(
  whole: float, transformer: list[float], head: list[float]
) -> dict[str, float]:
  """Columns of the split; the rest may be slightly negative."""
  transformer, head = statistics.median(transformer), statistics.median(head)
  return {
    "seconds_transformer": transformer,
    "seconds_head": head,
    "seconds_rest": whole - transformer - head,
  }


def memory(compiled) -> int:
  """Bytes the program holds on a device: arguments, results, temporaries.

  0 where the compiler does not say.
  """
  found = compiled.memory_analysis()
  if found is None:
    return 0
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    - found.alias_size_in_bytes
  )


def peak_memory() -> int | None:
  """Most bytes in use so far on the first device, if it keeps count."""
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def new_peak(before: int | None) -> dict:
  """The peak of memory as a column, if it rose since `before`."""
  now = peak_memory()
  has_risen = now is not None and now > (before or 0)
  return {"peak_memory_bytes": now} if has_risen else {}


def count_parameters(params: PyTree) -> dict[str, int]:
  """Numbers in the backbone, in the head, and in both."""
  found = {
    name: sum(leaf.size for leaf in jax.tree.leaves(params[name]))
    for name in ("backbone", "head")
  }
  return {**found, "all": sum(found.values())}
