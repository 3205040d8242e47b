"""Trains the label network on a data set, and writes its weights.

    images ─flip, shift, cut out▶ classifier with batch norm ─▶ loss
    images of the end ─▶ mean and variance of each layer ─folded▶ FILE

1. Batches are those of a run (`marjax.data.batches`): shuffled by data.seed,
   mirrored where data.flip says so. Each image is shifted by up to an eighth of
   its side over its mirrored border, and a square of a quarter is made grey.
2. Every convolution is normalised by its batch. The loss is cross-entropy with
   labels smoothed by a tenth, the optimizer stochastic gradients with Nesterov
   momentum; the learning rate rises and falls in straight lines.
3. In the end batches without shifts and squares give each layer's mean and
   variance, averaged over batches, which are folded into its kernel and bias:
   the file holds plain convolutions (`marjax.evaluate.networks.label`).
4. The test split is classified as it will be in an evaluation. Its accuracy
   stands in the file, and beside every label accuracy measured with it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import jax
import numpy as np
from jaxtyping import PyTree

from marjax import keys, outputs
from marjax.evaluate.networks.label import Label
from marjax.experiment import DataConfig
from marjax.schema import Positive, Range, Seed, Share, check, config, to_dict

if TYPE_CHECKING:
  from marjax.data.batches import Batches

FULL_BATCH = 512
"""Images of a batch, and those that `learning_rate` is said for."""

SETTLING = 40
"""Batches by which the statistics of layers are averaged in the end."""


@config
class Choices:
  """How a classifier is trained; each is a flag.

  Attributes:
    num_epochs: passes over the training images (default: 30).
    width: maps of the first layer; parameters grow with its square (default:
      64).
    batch_size: images of a step (default: a fortieth of all, at least 32 and at
      most 512).
    learning_rate: the highest, of a batch of 512 (default: 0.4).
    warmup: share of the steps in which the rate rises (default: 0.2).
    seed: of the first weights, of shifts and squares (default: 0).
  """

  num_epochs: Positive = 30
  width: Positive = 64
  batch_size: Positive | None = None
  learning_rate: Annotated[float, Range(0, 100, is_open=True)] = 0.4
  warmup: Share = 0.2
  seed: Seed = 0


@dataclass(frozen=True)
class Report:
  """What was trained.

  Attributes:
    path: of the file. network: with its sizes.
    accuracy: share of the test images that are classified right.
    num_train, num_test: images. loss: mean of the last epoch.
  """

  path: Path
  network: Label
  accuracy: float
  num_train: int
  num_test: int
  loss: float

  def __str__(self) -> str:
    return "\n".join(
      [
        f"trained      on {self.num_train:,} images of"
        f" {self.network.num_classes} classes; loss {self.loss:.3f}",
        f"accuracy     {self.accuracy:.4f} of {self.num_test:,} test images",
        f"written      {self.path}",
      ]
    )


def fit(
  data: DataConfig,
  out: str | os.PathLike,
  choices: Choices | None = None,
  *,
  progress: bool = False,
) -> Report:
  """Trains a classifier on a data set, and writes it with its test accuracy.

  Args:
    data: whose train_split is learned, and whose test_split is classified.
    out: the .safetensors file, which must not exist.
    choices: how. progress: show bars.

  Raises:
    ValueError: cached latents, no classes, images that are too small, or a loss
      that is not finite.
    FileExistsError: `out` exists. OSError: something cannot be read or written.
  """
  choices, out = choices or Choices(), outputs.local(out).absolute()
  outputs.check_free([out])
  network = network_of(data, choices.width)
  # They are slow to import, and Choices alone are wanted for flags.
  from marjax.data.batches import Batches
  from marjax.evaluate import seen
  from marjax.evaluate.networks import weights
  from marjax.evaluate.scores.options import DEFAULTS
  from marjax.parallel.mesh import make_mesh

  test = seen.Taken(split=data.test_split)
  unseen = test.choose(test.open(data), None)
  first = Batches(data, data.train_split, 1)
  count = first.num_examples
  size = choices.batch_size or min(FULL_BATCH, max(32, count // 40))
  lines = Batches(data, data.train_split, min(size, count))
  params, loss = _trained(network, lines, min(size, count), choices, progress)
  eye = seen.Eye(network, params, "", DEFAULTS, make_mesh())
  needs = frozenset({"moments", "hits"})
  hits = seen.look(unseen, eye, needs, test, "test", progress).gathered
  right, all_of = hits.hits.sum(0)
  accuracy = float(right / all_of)
  origin = {
    "data": unseen.images.description,
    "class_names": list(getattr(lines.source, "class_names", ())),
    "test_accuracy": accuracy,
    "test_images": int(all_of),
    "train_images": count,
    "choices": to_dict(choices),
  }
  weights.write(out, network, params, origin)
  return Report(out, network, accuracy, count, int(all_of), loss)


def network_of(data: DataConfig, width: int) -> Label:
  """The classifier that fits a data set.

  Raises:
    ValueError: none does.
  """
  check(
    not data.is_cached,
    "data.source is 'latents'; expected images, for a classifier sees pixels:"
    " name the data set that the latents were made of.",
  )
  check(
    data.num_classes >= 2,
    f"data.num_classes is {data.num_classes}; expected two classes or more to"
    " tell apart.",
  )
  check(
    data.image_size >= 8,
    f"data.image_size is {data.image_size}; expected 8 pixels or more, which"
    " the classifier halves three times.",
  )
  return Label(data.image_size, data.channels, data.num_classes, width)


def _trained(
  network: Label, lines: "Batches", size: int, choices: Choices, progress: bool
) -> tuple[PyTree, float]:
  """Parameters as the file has them, and the mean loss of the last epoch."""
  from tqdm import tqdm

  from marjax.train import classifier_step as steps

  each = max(1, lines.num_examples // size)
  num_steps = choices.num_epochs * each
  peak = choices.learning_rate * size / FULL_BATCH
  optimizer = steps.optimizer(peak, choices.warmup, num_steps)
  root = keys.root(choices.seed)
  params = steps.initial(network, root)
  state = steps.State(params, optimizer.init(params))
  step = jax.jit(steps.step_of(optimizer, network), donate_argnums=0)
  losses = []
  batches = lines.iterate()
  try:
    with tqdm(
      total=num_steps * size,
      unit="image",
      desc="training",
      disable=not progress,
    ) as bar:
      for number in range(num_steps):
        batch = next(batches)
        key = jax.random.fold_in(root, number)
        state, loss = step(state, key, batch["image"], batch["label"])
        losses.append(loss)
        bar.update(size)
        if number % each == each - 1:
          loss = float(np.mean(losses))
          losses.clear()
          _check_loss(loss, number)
          bar.set_postfix(loss=f"{loss:.3f}")
    measure = jax.jit(steps.statistics)
    count = min(SETTLING, each)
    parts = [
      measure(state.params, next(batches)["image"]) for _ in range(count)
    ]
  finally:
    batches.close()
  mean = jax.tree.map(lambda *leaves: sum(leaves) / count, *parts)
  return steps.folded(state.params, mean), loss


def _check_loss(loss: float, step: int) -> None:
  check(
    bool(np.isfinite(loss)),
    f"the classifier's loss is {loss} at step {step}; expected a finite one:"
    " lower --learning_rate.",
  )
