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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from marjax import outputs, schema
from marjax.data import sources
from marjax.evaluate import environment, reference, report, sets, stream
from marjax.evaluate.begun import Begun, held
from marjax.evaluate.networks import kinds as networks
from marjax.evaluate.part import Clock, Part, open_writer, shape_of
from marjax.evaluate.reference import Compared, Real, open_real
from marjax.evaluate.saving import Writer
from marjax.evaluate.scores import gathered, kinds
from marjax.evaluate.scores.gathered import Gathered
from marjax.evaluate.scores.options import DEFAULTS, Options
from marjax.evaluate.seen import Eye, Taken, check_shape
from marjax.evaluate.stream import Stream
from marjax.generate.settings import Settings
from marjax.parallel import hosts
from marjax.parallel.rules import replicated
from marjax.pipeline import Pipeline, load
from marjax.release.card import Card
from marjax.release.digest import digest
from marjax.schema import check

MADE_FROM = ("parameters", "autoencoder", "dtype", "seed", "batch_size")
"""What decides images, beside settings."""

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
    asked: what is asked. names: of the scores.
    eye: the network. stream: model and network.
    settings: complete, in order. real: the real side.
  """

  asked: Asked
  names: tuple[str, ...]
  eye: Eye
  stream: Stream
  settings: list[Settings]
  real: Real


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
  about = _about(run)
  decides = _flat(about)
  hosts.agree({"out": str(out)} | decides)
  with held(out):
    begun = Begun.claim(out, decides, overwrite)
    whole = _through(run, about, begun, out)
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
  network, params, digest = networks.load(asked.network, asked.weights)
  whole = replicated(pipe.mesh)
  params = jax.tree.map(lambda leaf: hosts.spread(leaf, whole), params)
  count, options, shape = asked.num_images, asked.options, shape_of(card.codec)
  eye = Eye(network, params, digest, options, pipe.mesh)
  stream.check_count(count, card.num_classes)
  kinds.check_scores(names, network, count, options, card.num_classes)
  check_shape(shape, card.name, eye)
  real = Real({})
  if kinds.needs_of_real(names):
    real = _open_real(asked, names, card, eye)
    reference.check_real(names, count, shape, real)
  if real.chosen:
    fewest = min(count, len(real.chosen.indices))
    kinds.check_scores(names, network, fewest, options, card.num_classes)
  plan = gathered.Plan(network, kinds.needs(names, options), count, options)
  size = stream.batch_size(pipe, count, asked.batch_size)
  line = Stream(pipe, plan, params, asked.seed, size)
  return Run(asked, names, eye, line, chosen, real)


def _open_real(
  asked: Asked, names: tuple[str, ...], card: Card, eye: Eye
) -> Real:
  """What is to be compared with, and the control.

  Of the data that the model was trained on the control is the test split, which
  it never saw; of anything else it is what was not taken. Near copies are told
  by all of the test split where it has fewer images than are generated.
  """
  count, data, shape = asked.num_images, card.data, shape_of(card.codec)
  taken = Taken(
    num_real=asked.num_real or None, image_size=shape[0], channels=shape[2]
  )
  if asked.against:
    against = outputs.local(asked.against)
    real = open_real(against, count, shape, eye, taken)
    if real.known is None:
      return real._replace(control=reference.left(real.chosen, count, 0))
    is_open = real.chosen is not None and not asked.num_real
    if is_open and len(real.chosen.indices) > count:
      return real._replace(chosen=taken.choose(real.chosen.images, count))
    return real
  check(
    data is not None and not data.is_cached,
    "the checkpoint does not say where real images are, which"
    f" {', '.join(names)} are computed with; expected --against a folder of"
    " images, an .npz, or statistics.",
  )
  data = sources.moved(data, asked.split, asked.data_dir)
  real = open_real(data, count, shape, eye, taken)
  unseen = sets.open_set(data, split=data.test_split)
  if len(unseen) < count and not kinds.need_unseen(names):
    return real
  control = taken.choose(unseen, min(count, len(unseen)))
  return real._replace(control=control)


def _about_real(real: Real) -> dict[str, Any]:
  """What decides the numbers of the real side."""
  about, chosen, control = dict(real.about), real.chosen, real.control
  if real.known is not None:
    if chosen:
      about["images"] = len(chosen.indices)
      about["images_source"] = sets.identity(chosen.images)
    return about
  if chosen is None:
    return {}
  about = {
    "source": sets.identity(chosen.images),
    "crop": chosen.images.crop,
    "count": len(chosen.indices),
    "unseen": len(control.indices) if control else 0,
  }
  if control and control.images is not chosen.images:
    about["unseen_source"] = sets.identity(control.images)
  return about


def _about(run: Run) -> dict[str, Any]:
  """What decides a run's numbers."""
  asked, pipe = run.asked, run.stream.pipe
  model = {
    "model": pipe.card.name,
    "step": pipe.card.step,
    "parameters": digest(pipe.params),
    "autoencoder": digest(pipe.codec_params),
    "dtype": pipe.card.model.backbone.dtype,
  }
  return {
    **model,
    "scores": list(run.names),
    "options": schema.to_dict(asked.options),
    "network": run.eye.network.name,
    "network_weights": run.eye.digest,
    "num_images": asked.num_images,
    "num_classes": pipe.card.num_classes,
    "seed": asked.seed,
    "batch_size": run.stream.batch_size,
    "save": asked.save,
    "real": _about_real(run.real),
    "settings": [schema.to_dict(each) for each in run.settings],
  }


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
  """The same, flat: settings.0.temperature and the like."""
  numbered = {str(n): each for n, each in enumerate(about["settings"])}
  return flatten_dict({**about, "settings": numbered}, sep=".")


def _through(
  run: Run, about: dict[str, Any], begun: Begun, out: Path
) -> report.Whole:
  """All settings, those that are left, to what the report is made of."""
  clock, line, count = Clock(), run.stream, len(run.settings)
  # Before the network runs: a folder that is in the way is told at once.
  writers = [_writer(run, about, out, number) for number in range(count)]
  seen_real = look_at_real(run, jax.process_index() == 0, begun)
  rows = []
  for number, settings in enumerate(run.settings):
    name = str(number)
    result = begun.result(name)
    if result is None:
      title = f"settings {number + 1} of {count}"
      part = Part(line, settings, begun, name, title)
      seen, shown = part.run(clock, writers[number], bool(run.asked.save))
      result = scored(seen, seen_real, run, is_first=number == 0)
      begun.finish(name, result)
      begun.save(name, {"shown": shown})
    rows.append(result)
  described = report.describe(about, rows, about["real"])
  described["device"] = environment.device()
  described["versions"] = environment.versions()
  shown = [begun.restored(str(n))["shown"] for n in range(len(rows))]
  return report.Whole(described, clock.speed(), np.stack(shown))


def _writer(
  run: Run, about: Mapping[str, Any], out: Path, number: int
) -> Writer | None:
  """Where images of one of the settings are saved, if they are; one process."""
  if not run.asked.save or jax.process_index() > 0:
    return None
  where = out / ("images" if len(run.settings) == 1 else f"images_{number}")
  made_from = {key: str(about[key]) for key in MADE_FROM}
  made_from["settings"] = str(schema.to_dict(run.settings[number]))
  return open_writer(run.stream, run.asked.save, where, made_from)


def look_at_real(
  run: Run, progress: bool = False, begun: Begun | None = None
) -> Compared:
  """What the network sees of the real side."""
  return reference.look_at(
    run.real, run.names, run.eye, Taken(), progress, begun
  )


def scored(
  seen: Gathered, real: Compared, run: Run, is_first: bool
) -> dict[str, Any]:
  """Scores of generated images and, of the first settings, of real ones."""
  # What real images score is the same for all settings.
  is_needed = is_first or kinds.need_unseen(run.names)
  compared = kinds.compare(
    run.names,
    seen,
    real.real,
    real.control if is_needed else None,
    run.eye.options,
  )
  return {"scores": compared.scores, "real": compared.real}
