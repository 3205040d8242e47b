"""What one device can do, from its maker's data sheet.

Peaks are dense bfloat16; memory is what XLA lets a program have of it; links
are the sum over a chip's links to others, one way. A CPU has no entry: its peak
depends on its clock and vector units.
"""

from dataclasses import dataclass
from typing import Any

GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
  """One kind of device.

  Attributes:
    name: what it is called in a topology, or for people.
    tflops: bfloat16 peak, TFLOP/s.
    memory: bytes that a program can use.
    memory_gbps, link_gbps: GB/s to its memory, and to other chips.
  """

  name: str
  tflops: float
  memory: float
  memory_gbps: float
  link_gbps: float


CHIPS = {
  "TPU v4": Chip("v4", 275.0, 30.75 * GIB, 1228.0, 300.0),
  "TPU v5 lite": Chip("v5e", 197.0, 15.75 * GIB, 819.0, 200.0),
  "TPU v5": Chip("v5p", 459.0, 95.74 * GIB, 2765.0, 600.0),
  "TPU v6 lite": Chip("v6e", 918.0, 31.25 * GIB, 1640.0, 448.0),
  "NVIDIA A100-SXM4-40GB": Chip("A100", 312.0, 39 * GIB, 1555.0, 300.0),
  "NVIDIA A100-SXM4-80GB": Chip("A100", 312.0, 79 * GIB, 2039.0, 300.0),
  "NVIDIA H100 80GB HBM3": Chip("H100", 989.0, 79 * GIB, 3350.0, 450.0),
  "NVIDIA H200": Chip("H200", 989.0, 139 * GIB, 4800.0, 450.0),
}
"""By `device_kind`."""


def chip_of(device: Any) -> Chip | None:
  """The entry of a device, None where it is not known."""
  return CHIPS.get(device.device_kind)
