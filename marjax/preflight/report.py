"""Does it fit, what does it exchange, and how fast can it be at best?

1. Memory of one chip: what the arrays of training or generation take there, the
   batch, what XLA needs while it runs, and the program itself.
2. A program that does not fit is not compiled to the end; XLA says how much it
   would have needed, and `advice` what to change.
3. The work of one chip, and a bound on its time: see `marjax.preflight.bounds`.
   That of a generation also part by part of the model, and what its plan pads.
"""

import dataclasses
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
from jax.sharding import Mesh

from marjax.experiment import Experiment, MeshConfig
from marjax.generate import reveal
from marjax.parallel.chips import GIB, chip_of
from marjax.parallel.mesh import mesh_for
from marjax.preflight import bounds, costs, hlo, parts, programs
from marjax.preflight.bounds import Bound
from marjax.preflight.costs import Collective
from marjax.preflight.parts import Padding, Work
from marjax.preflight.programs import Program
from marjax.requests import batching
from marjax.schema import check
from marjax.train import flops
from marjax.version import __version__


@dataclass(frozen=True)
class Exchange:
  """Collectives of one kind in one step: runs, whole and sent bytes."""

  count: int
  num_bytes: float
  sent_bytes: float


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
    parts: part of the model → its share of all that, of a generation.
    padding: of each segment of a generation's plan.
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
  parts: dict[str, Work] = field(default_factory=dict)
  padding: tuple[Padding, ...] = ()
  compile_seconds: float
  marjax_version: str = __version__
  jax_version: str = jax.__version__

  @property
  def fits(self) -> bool | None:
    """Whether a chip has that much memory; None where that is unknown."""
    return None if self.limit is None else self.needed <= self.limit

  @property
  def whole(self) -> Work:
    """The work of all parts together, of a program that did compile."""
    sent = sum(each.sent_bytes for each in self.collectives.values())
    flops = (self.useful_flops, self.program_flops)
    return Work(*flops, self.memory_traffic, float(sent), self.bound)


def preflight(
  experiment: Experiment,
  devices: list,
  topology: str,
  program: str = "train",
  batch_size: int | None = None,
) -> Report:
  """Compiles and measures.

  Args:
    experiment: the configuration; its mesh is laid over the devices.
    devices: from `topology.devices_of(topology)`.
    program: "train" or "generate".
    batch_size: images of a generation, over all chips; None for `batching`'s.

  Raises:
    ValueError: a mesh that does not fit, a loop of unknown length.
  """
  mesh = mesh_for(experiment, devices)
  size = experiment.training.batch_size
  if program == "train":
    lowered = programs.train_programs(experiment, mesh)
    useful, padding = {"": flops.training_flops(experiment.model) * size}, ()
  else:
    size = _generation_batch(mesh, batch_size)
    lowered = programs.generate_programs(experiment, mesh, size)
    useful = programs.useful_flops(experiment, size)
    settings = experiment.sampling.for_model(experiment.model)
    plan = reveal.plan_for(experiment.model, settings)
    padding = parts.padding(plan, experiment.model.backbone.step_cost)
  useful = {part: work / len(devices) for part, work in useful.items()}
  about = {
    "config": experiment.name,
    "program": program,
    "topology": topology,
    "device_kind": devices[0].device_kind,
    "num_chips": len(devices),
    "mesh": dict(mesh.shape),
    "batch_size": size,
    "useful_flops": sum(useful.values()),
    "padding": padding,
    "limit": bounds.limit(devices),
  }
  start = time.perf_counter()
  try:
    ready = list(lowered)
  except jax.errors.JaxRuntimeError as error:
    needed = needed_bytes(str(error))
    if needed is None:
      raise
    state = programs.state(experiment, mesh, program)
    state["temporaries"] = max(0.0, needed - sum(state.values()))
    about |= {"memory": state, "needed": needed}
  seconds = time.perf_counter() - start
  if "needed" not in about:
    about |= _measured(ready, program, useful, chip_of(devices[0]))
  report = Report(**about, compile_seconds=seconds)
  return dataclasses.replace(report, advice=advice(report, experiment))


def _generation_batch(mesh: Mesh, asked: int | None) -> int:
  count = mesh.shape["data"] * mesh.shape["fsdp"]
  size = batching.LARGEST_BATCH * count if asked is None else asked
  check(
    size > 0 and size % count == 0,
    f"batch_size is {asked}; expected a multiple of {count}, the devices that"
    " the mesh splits a batch over.",
  )
  return size


def needed_bytes(message: str) -> float | None:
  """What XLA says that a program needs of a chip's memory, if it says so."""
  units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
  forms = r"Used ([\d.]+[KMGT]) of|\(([\d.]+[KMGT])\) exceeds available HBM"
  sizes = re.search(forms, message)
  if sizes is None:
    return None
  size = sizes[1] or sizes[2]
  return float(size[:-1]) * units[size[-1]]


def _measured(
  ready: list[Program], program: str, useful: dict[str, float], chip
) -> dict:
  """What is known of programs that did compile."""
  memory = max(
    (each.memory() for each in ready), key=lambda sizes: sum(sizes.values())
  )
  modules = [hlo.parse(each.compiled.as_text()) for each in ready]
  exchanges = [each for m in modules for each in costs.collectives(m)]
  costly = sorted(exchanges, key=lambda exchange: -exchange.sent_bytes)
  work = sum(number for m in modules for _, number in costs.products(m))
  traffic = sum(number for m in modules for _, number in costs.transfers(m))
  sent = sum(each.sent_bytes for each in exchanges)
  numbers = (sum(useful.values()), float(work), float(traffic), float(sent))
  is_generation = program == "generate"
  return {
    "memory": memory,
    "needed": sum(memory.values()),
    "collectives": by_kind(exchanges),
    "largest": tuple(costly[:8]),
    "program_flops": numbers[1],
    "memory_traffic": numbers[2],
    "bound": chip and bounds.bound(chip, *numbers),
    "parts": parts.by_part(modules, useful, chip) if is_generation else {},
  }


def by_kind(exchanges: list[Collective]) -> dict[str, Exchange]:
  """Sums of each kind that there is."""
  kinds = {}
  for kind in costs.KINDS:
    same = [each for each in exchanges if each.kind == kind]
    if same:
      kinds[kind] = Exchange(
        sum(each.times for each in same),
        sum(each.times * each.num_bytes for each in same),
        sum(each.sent_bytes for each in same),
      )
  return kinds


def advice(report: Report, experiment: Experiment) -> tuple[str, ...]:
  """What to change, where a program does not fit; first what costs least."""
  if report.fits is not False:
    return ()
  over = (report.needed - report.limit) / GIB
  changes = [f"{over:.3g} GiB more are needed than a chip has"]
  split = report.mesh["fsdp"] * report.mesh["tensor"]
  names = ("parameters", "averages", "optimizer")
  state = sum(report.memory.get(name, 0.0) for name in names)
  saved = state * (1 - split / report.num_chips)
  if saved > 0.01 * report.needed:
    sizes = dataclasses.asdict(MeshConfig("fsdp"))
    flags = "".join(
      f" --config.mesh.{name}={value}"
      for name, value in sizes.items()
      if name == "preset" or getattr(experiment.mesh, name) != value
    )
    changes.append(
      f"split the state over all chips:{flags} saves about"
      f" {saved / GIB:.3g} GiB"
    )
  if report.program == "train":
    changes += _train_advice(report, experiment)
  elif report.batch_size > report.num_chips:
    changes.append(f"halve the batch: --batch_size {report.batch_size // 2}")
  changes.append("take more chips, or chips with more memory")
  return tuple(changes)


def _train_advice(report: Report, experiment: Experiment) -> Iterator[str]:
  training, backbone = experiment.training, experiment.model.backbone
  if backbone.remat != "full":
    yield "recompute blocks: --config.model.backbone.remat=full"
  parts, temporaries = training.num_microbatches, report.memory["temporaries"]
  room = report.limit - (report.needed - temporaries)
  images = report.batch_size // (report.mesh["data"] * report.mesh["fsdp"])
  strata = experiment.model.backbone.batch_multiple
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
