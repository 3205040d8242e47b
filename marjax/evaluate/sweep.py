"""A run: a model's images, for one setting after another, scored by a network.

1. Refuse what cannot be scored before anything long: counts, sizes, missing
   weights, real images that are not there, files that are in the way.
2. See the real images, then for each of the settings generate N images of
   which only sums come off the devices (`stream`). All settings have the same
   seed, so that their images differ by the settings alone, and they share the
   compiled programs.
3. What was done is kept in OUT/begun: killed and started again, the run goes on
   and ends with the same bits. Every process does the same; the first writes.
4. Scores, with what real images score in their place, go to one report.

    OUT/report.json    scores of all settings; the same bits whenever killed
    OUT/samples.png    the same images of every setting
    OUT/curves.png     scores over the settings, if there are several
    OUT/speed.json     images per second, of this process alone
    OUT/images*        all images, where they are to be saved
"""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import PyTree

from marjax import outputs, schema
from marjax.evaluate import environment, reference, report, stream
from marjax.evaluate.begun import Begun, held
from marjax.evaluate.networks import kinds as networks
from marjax.evaluate.reference import Reference, Wanted
from marjax.evaluate.saved import Saving
from marjax.evaluate.saving import Writer
from marjax.evaluate.scores import gathered, kinds
from marjax.evaluate.scores.gathered import Gathered, Gatherer
from marjax.evaluate.scores.options import DEFAULTS, Options
from marjax.evaluate.stream import Stream
from marjax.generate.settings import Settings
from marjax.parallel import hosts
from marjax.parallel.rules import replicated
from marjax.pipeline import Pipeline, load
from marjax.schema import check

SHOWN = 20
"""Images of each of the settings in samples.png."""

Changes = Mapping[str, Any]


@schema.config
class Asked:
  """What is asked of a run.

  Attributes:
    scores: names, as "fid,is,pr".
    num_images: of each of the settings; a multiple of the classes.
    network: that sees the images. weights: its file; "" for NETWORK.safetensors
      in the current folder.
    against: statistics or images of the real side; "" for the data that the
      model was trained on.
    num_real: real images; 0 for as many as are generated.
    split, data_dir: of those data, "" for their own.
    seed: of all images.
    batch_size: images per device call, of all hosts; None chooses.
    save: "" for no images, or png, array_record, npz.
    options: of the scores.
  """

  scores: str
  num_images: schema.Positive = 50_000
  network: str = "inception"
  weights: str = ""
  against: str = ""
  num_real: schema.Count = 0
  split: str = ""
  data_dir: str = ""
  seed: schema.Seed = 0
  batch_size: schema.Positive | None = None
  save: Literal["", "png", "array_record", "npz"] = ""
  options: Options = DEFAULTS


class Run(NamedTuple):
  """A run that was checked and may begin.

  Attributes:
    asked: what is asked. wanted: the same of the real side.
    stream: model and network. settings: complete, in order.
    source: of real images.
    about: what decides the numbers, flat, for the folder and the report.
  """

  asked: Asked
  wanted: Wanted
  stream: Stream
  settings: list[Settings]
  source: reference.Source
  about: dict[str, Any]


def evaluate(
  checkpoint: str | Path,
  out: str | Path,
  asked: Asked,
  settings: Sequence[Changes] = ({},),
  *,
  dtype: str | None = None,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes the files of a run, see the module, and returns the report.

  Args:
    checkpoint: a release or a work directory.
    out: folder of the results, made when missing; that of a run that was
      stopped to go on.
    settings: what differs from the checkpoint's own, once for each set of
      images.
    dtype: of the model's matmuls, see `marjax.load`.
    overwrite: replace results that are there, start again where another run
      was begun.

  Raises:
    FileExistsError: results are in `out`.
    FileNotFoundError, ValueError: see `marjax.load`; something is asked that
      cannot be computed; or an image or a feature is not finite.
    BlockingIOError: another process evaluates there.
    KeyboardInterrupt: Ctrl-C, with a sentence on what is kept.
  """
  out = outputs.local(out)
  kinds.parse(asked.scores)
  several = len(settings) > 1
  files = ["report.json", "samples.png", "speed.json"]
  paths = [out / file for file in [*files, *["curves.png"] * several]]
  if jax.process_index() == 0:
    outputs.check_free(paths, overwrite)
  run = prepare(load(checkpoint, dtype=dtype), asked, settings)
  decides = _flat(run.about)
  hosts.agree({"out": str(out)} | decides)
  with held(out):
    begun = Begun.claim(out, decides, overwrite)
    whole = _through(run, begun, out)
    if jax.process_index() == 0:
      report.write(out, whole, overwrite)
      print(report.table(whole.report, whole.speed))
    begun.end()
  return whole.report


def prepare(
  pipe: Pipeline, asked: Asked, settings: Sequence[Changes] = ({},)
) -> Run:
  """Checks what is asked of a model, and opens all that it needs.

  Raises:
    FileNotFoundError, ValueError: see `evaluate`.
  """
  card = pipe.card
  chosen = [pipe.settings(changes) for changes in settings]
  check(
    pipe.codec_params is not None,
    f"{pipe.autoencoder} is not there, and {card.name} needs that autoencoder:"
    " convert it to that folder.",
  )
  names = kinds.parse(asked.scores)
  file = asked.weights or f"{asked.network}.safetensors"
  network, params, digest = networks.load(asked.network, file)
  count, options = asked.num_images, asked.options
  stream.check_count(count, card.num_classes)
  kinds.check_scores(names, network, count, options, card.num_classes)
  stream.check_takes(network, card.codec)
  wanted = Wanted(names, options, network, digest, count, asked.num_real)
  data = card.data and dataclasses.replace(
    card.data,
    test_split=asked.split or card.data.test_split,
    data_dir=asked.data_dir or card.data.data_dir,
  )
  source = reference.open_source(asked.against, data, card.codec, wanted)
  plan = gathered.Plan(network, kinds.needs(names, options), count, options)
  size = stream.batch_size(pipe, count, asked.batch_size)
  whole = replicated(pipe.mesh)
  params = jax.tree.map(lambda leaf: hosts.spread(leaf, whole), params)
  line = Stream(pipe, plan, params, asked.seed, size)
  about = _about(pipe, asked, wanted, chosen, source, size)
  return Run(asked, wanted, line, chosen, source, about)


def _about(
  pipe: Pipeline, asked: Asked, wanted: Wanted, settings, source, size: int
) -> dict[str, Any]:
  """What decides a run's numbers."""
  model = {
    "model": pipe.card.name,
    "step": pipe.card.step,
    "parameters": _digest(pipe.params, pipe.mesh),
    "autoencoder": _digest(pipe.codec_params, pipe.mesh),
    "dtype": pipe.card.model.backbone.dtype,
  }
  return {
    **model,
    "scores": list(wanted.names),
    "options": schema.to_dict(wanted.options),
    "network": wanted.network.name,
    "network_weights": wanted.weights,
    "num_images": wanted.num_images,
    "num_classes": pipe.card.num_classes,
    "seed": asked.seed,
    "batch_size": size,
    "save": asked.save,
    "real": source.about,
    "settings": [schema.to_dict(each) for each in settings],
  }


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
  """The same, flat: settings.0.temperature and the like."""
  numbered = {str(n): each for n, each in enumerate(about["settings"])}
  return flatten_dict({**about, "settings": numbered}, sep=".")


def _digest(params: PyTree, mesh: Mesh) -> str:
  """A hash of numbers that is the same on every mesh; "" of none."""
  if not jax.tree.leaves(params):
    return ""

  def mixed(leaf):
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    places = jnp.arange(leaf.size, dtype=jnp.uint32).reshape(leaf.shape)
    # Sums of integers, modulo 2^32, know no order.
    return jnp.sum(bits * (2 * places + 1), dtype=jnp.uint32)

  def every(params):
    return jnp.stack([mixed(leaf) for leaf in jax.tree.leaves(params)])

  sums = jax.jit(every, out_shardings=replicated(mesh))(params)
  return hashlib.sha256(np.asarray(sums).tobytes()).hexdigest()[:16]


def _through(run: Run, begun: Begun, out: Path) -> report.Whole:
  """All settings, those that are left, to what the report is made of."""
  clock = Clock()
  bar = clock.bar
  line, wanted = run.stream, run.wanted
  real = reference.look(
    run.source, wanted, line.params, line.pipe.mesh, begun, bar
  )
  rows = []
  for number in range(len(run.settings)):
    name = str(number)
    result = begun.result(name)
    if result is None:
      where = outputs_of(out, run.settings, number)
      seen, shown = _see(run, number, begun, where, clock)
      # What real images score is the same for all settings.
      is_needed = number == 0 or any(
        kinds.SCORES[each].needs_unseen for each in wanted.names
      )
      other = real if is_needed else real._replace(unseen=None)
      result = _scored(seen, other, wanted)
      begun.finish(name, result)
      begun.save(name, {"shown": shown})
    rows.append(result)
  described = report.describe(run.about, rows, real.about)
  described["device"] = environment.device()
  described["versions"] = environment.versions()
  shown = [begun.restored(str(n))["shown"] for n in range(len(rows))]
  return report.Whole(described, clock.speed(), np.stack(shown))


def outputs_of(out: Path, settings: list[Settings], number: int) -> Path:
  """Where the images of settings are saved, without a suffix."""
  return out / ("images" if len(settings) == 1 else f"images_{number}")


def _scored(seen: Gathered, real: Reference, wanted: Wanted) -> dict[str, Any]:
  compared = kinds.compare(
    wanted.names, seen, real.real, real.unseen, wanted.options
  )
  return {"scores": compared.scores, "real": compared.real}


class Clock:
  """Bars of progress, and images per second once programs are compiled."""

  def __init__(self):
    self._images, self._seconds, self._first = 0, 0.0, None

  def bar(self, total: int, what: str, start: int = 0):
    """A bar of images, with rate and time left."""
    from tqdm import tqdm

    return tqdm(
      total=total,
      desc=what,
      unit=" images",
      initial=start,
      disable=jax.process_index() > 0,
    )

  def begin(self) -> None:
    """Starts with the next batch, which may be compiled first."""
    self._first = None

  def add(self, count: int) -> None:
    """Notes that a batch is through."""
    now = time.perf_counter()
    if self._first is not None:
      self._images += count
      self._seconds += now - self._first
    self._first = now

  def speed(self) -> dict[str, int | float]:
    """Images, seconds, images per second: of all batches but first ones."""
    rate = self._images / self._seconds if self._seconds else 0.0
    return {
      "images": self._images,
      "seconds": self._seconds,
      "images_per_second": rate,
    }


def _see(
  run: Run, number: int, begun: Begun, where: Path, clock: Clock
) -> tuple[Gathered, np.ndarray]:
  """What is gathered of the images of settings, and those that are shown."""
  line, settings, name = run.stream, run.settings[number], str(number)
  gatherer = Gatherer(line.plan, line.params, line.pipe.mesh)
  shown = np.zeros((0, *_shape(line)), np.uint8)
  if state := begun.restored(name):
    shown = state.pop("shown")
    gatherer.restore(state)
  missing = gatherer.missing()
  total = line.plan.num_images
  done = int(missing[0]) if len(missing) else total
  writer = _writer(run, settings, where)
  save_from = _save_from(writer, total) if run.asked.save else total
  label = f"settings {number + 1} of {len(run.settings)}"
  clock.begin()
  with (
    writer or contextlib.nullcontext(),
    clock.bar(total, label, min(done, save_from)) as bar,
  ):
    try:
      for seen in line.run(settings, min(done, save_from)):
        if seen.start >= done:
          gatherer.add(seen.sums)
        images = None
        if len(shown) < SHOWN or seen.start + seen.count > save_from:
          images = hosts.fetch(seen.images)[: seen.count]
        if len(shown) < SHOWN and seen.start >= done:
          shown = np.concatenate([shown, images])[:SHOWN]
        if writer and seen.start + seen.count > save_from:
          index = seen.start + np.arange(seen.count)
          writer.add(index, images, line.labels(index))
        clock.add(seen.count)
        bar.update(seen.start + seen.count - bar.n)
        if begun.is_due():
          begun.save(name, gatherer.state() | {"shown": shown})
    except KeyboardInterrupt:
      begun.save(name, gatherer.state() | {"shown": shown})
      kept = total - len(gatherer.missing())
      raise KeyboardInterrupt(
        f"{kept} of {total} images of {label} are kept in"
        f" {outputs.shown(begun.folder)}, where the same command goes on"
      ) from None
  if writer:
    writer.finish()
  return gatherer.gathered(), shown


def _writer(run: Run, settings: Settings, where: Path) -> Writer | None:
  """Where the first process saves images, if that is asked for."""
  kind = run.asked.save
  if not kind or jax.process_index() > 0:
    return None
  height, width, channels = _shape(run.stream)
  decides = {
    key: str(run.about[key])
    for key in ("parameters", "autoencoder", "dtype", "seed", "batch_size")
  }
  saving = Saving(
    kind=kind,
    num_images=run.stream.plan.num_images,
    height=height,
    width=width,
    channels=channels,
    made_from={**decides, "settings": str(schema.to_dict(settings))},
  )
  return Writer(where.with_suffix(".npz") if kind == "npz" else where, saving)


def _save_from(writer: Writer | None, total: int) -> int:
  """The first image that is to be saved, as the first process knows it."""
  first = total
  if writer and writer.pending:
    first = writer.saving.span(min(writer.pending)).start
  return int(hosts.gathered(np.int32(first))[0])


def _shape(line: Stream) -> tuple[int, int, int]:
  codec = line.pipe.card.codec
  return codec.image_size, codec.image_size, codec.channels
