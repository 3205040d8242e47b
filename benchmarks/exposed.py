"""Time in which GPUs do nothing but communicate, read from a profile.

1. A few calls run under jax's profiler, which writes an xplane.pb. In it a GPU
   is a plane, "/device:GPU:0", a CUDA stream is a line, "Stream #13(Compute)",
   and a kernel or a copy is an event.
2. A kernel is a collective if NCCL is in its name, or if the instruction that
   it belongs to, its `hlo_op`, is one.
3. Exposed is the time that collectives cover and nothing else does:

       other kernels   ████████    ████
       collectives         ████████████████
       exposed                 ████    ████

   which is what all events cover, less what the others cover.
4. The mean over GPUs, per call. A collective lasts until the slowest GPU has
   come to it, so waiting for each other is part of it.
"""

import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.profiler import ProfileData, ProfileOptions

from marjax.preflight.costs import KINDS

_IN_HLO = re.compile(rf"\b({'|'.join(KINDS)})(?:-start)?\(")
_DEVICE = re.compile(r"/device:GPU:\d+")
_STREAM = "Stream"
_KERNELS = ("nccl", "nvshmem")

Span = tuple[float, float]


@dataclass(frozen=True)
class Communication:
  """Seconds of one call, mean over GPUs; None where they are not known.

  Attributes:
    seconds: in which collectives run.
    exposed_seconds: in which nothing else does.
    reason: why it is not known, "" if it is.
  """

  seconds: float | None
  exposed_seconds: float | None
  reason: str = ""


NONE = Communication(0.0, 0.0)
"""That of a program without collectives."""


def unknown(reason: str) -> Communication:
  """What could not be measured, and why."""
  return Communication(None, None, reason)


def collectives(text: str) -> dict[str, int]:
  """How many instructions of each kind a compiled program's text has.

  One inside a loop counts once.
  """
  counts = dict.fromkeys(KINDS, 0)
  for found in _IN_HLO.finditer(text):
    counts[found[1]] += 1
  return {kind: count for kind, count in counts.items() if count}


def measure(call: Callable, num_calls: int, num_devices: int) -> Communication:
  """Runs the calls, on that many devices, under the profiler."""
  folder = Path(tempfile.mkdtemp(prefix="marjax-exposed-"))
  options = ProfileOptions()
  # Events of the host are most of a trace, and nothing here reads them.
  options.python_tracer_level = options.host_tracer_level = 0
  try:
    with jax.profiler.trace(str(folder), profiler_options=options):
      for _ in range(num_calls):
        done = call()
      jax.block_until_ready(done)
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
      return unknown("the profiler wrote no xplane.pb")
    return read(ProfileData.from_file(str(files[-1])), num_calls, num_devices)
  except (RuntimeError, OSError) as error:
    return unknown(f"the profiler failed: {error}".splitlines()[0])
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def read(
  profile: ProfileData, num_calls: int, num_devices: int
) -> Communication:
  """What a profile of that many calls on that many GPUs says."""
  planes = [p for p in profile.planes if _DEVICE.fullmatch(p.name)]
  gpus = [events for events in map(_events, planes) if events]
  if len(gpus) != num_devices:
    names = {line.name for plane in planes for line in plane.lines}
    return unknown(
      f"the profile has kernels of {len(gpus)} GPUs, not of {num_devices}; its"
      f" lines: {', '.join(sorted(names)) or 'none'}"
    )
  whole, exposed = [], []
  for events in gpus:
    others = covered(span for span, is_ours in events if not is_ours)
    exposed.append(covered(span for span, _ in events) - others)
    whole.append(covered(span for span, is_ours in events if is_ours))
  if not any(whole):
    return unknown("the profile has no collective that could be recognised")
  return Communication(
    1e-9 * statistics.mean(whole) / num_calls,
    1e-9 * statistics.mean(exposed) / num_calls,
  )


def covered(spans: Iterable[Span]) -> float:
  """The length that spans (start, end) cover together."""
  total, end = 0.0, float("-inf")
  for start, stop in sorted(spans):
    total += max(0.0, stop - max(start, end))
    end = max(end, stop)
  return total


def _events(plane) -> list[tuple[Span, bool]]:
  """(span in ns, whether it is a collective) of each kernel and copy."""
  return [
    ((event.start_ns, event.start_ns + event.duration_ns), _is_ours(event))
    for line in plane.lines
    # Other lines repeat the events of streams, by module or by step.
    if line.name.startswith(_STREAM)
    for event in line.events
  ]


def _is_ours(event) -> bool:
  if any(part in event.name.lower() for part in _KERNELS):
    return True
  return str(dict(event.stats).get("hlo_op", "")).startswith(KINDS)
