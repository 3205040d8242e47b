"""Values that a config of one's own pictures leaves open, as flags.

A config that has a top-level `image_size` is one of these; what is None in it
is filled in this order, and what is typed stays as it is:

1. Of the pictures: `data.survey`, and the mean and deviation of their pixels.
2. Tokens: the patch that makes so many of them a side, or the nearest one.
3. The model's size and the batch: small on a CPU, larger elsewhere.
4. Steps: as many as take so many minutes at the speed that a product of
   matrices has here, but no picture is seen more than VIEWS times.
5. Reports every few seconds; ten checkpoints and pictures of samples.

A run that has a checkpoint keeps all of it: what is open is then read from its
config.json, whatever the pictures or the machine are now.
"""

import logging
import math
import shlex
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from marjax import outputs
from marjax.data import sources, survey
from marjax.evaluate import environment
from marjax.experiment import DataConfig, Experiment
from marjax.parallel import hosts
from marjax.parallel.mesh import host_mesh
from marjax.release import workdir as workdirs
from marjax.schema import check, from_dict, to_dict
from marjax.train import initial
from marjax.train.flops import training_flops

log = logging.getLogger("marjax.train")


class Sizes(NamedTuple):
  """What a kind of device is given to do.

  Attributes:
    across: tokens a side. width, depth: of the backbone.
    head, repeats: width of the head, and how often it sees a token.
    dtype: of products of matrices.
    batch: pictures at most. minutes: of training.
  """

  across: int
  width: int
  depth: int
  head: int
  repeats: int
  dtype: str
  batch: int
  minutes: float


CPU = Sizes(8, 128, 2, 192, 1, "float32", 64, 20.0)
ACCELERATOR = Sizes(16, 512, 6, 1024, 4, "bfloat16", 256, 60.0)

VIEWS = 1000
"""Times that a picture is seen at most."""

FEWEST_STEPS = 200

EFFICIENCY = 0.25
"""Of a step's arithmetic, against that of a large product alone."""

REPORT_SECONDS = 2.0

AR_STEPS = 32

OWN = ("image_size", "channels", "num_tokens", "num_classes", "dtype")
"""What new pictures, and another machine, may have otherwise than the model to
start from."""


def fill(mapping: Mapping[str, Any], workdir: str = "") -> Experiment:
  """The experiment, with every open value filled in and told.

  Args:
    mapping: of a config file. workdir: of the run, if there is one.

  Raises:
    ValueError, FileNotFoundError: the pictures are not there, cannot be read,
      or are too few or too small.
  """
  draft = Draft(mapping)
  if stored := _begun(workdir):
    draft.repeat(stored)
    log.info(
      "%s has begun: what is not typed is as in its config.json, whatever"
      " the pictures and the machine are now",
      outputs.shown(workdir),
    )
    return draft.experiment()
  _fill_start(draft)
  data, count = fill_data(draft)
  name = jax.default_backend()
  _fill_model(draft, name)
  speed = _flops_per_second()
  _fill_training(draft, name, count, speed)
  experiment = draft.experiment()
  log.info("not typed, so derived:\n%s", "\n".join(draft.lines))
  if survey.has_split(data, data.test_split):
    log.info("%s", survey.report(data, data.test_split))
  _tell_time(experiment, count, speed)
  return experiment


class Draft:
  """A nested mapping with holes, and a line for each that was filled."""

  def __init__(self, mapping: Mapping[str, Any]):
    self._values = flatten_dict(dict(mapping), sep=".")
    size, own = self._values.pop("image_size"), "data.image_size"
    check(
      None in (size, self._values.get(own)) or size == self._values[own],
      f"image_size is {size} and data.image_size {self._values.get(own)};"
      " expected one of them: leave the other out.",
    )
    if size is not None:
      self._values[own] = size
    self.lines: list[str] = []

  def __getitem__(self, key: str) -> Any:
    return self._values[key]

  def is_open(self, key: str) -> bool:
    """Whether the config has that key, without a value."""
    return key in self._values and self._values[key] is None

  def fill(self, key: str, value: Any, why: str) -> None:
    """Gives an open key its value; others keep theirs."""
    if self.is_open(key):
      self._values[key] = value
      flag = shlex.quote(f"--config.{key}={value}")
      self.lines.append(f"  {flag}  # {why}")

  def repeat(self, stored: Mapping[str, Any]) -> None:
    """Gives each open key the value that a run began with."""
    for key in filter(self.is_open, list(self._values)):
      self._values[key] = stored.get(key)

  def part(self, name: str) -> dict[str, Any]:
    """The fields of one group."""
    start = f"{name}."
    return {
      key.removeprefix(start): value
      for key, value in self._values.items()
      if key.startswith(start)
    }

  def nested(self) -> dict[str, Any]:
    """The mapping, as deep as it was."""
    return unflatten_dict(self._values, sep=".")

  def experiment(self) -> Experiment:
    """The whole, checked."""
    return from_dict(Experiment, self.nested(), "config")


def fill_data(draft: Draft) -> tuple[DataConfig, int]:
  """Fills `data` and what the codec must know of it; how many to train on."""
  data, found = survey.complete(draft.part("data"))
  for name, (value, why) in found.items():
    draft.fill(f"data.{name}", value, why)
  for name in ("image_size", "channels"):
    draft.fill(f"codec.{name}", getattr(data, name), "as data has it")
  names = survey.names_of(data)
  count = len(sources.open_source(data, data.train_split, names))
  if draft.is_open("codec.mean") or draft.is_open("codec.std"):
    mean, deviation = survey.statistics(data, names)
    draft.fill("codec.mean", mean, "of the pixels, in [-1, 1]")
    draft.fill("codec.std", deviation, "their deviation")
  return data, count


def patch_of(size: int, across: int) -> int:
  """The patch, a divisor of the size, with about that many tokens a side."""
  divisors = [n for n in range(1, size + 1) if size % n == 0]
  return min(divisors, key=lambda n: (abs(math.log(size / n / across)), n))


def rounded(number: int | float) -> int:
  """The number with two digits that are not 0, and at least 1."""
  digits = max(0, math.floor(math.log10(max(1.0, number))) - 1)
  return max(1, int(number / 10**digits) * 10**digits)


def _begun(workdir: str) -> dict[str, Any]:
  """Of a run that has a checkpoint its configuration, flat; else nothing."""
  if not workdir:
    return {}
  path = outputs.path_of(workdir)
  if not (path / workdirs.CONFIG).exists():
    return {}
  if workdirs.latest_step(path / "checkpoints") is None:
    return {}
  return flatten_dict(to_dict(workdirs.read_experiment(path)), sep=".")


def _fill_start(draft: Draft) -> None:
  """Fills what the weights to start from decide: scales of tokens, shapes."""
  name = draft.part("training").get("init_from")
  if not name:
    return
  card = initial.load(name, host_mesh()).card
  parts = {"codec": to_dict(card.codec), "model": to_dict(card.model)}
  why = f"as {outputs.shown(name)} has it, from which it starts"
  for key, value in flatten_dict(parts, sep=".").items():
    if not key.endswith(OWN):
      draft.fill(key, value, why)


def _sizes(name: str) -> Sizes:
  return CPU if name == "cpu" else ACCELERATOR


def _fill_model(draft: Draft, name: str) -> None:
  sizes = _sizes(name)
  size, channels = draft["data.image_size"], draft["data.channels"]
  why = f"about {sizes.across} tokens a side on {name}"
  draft.fill("codec.patch", patch_of(size, sizes.across), why)
  patch = draft["codec.patch"]
  check(
    isinstance(patch, int) and patch > 0 and size % patch == 0,
    f"codec.patch is {patch!r}; expected a divisor of the image size, {size}.",
  )
  num_tokens, token_dim = (size // patch) ** 2, patch**2 * channels
  how = f"({size} / {patch})²"
  draft.fill("model.backbone.num_tokens", num_tokens, how)
  how = f"{patch}² pixels of {channels}"
  for part in ("backbone", "head"):
    draft.fill(f"model.{part}.token_dim", token_dim, how)
    draft.fill(f"model.{part}.dtype", sizes.dtype, f"products on {name}")
  num_classes = draft["data.num_classes"]
  key = "model.backbone.condition.num_classes"
  draft.fill(key, num_classes, "as data has them")
  why = f"a model for {name}"
  draft.fill("model.backbone.width", sizes.width, why)
  for part in ("encoder_depth", "decoder_depth"):
    draft.fill(f"model.backbone.{part}", sizes.depth, why)
  draft.fill("model.head.width", sizes.head, why)
  draft.fill("model.head.repeats", sizes.repeats, why)
  steps = min(AR_STEPS, draft["model.backbone.num_tokens"])
  draft.fill("sampling.num_ar_steps", steps, "of drawing")
  has_classes = draft["model.backbone.condition.num_classes"] > 0
  why = "follow the class a little more" if has_classes else "no classes"
  draft.fill("sampling.guidance_scale", 1.5 if has_classes else 1.0, why)


def _fill_training(draft: Draft, name: str, count: int, speed: float) -> None:
  strata = draft.part("model.backbone").get("masking.num_strata", 1)
  parts = strata * jax.device_count()
  parts *= draft.part("training").get("num_microbatches", 1)
  most = min(count, _sizes(name).batch)
  where = outputs.shown(draft["data.data_dir"])
  check(
    not draft.is_open("training.batch_size") or most >= parts,
    f"{where} has {count} pictures to train on; expected at least {parts}, one"
    " batch on this machine: add pictures.",
  )
  size = most // parts * parts
  draft.fill("training.batch_size", size, f"for {name} and {count} pictures")
  size = draft["training.batch_size"]
  step = _seconds(draft, speed)
  if not draft.part("training").get("total_epochs"):
    minutes = _sizes(name).minutes
    steps = min(60 * minutes / step, VIEWS * count / size)
    why = f"at most {minutes:g} minutes, and {VIEWS} views of a picture"
    steps = rounded(max(FEWEST_STEPS, steps))
    draft.fill("training.num_steps", steps, why)
  steps = draft.part("training")["num_steps"]
  steps = steps or draft["training.total_epochs"] * count / size
  every = rounded(min(steps, REPORT_SECONDS / step))
  draft.fill("training.log_every", every, "about every 2 seconds")
  every = rounded(steps / 10)
  draft.fill("training.checkpoint_every", every, "ten times")
  draft.fill("training.sample_every", every, "ten times")


def _seconds(draft: Draft, speed: float) -> float:
  """Of a step, guessed."""
  nested = draft.nested()
  training = {"batch_size": nested["training"]["batch_size"], "num_steps": 1}
  experiment = from_dict(Experiment, nested | {"training": training}, "config")
  size = experiment.training.batch_size
  return training_flops(experiment.model) * size / speed


def _tell_time(experiment: Experiment, count: int, speed: float) -> None:
  training = experiment.training
  steps, size = training.steps(count), training.batch_size
  seconds = steps * size * training_flops(experiment.model) / speed
  log.info(
    "about %s of training if nothing else runs here: %d steps of %d pictures,"
    " each seen %.0f times; the log will say how much is left",
    _duration(seconds),
    steps,
    size,
    steps * size / count,
  )


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} seconds"
  return f"{seconds / 60:.0f} minutes"


def _flops_per_second() -> float:
  """What a step may have of all devices, guessed by a product on one.

  A CPU's is by the time of its cores, so that what else runs does not count.
  """
  is_cpu = jax.default_backend() == "cpu"
  clock = time.process_time if is_cpu else time.perf_counter
  side, dtype = (768, "float32") if is_cpu else (4096, "bfloat16")
  # Handed to an accelerator one by one, products of 0.2 ms wait for the host.
  each = 1 if is_cpu else 64
  square = jnp.full((side, side), 1 / side, dtype)
  products = jax.jit(
    lambda x: jax.lax.fori_loop(0, each, lambda _, y: y @ x, x)
  )
  products(square).block_until_ready()
  start, times = clock(), 0
  while clock() - start < 0.5:
    products(square).block_until_ready()
    times += each
  speed = 2 * side**3 * times / (clock() - start)
  if jax.process_count() > 1:
    speed = float(hosts.gathered(speed).min())
  # Devices of a CPU that jax was told to pretend share its cores.
  parts = environment.num_cores() if is_cpu else jax.device_count()
  return EFFICIENCY * speed * parts
