"""Generate, draw and score: what a checkpoint is worth, in four files.

1. List the files to write and refuse, before anything long, those that exist.
2. Load the checkpoint and the real images of its configuration, or of another
   folder or split; refuse what cannot be scored before anything is generated.
3. Generate the same number of images of every class, with one seed and one set
   of settings for all scores. They are in OUT/images.npz until all is written,
   so a failing score does not lose them.
4. Score them (see `marjax.evaluate.scores.pixels`), draw them, write
   report.json.

    OUT/samples.png   generated digits beside real ones, a class per row
    OUT/reveal.png    one image, token by token
    OUT/loss.png      the training curve, if the checkpoint has its metrics
    OUT/report.json   scores, settings, seconds, versions, device
"""

import contextlib
import dataclasses
import io
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from marjax import outputs
from marjax.backbone.classes import name_of
from marjax.data import batches, sources
from marjax.data.folders import UNSEEN
from marjax.evaluate import environment
from marjax.evaluate.scores import pixels
from marjax.evaluate.stream import check_count
from marjax.experiment import DataConfig
from marjax.outputs import AnyPath
from marjax.pipeline import Pipeline, load
from marjax.release import workdir
from marjax.requests import pictures
from marjax.requests.trajectory import Trajectory
from marjax.schema import check

ROW = 10
"""Images per class in samples.png."""

FRAMES_LIMIT = 2**28
"""Bytes of frames up to which all images are generated with their frames."""


@dataclass(frozen=True, eq=False)
class Real:
  """Real images to score against, and the classifier fit on the training ones.

  Attributes:
    train, test: images uint8, labels, ids; see `marjax.data.examples.Columns`.
  """

  train: Any
  test: Any
  classifier: Any


def load_real(config: DataConfig) -> Real:
  """Reads both splits and fits the classifier, a second for the digits.

  Raises:
    ModuleNotFoundError: scikit-learn is not installed.
    ValueError, OSError: there are no such images, or too few to score against.
  """
  splits = config.train_split, config.test_split
  check(
    splits[0] != splits[1],
    f"the split to test against, {splits[1]!r}, is the one that was trained on;"
    f" {UNSEEN}.",
  )
  train, test = (batches.load_all(config, split) for split in splits)
  for split, part in zip(splits, (train, test), strict=True):
    pixels.check_real(part.images, part.labels, config.num_classes, split)
  # Refuse what generated images could not be scored against.
  pixels.scores(test.images, train.images, test.images)
  try:
    classifier = pixels.fit_classifier(train.images, train.labels)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "scikit-learn is not installed, and the classifier that scores images is"
      " its: pip install 'marjax[demo]'."
    ) from error
  return Real(train, test, classifier)


def score(images: np.ndarray, labels: np.ndarray, real: Real) -> dict[str, Any]:
  """All scores of generated images uint8 [N, H, W, C] with labels [N]."""
  test, classifier = real.test, real.classifier
  return {
    "label_accuracy": pixels.label_accuracy(classifier, images, labels),
    "real_test_accuracy": pixels.label_accuracy(
      classifier, test.images, test.labels
    ),
    **pixels.scores(images, real.train.images, test.images),
    "label_accuracy_by_class": pixels.accuracy_by_class(
      classifier, images, labels
    ),
  }


def evaluate(
  checkpoint: str | os.PathLike,
  out: str | os.PathLike,
  num_images: int = 1000,
  seed: int = 0,
  overwrite: bool = False,
  settings: Any = None,
  split: str = "",
  data_dir: str = "",
) -> dict[str, Any]:
  """Writes the four files and returns the report.

  Args:
    checkpoint: a work directory, or a release made of one.
    out: folder of the results, made when missing; may be the same.
    num_images: to generate, a multiple of the number of classes.
    seed: of the generation.
    overwrite: replace those of the four files that exist.
    settings: what differs from the checkpoint's own settings.
    split: of the real images to test against; "" for data.test_split.
    data_dir: where real images are; "" for data.data_dir.

  Raises:
    FileExistsError: a file exists and `overwrite` is false.
    FileNotFoundError, ValueError: see `marjax.load`; a bad num_images; or a
      model or real images that cannot be scored.
    KeyboardInterrupt: Ctrl-C, from drawing on with what is kept.
  """
  checkpoint, out = outputs.path_of(checkpoint), outputs.path_of(out)
  paths = _free_paths(checkpoint, out, overwrite)
  pipe = load(checkpoint)
  data = known_data(pipe, split, data_dir)
  labels = balanced_labels(num_images, data.num_classes)
  pixels.check_count(num_images, "num_images")
  _check_names(pipe, data)
  real = load_real(data)
  start = time.perf_counter()
  images, *shown = _generate(pipe, labels, seed, settings)
  seconds = time.perf_counter() - start
  with _kept(paths.pop("images"), overwrite, images=images, labels=labels):
    report = {
      **score(images, labels, real),
      **_context(pipe, checkpoint, real, labels),
      "settings": dataclasses.asdict(pipe.settings(settings)),
      "seed": seed,
      "generation_seconds": seconds,
      "images_per_second": num_images / seconds,
    }
    known = pipe.card.class_names
    names = [name_of(label, known) for label in range(data.num_classes)]
    samples = _samples(images, labels, real, names)
    pictures.save_png(paths["samples"], samples, overwrite)
    pictures.save_png(paths["reveal"], _reveal(*shown), overwrite)
    if "loss" in paths:
      metrics = checkpoint / "metrics.jsonl"
      pictures.loss_curve(metrics, paths["loss"], overwrite)
    content = json.dumps(report, indent=2) + "\n"
    outputs.write(paths["report"], content.encode(), overwrite)
  print(summary(report, list(paths.values())))
  return report


@contextlib.contextmanager
def _interrupted(sentence: str) -> Iterator[None]:
  """Has Ctrl-C say what is kept."""
  try:
    yield
  except KeyboardInterrupt:
    raise KeyboardInterrupt(sentence) from None


@contextlib.contextmanager
def _kept(path: AnyPath, overwrite: bool, **arrays) -> Iterator[None]:
  """Has the arrays in a file while the context is open, or if it fails."""
  content = io.BytesIO()
  np.savez(content, **arrays)
  outputs.write(path, content.getvalue(), overwrite)
  where = f"the images were generated, and are in {path}"
  kept = f"{where}, for marjax score; other files there may be of another run"
  try:
    with _interrupted(f"{kept}, and --overwrite begins again"):
      yield
  except Exception as error:
    raise ValueError(
      f"{where}, but scoring or drawing them failed ({outputs.reason(error)});"
      " mend that and evaluate again, with --overwrite."
    ) from error
  path.unlink()


def known_data(
  pipe: Pipeline, split: str = "", data_dir: str = ""
) -> DataConfig:
  """The data that a model was trained on.

  Args:
    split, data_dir: other than test_split and data_dir, unless "".

  Raises:
    FileNotFoundError: see `sources.moved`.
    ValueError: it is unknown, or there is nothing to score by.
  """
  card = pipe.card
  check(
    card.data is not None,
    f"{card.name} does not say what it was trained on, so there are no real"
    " images to score against; evaluate a work directory, or a release made of"
    " one.",
  )
  check(
    not card.data.is_cached,
    f"{card.name} was trained on cached latents, and these scores compare the"
    " pixels of small images with real ones; expected a model of pixels, such"
    " as configs/digits.py makes: draw this model's images with marjax generate"
    " and score them with another program.",
  )
  check(
    card.model is None or card.num_classes > 0,
    f"{card.name} has no classes, and these scores ask whether an image shows"
    " the class that was asked for; expected a model with classes: draw this"
    " model's images with marjax generate and score them with another program.",
  )
  return sources.moved(card.data, split, data_dir)


def _check_names(pipe: Pipeline, data: DataConfig) -> None:
  """Makes sure that the real images number classes as the model does."""
  known = pipe.card.class_names
  names = sources.open_source(data, data.test_split).class_names
  for label, (ours, theirs) in enumerate(zip(known, names, strict=False)):
    check(
      ours == theirs,
      f"class {label} is {ours} for {pipe.card.name} and {theirs} in the real"
      " images; expected the same classes: name the folder that the model was"
      " trained on.",
    )


def balanced_labels(num_images: int, num_classes: int) -> np.ndarray:
  """0, 1, 2, ... again and again, so that each class comes equally often.

  Raises:
    ValueError: num_images is not a positive multiple of num_classes.
  """
  check_count(num_images, num_classes)
  return np.arange(num_images, dtype=np.int32) % num_classes


def training_record(pipe: Pipeline, checkpoint: AnyPath) -> dict[str, Any]:
  """Steps behind a checkpoint and, if its metrics are there, their seconds.

  The seconds are those of training steps: compiling, saving and drawing
  samples are not among them.
  """
  record = {"steps": pipe.card.step, "seconds": None, "loss": None}
  metrics = checkpoint / "metrics.jsonl"
  if not metrics.exists():
    return record
  curves = (
    pictures.read_curve(metrics, name) for name in ("images_per_second", "loss")
  )
  rates, losses = (rows[rows[:, 0] <= pipe.card.step] for rows in curves)
  if len(rates):
    steps = np.diff(rates[:, 0], prepend=0)
    batch_size = workdir.read_experiment(checkpoint).training.batch_size
    record["seconds"] = float(np.sum(steps * batch_size / rates[:, 1]))
  if len(losses):
    record["loss"] = float(losses[-1, 1])
  return record


def _context(
  pipe: Pipeline, checkpoint: AnyPath, real: Real, labels: np.ndarray
) -> dict[str, Any]:
  """What the scores have to be read with."""
  mean, spread = pixels.repeated_ratio(
    real.train.images, real.train.labels, real.test.images, labels
  )
  return {
    "frechet_ratio_of_repeated_training_images": {
      "mean": mean,
      "standard_deviation": spread,
    },
    "num_images": len(labels),
    "num_real_images": {
      "train": len(real.train.images),
      "test": len(real.test.images),
    },
    "training": training_record(pipe, checkpoint),
    "device": environment.device(),
    "versions": environment.versions("scikit-learn"),
  }


def summary(report: dict[str, Any], paths: list[AnyPath]) -> str:
  """What a person wants to know of a report, in a few lines."""
  repeated = report["frechet_ratio_of_repeated_training_images"]
  training, device = report["training"], report["device"]
  trained = f"{training['steps']} steps"
  if training["seconds"] is not None:
    trained += f" in {training['seconds']:.0f} s"
  return (
    f"label accuracy   {report['label_accuracy']:.3f}"
    f"  (real test images {report['real_test_accuracy']:.3f})\n"
    f"Fréchet ratio    {report['frechet_ratio']:.2f}"
    f"   (repeated training images {repeated['mean']:.2f}"
    f" ± {repeated['standard_deviation']:.2f})\n"
    f"near copies      {report['near_copy_rate']:.3f}"
    "  (unseen real images 0.010)\n"
    f"trained          {trained}\n"
    f"generated        {report['num_images']} images in"
    f" {report['generation_seconds']:.0f} s with compiling, on"
    f" {device['count']} {device['kind']} ({device['processor']},"
    f" {device['cores']} cores)\n"
    f"written          {', '.join(map(str, paths))}"
  )


def _free_paths(
  checkpoint: AnyPath, out: AnyPath, overwrite: bool
) -> dict[str, AnyPath]:
  """The files to write, by name, after making sure that they can be."""
  files = ("samples.png", "reveal.png", "loss.png", "report.json", "images.npz")
  paths = {file.partition(".")[0]: out / file for file in files}
  if not (checkpoint / "metrics.jsonl").exists():
    del paths["loss"]
  outputs.check_free(paths.values(), overwrite)
  return paths


def _generate(
  pipe: Pipeline, labels: np.ndarray, seed: int, settings: Any
) -> tuple[np.ndarray, Trajectory, int]:
  """All images, a trajectory, and which of its images to show.

  Small images come with all their frames, which saves compiling twice.
  """
  codec, steps = pipe.card.codec, pipe.settings(settings).num_ar_steps
  frame = codec.image_size**2 * codec.channels
  shown = len(np.unique(labels)) // 3
  with _interrupted("no image is kept; the same command begins again"):
    if 4 * frame * steps * len(labels) <= FRAMES_LIMIT:
      whole = pipe.reveal(labels, seed, settings, progress=True)
      return whole.images, whole, shown
    images = pipe.generate(labels, seed, settings, progress=True)
    return images, pipe.reveal(labels[[shown]], seed, settings), 0


def _reveal(trajectory: Trajectory, image: int) -> np.ndarray:
  """A strip from the empty image to the whole one."""
  frames, is_known = trajectory.frames[:, image], trajectory.is_known[:, image]
  return pictures.reveal_strip(
    np.concatenate([frames[:1], frames]),
    np.concatenate([np.zeros_like(is_known[:1]), is_known]),
    (0, *trajectory.num_known),
    title="one image, revealed step by step: tokens known",
  )


def _samples(
  images: np.ndarray, labels: np.ndarray, real: Real, names: list[str]
) -> np.ndarray:
  """The first images of each class beside the first real test ones."""
  classes = np.intersect1d(labels, real.test.labels)[:ROW]
  made, found = (
    [np.flatnonzero(of == label) for label in classes]
    for of in (labels, real.test.labels)
  )
  each = min(ROW, *map(len, made + found))
  made, found = (
    np.concatenate([rows[:each] for rows in by_class])
    for by_class in (made, found)
  )
  return pictures.comparison(
    images[made], real.test.images[found], labels[made], names=names
  )
