"""Does it fit, what does it exchange, and how fast can it be at best?

1. Memory of one chip: what the arrays of training or generation take there, the
   batch, what XLA needs while it runs, and the program itself.
2. A program that does not fit is not compiled to the end; XLA says how much it
   would have needed, and `advice` what to change.
3. The bound on the time of a step: the longest of arithmetic at the chip's
   peak, traffic with its memory, and exchange over its links, each as if it had
   the chip to itself. It is a bound, not a forecast; and the slower network
   between slices is taken to be as fast as the links within one.
"""

import dataclasses
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
from jax.sharding import Mesh

from marjax.experiment import Experiment
from marjax.parallel.chips import GIB, Chip, chip_of
from marjax.parallel.mesh import mesh_for
from marjax.preflight import costs, hlo, programs
from marjax.preflight.costs import Collective
from marjax.preflight.programs import Program
from marjax.schema import check
from marjax.version import __version__

IMAGENET_IMAGES = 1_281_167

STATE = ("parameters", "averages", "optimizer")


@dataclass(frozen=True)
class Exchange:
  """Collectives of one kind in one step: runs, whole and sent bytes."""

  count: int = 0
  num_bytes: float = 0.0
  sent_bytes: float = 0.0


@dataclass(frozen=True)
class Bound:
  """Seconds that one step takes at least, by what takes them.

  Attributes:
    arithmetic, memory, links: each alone.
    seconds: the longest. utilisation: useful arithmetic over the peak, then.
  """

  arithmetic: float
  memory: float
  links: float
  seconds: float
  utilisation: float


@dataclass(frozen=True, kw_only=True)
class Report:
  """What a preflight found, per chip and per step (or batch of images).

  Attributes:
    config, program, topology, device_kind: what was asked for.
    num_chips: devices. mesh: axis → devices along it.
    batch_size: images of a step, over all chips.
    memory: part → bytes. limit: bytes that a chip has, None if unknown.
    needed: bytes in all. advice: what to change where that is too much.
    collectives: kind → what is exchanged; largest: the costliest ones.
    useful_flops, program_flops: without and with padding and recomputation;
      None where it did not compile.
    bound: None where the chip is not known.
    compile_seconds: on this machine.
  """

  config: str
  program: str
  topology: str
  device_kind: str
  num_chips: int
  mesh: dict[str, int]
  batch_size: int
  memory: dict[str, float]
  needed: float
  limit: float | None
  advice: tuple[str, ...] = ()
  collectives: dict[str, Exchange] = field(default_factory=dict)
  largest: tuple[Collective, ...] = ()
  useful_flops: float
  program_flops: float | None = None
  memory_traffic: float | None = None
  bound: Bound | None = None
  compile_seconds: float
  marjax_version: str = __version__
  jax_version: str = jax.__version__

  @property
  def fits(self) -> bool | None:
    """Whether a chip has that much memory; None where that is unknown."""
    return None if self.limit is None else self.needed <= self.limit


def preflight(
  experiment: Experiment,
  devices: list,
  topology: str,
  program: str = "train",
  batch_size: int | None = None,
  num_examples: int = IMAGENET_IMAGES,
) -> Report:
  """Compiles and measures.

  Args:
    experiment: the configuration; its mesh is laid over the devices.
    devices: from `topology.devices_of(topology)`.
    program: "train" or "generate".
    batch_size: images of a generation, over all chips; None for `batching`'s.
    num_examples: of the training set, which epochs are counted in.

  Raises:
    ValueError: a mesh that does not fit, a loop of unknown length.
  """
  mesh = mesh_for(experiment, devices)
  size = experiment.training.batch_size
  if program == "train":
    made = programs.train_programs(experiment, mesh, num_examples)
    useful = programs.useful_train_flops(experiment)
  else:
    size = _generation_batch(mesh, batch_size)
    made = programs.generate_programs(experiment, mesh, size)
    useful = programs.useful_generate_flops(experiment, size)
  about = {
    "config": experiment.name,
    "program": program,
    "topology": topology,
    "device_kind": devices[0].device_kind,
    "num_chips": len(devices),
    "mesh": dict(mesh.shape),
    "batch_size": size,
    "useful_flops": useful / len(devices),
    "limit": memory_limit(devices),
  }
  chip, start = chip_of(devices[0]), time.perf_counter()
  try:
    found = list(made)
  except jax.errors.JaxRuntimeError as error:
    needed = needed_bytes(str(error))
    if needed is None:
      raise
    return _too_large(experiment, mesh, about, needed, start)
  return _measured(experiment, found, about, chip, start)


def _generation_batch(mesh: Mesh, asked: int | None) -> int:
  from marjax import batching

  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  size = batching.LARGEST_BATCH * parts if asked is None else asked
  check(
    size > 0 and size % parts == 0,
    f"batch_size is {asked}; expected a multiple of {parts}, the devices that"
    " the mesh splits a batch over.",
  )
  return size


def needed_bytes(message: str) -> float | None:
  """What XLA says that a program needs of a chip's memory, if it says so."""
  units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
  for form in (
    r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm",
    r"\(([\d.]+)([KMGT])\) exceeds available HBM",
  ):
    found = re.search(form, message)
    if found:
      return float(found[1]) * units[found[2]]
  return None


def memory_limit(devices: list) -> float | None:
  """Bytes of its memory that a program can have of each device, if known."""
  chip = chip_of(devices[0])
  if chip:
    return chip.memory
  if devices[0].platform == "cpu":
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole / len(devices)
  return (devices[0].memory_stats() or {}).get("bytes_limit")


def _too_large(experiment, mesh, about, needed, start) -> Report:
  """What is known of a program that XLA refused to finish."""
  held = programs.held(experiment, mesh, about["program"])
  memory = held | {"temporaries": max(0.0, needed - sum(held.values()))}
  report = Report(
    **about,
    memory=memory,
    needed=needed,
    compile_seconds=time.perf_counter() - start,
  )
  return dataclasses.replace(report, advice=advice(report, experiment))


def _measured(experiment, found: list[Program], about, chip, start) -> Report:
  seconds = time.perf_counter() - start
  memories = [_memory(program) for program in found]
  memory = max(memories, key=lambda parts: sum(parts.values()))
  modules = [hlo.parse(program.compiled.as_text()) for program in found]
  exchanges = [c for module in modules for c in costs.collectives(module)]
  work = sum(costs.flops(module) for module in modules)
  traffic = sum(costs.memory_traffic(module) for module in modules)
  sent = sum((exchange.sent_bytes for exchange in exchanges), 0.0)
  costly = sorted(exchanges, key=lambda exchange: -exchange.sent_bytes)
  report = Report(
    **about,
    memory=memory,
    needed=sum(memory.values()),
    collectives=by_kind(exchanges),
    largest=tuple(costly[:8]),
    program_flops=work,
    memory_traffic=traffic,
    bound=chip and bound(chip, about["useful_flops"], work, traffic, sent),
    compile_seconds=seconds,
  )
  return dataclasses.replace(report, advice=advice(report, experiment))


def _memory(program: Program) -> dict[str, float]:
  """Bytes on one chip while the program runs, by part."""
  sizes = program.compiled.memory_analysis()
  others = sizes.argument_size_in_bytes - sum(program.held.values())
  results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  return {
    **program.held,
    "other arguments": max(0.0, float(others)),
    "temporaries": sizes.temp_size_in_bytes + max(0.0, float(results)),
    "program": float(sizes.generated_code_size_in_bytes),
  }


def by_kind(exchanges: list[Collective]) -> dict[str, Exchange]:
  """Sums of each kind that there is."""
  found = {}
  for kind in costs.KINDS:
    mine = [exchange for exchange in exchanges if exchange.kind == kind]
    if mine:
      found[kind] = Exchange(
        sum(exchange.times for exchange in mine),
        sum(exchange.times * exchange.num_bytes for exchange in mine),
        sum(exchange.sent_bytes for exchange in mine),
      )
  return found


def bound(
  chip: Chip, useful: float, work: float, traffic: float, sent: float
) -> Bound:
  """From FLOPs and bytes of one chip."""
  peak = 1e12 * chip.tflops
  arithmetic, memory = work / peak, traffic / (1e9 * chip.memory_gbps)
  links = sent / (1e9 * chip.link_gbps)
  seconds = max(arithmetic, memory, links)
  return Bound(arithmetic, memory, links, seconds, useful / peak / seconds)


def advice(report: Report, experiment: Experiment) -> tuple[str, ...]:
  """What to change, where a program does not fit; first what costs least."""
  if report.fits is not False:
    return ()
  over = (report.needed - report.limit) / GIB
  found = [f"{over:.3g} GiB more are needed than a chip has"]
  split = report.mesh["fsdp"] * report.mesh["tensor"]
  state = sum(report.memory.get(part, 0.0) for part in STATE)
  saved = state * (1 - split / report.num_chips)
  if saved > 0.01 * report.needed:
    found.append(
      "split the state over all chips: --config.mesh.preset=fsdp saves about"
      f" {saved / GIB:.3g} GiB"
    )
  if report.program == "train":
    found += _train_advice(report, experiment)
  elif report.batch_size > report.num_chips:
    found.append(f"halve the batch: --batch_size {report.batch_size // 2}")
  found.append("take more chips, or chips with more memory")
  return tuple(found)


def _train_advice(report: Report, experiment: Experiment) -> Iterator[str]:
  training, backbone = experiment.training, experiment.model.backbone
  if backbone.remat != "full":
    yield "recompute blocks: --config.model.backbone.remat=full"
  parts, temporaries = training.num_microbatches, report.memory["temporaries"]
  room = report.limit - (report.needed - temporaries)
  images = report.batch_size // (report.mesh["data"] * report.mesh["fsdp"])
  strata = experiment.model.masking.num_strata
  if room <= 0:
    return
  # Temporaries grow with the images that are worked on at a time.
  count = 2
  while temporaries / count > room:
    count *= 2
  if images % (parts * count * strata) == 0:
    yield (
      "work in microbatches: --config.training.num_microbatches="
      f"{parts * count} needs about {temporaries / count / GIB:.3g} GiB for"
      f" temporaries instead of {temporaries / GIB:.3g}"
    )
  if images % (count * parts) == 0:
    yield (
      "or a smaller batch: --config.training.batch_size="
      f"{report.batch_size // count} needs as little"
    )
