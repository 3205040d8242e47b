"""Where a number was measured: versions, device, processor.

Every report and every benchmark row carries this, so that two of them can be
compared, or seen not to be comparable.
"""

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path

from marjax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def versions(*more: str) -> dict[str, str]:
  """Versions of Python, marjax and the packages that decide the numbers.

  Args:
    more: further packages to name; one that is missing is left out.
  """
  found = {"python": platform.python_version(), "marjax": __version__}
  for name in (*PACKAGES, *more):
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[name] = metadata.version(name)
  return found


def device() -> dict[str, str | int]:
  """The accelerator jax computes on, how many, and the host's processor."""
  import jax

  first = jax.devices()[0]
  return {
    "platform": first.platform,
    "kind": first.device_kind,
    "count": jax.device_count(),
    "processor": processor(),
    "cores": num_cores(),
  }


def num_cores() -> int:
  """The cores that this process may use, which may be fewer than there are."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def processor() -> str:
  """The processor's name as Linux gives it, else its architecture."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  named = [line for line in lines if line.startswith("model name")]
  return named[0].split(":", 1)[1].strip() if named else platform.machine()
