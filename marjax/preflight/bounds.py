"""What a chip bounds: the memory of a program, and its time from below.

The shortest time is the longest of arithmetic at the chip's peak, traffic with
its memory, and exchange over its links, each as if it had the chip to itself.
It is a bound, not a forecast; and the slower network between slices is taken to
be as fast as the links within one.
"""

import os
from dataclasses import dataclass

from marjax.parallel.chips import Chip, chip_of


def limit(devices: list) -> float | None:
  """Bytes of its memory that a program can have of each device, if known."""
  chip = chip_of(devices[0])
  if chip:
    return chip.memory
  if devices[0].platform == "cpu":
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole / len(devices)
  return (devices[0].memory_stats() or {}).get("bytes_limit")


@dataclass(frozen=True)
class Bound:
  """Seconds that some work takes at least, by what takes them.

  Attributes:
    arithmetic, memory, links: each alone.
    seconds: the longest. utilisation: useful arithmetic over the peak, then.
  """

  arithmetic: float
  memory: float
  links: float
  seconds: float
  utilisation: float

  @property
  def longest(self) -> str:
    """Which of the three takes the longest."""
    return max(("arithmetic", "memory", "links"), key=self.__getattribute__)


def bound(
  chip: Chip, useful: float, work: float, traffic: float, sent: float
) -> Bound:
  """From FLOPs and bytes of one chip."""
  peak = 1e12 * chip.tflops
  arithmetic, memory = work / peak, traffic / (1e9 * chip.memory_gbps)
  links = sent / (1e9 * chip.link_gbps)
  seconds = max(arithmetic, memory, links)
  share = useful / peak / seconds if seconds else 0.0
  return Bound(arithmetic, memory, links, seconds, share)
