"""Fits a patch codebook to training images, and releases it.

    images ─scale, cut▶ patches [N, D] ─k-means▶ codes [V, D] ─▶ a release

1. The images are those of data.train_split, cropped as training crops them, all
   or some drawn at random; with data.flip their mirror images, too.
2. k-means on all their patches (`marjax.latents.k_means`).
3. The release is that of a codec alone; its card says which data it was fitted
   on. `data.autoencoder` of a run names it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

from marjax import outputs
from marjax.experiment import DataConfig
from marjax.latents import k_means
from marjax.latents.codebook import CodebookConfig
from marjax.latents.images import to_float
from marjax.protocols import Codec
from marjax.release import directory
from marjax.release.card import Card
from marjax.schema import Positive, Seed, check, config

READ_AT_ONCE = 1024
"""Images that are read and cut at a time."""


@config
class Choices:
  """How a codebook is fitted; each is a flag.

  Attributes:
    num_images: drawn at random from the training images (default: all).
    num_iterations: of k-means, at most (default: 100).
    seed: of what is drawn (default: 0).
  """

  num_images: Positive | None = None
  num_iterations: Positive = 100
  seed: Seed = 0


@dataclass(frozen=True)
class Report:
  """What was fitted.

  Attributes:
    folder: of the release. num_images: whose patches were used, mirror images
      counted. num_patches: of all of them.
    errors: mean squared distance of a number of a patch from its code's, in
      standardised pixels, before each iteration and at the end.
    is_settled: whether no patch changed its code any more.
    usage: patches of each code [V].
  """

  folder: Path
  num_images: int
  num_patches: int
  errors: tuple[float, ...]
  is_settled: bool
  usage: np.ndarray

  def __str__(self) -> str:
    shares = self.usage[self.usage > 0] / self.num_patches
    perplexity = np.exp(-np.sum(shares * np.log(shares)))
    end = "settled" if self.is_settled else "not settled yet"
    return "\n".join(
      [
        f"fitted       {len(self.usage)} codes to {self.num_patches:,} patches"
        f" of {self.num_images:,} images",
        f"error        {self.errors[-1]:.4g} of a variance of about 1; at the"
        f" start {self.errors[0]:.4g}; {len(self.errors) - 1} iterations,"
        f" {end}",
        f"usage        {np.count_nonzero(self.usage)} codes, perplexity"
        f" {perplexity:.1f}",
        f"written      {self.folder}",
      ]
    )


def fit(
  codec: Codec,
  data: DataConfig,
  out: str | os.PathLike,
  choices: Choices | None = None,
  *,
  name: str = "codebook",
  progress: bool = False,
) -> Report:
  """Fits the codes of a codec to the images of a run, and writes a release.

  Args:
    codec: of kind "codebook". data: whose train_split is read.
    out: the release's folder, which must not exist.
    choices: how. name: of the card. progress: show bars.

  Raises:
    ValueError: a codec of another kind, images of another size, or fewer
      different patches than codes.
    FileExistsError: `out` exists. OSError: something cannot be read or written.
  """
  choices, out = choices or Choices(), outputs.local(out).absolute()
  directory.check_free(out)
  check(
    isinstance(codec, CodebookConfig),
    f"codec.kind is {codec.kind!r}; expected 'codebook', the only kind that is"
    " fitted so.",
  )
  check(
    (data.image_size, data.channels) == (codec.image_size, codec.channels),
    f"data has {data.image_size} pixels and {data.channels} channels, the codec"
    f" {codec.image_size} and {codec.channels}; expected equal ones.",
  )
  from tqdm import tqdm

  vectors = patches_of(codec, data, choices, progress)

  def bar(codes):
    return tqdm(codes, desc="start", unit="code", disable=not progress)

  centres = k_means.start(vectors, codec.num_codes, choices.seed, bar)
  errors, is_settled = _settled(
    vectors, centres, choices.num_iterations, progress
  )
  card = Card(name=name, codec=codec, data=data)
  directory.save(out, card, {"codes": centres})
  usage = np.bincount(
    k_means.assigned(vectors, centres), minlength=codec.num_codes
  )
  count = len(vectors)
  return Report(
    out, count // codec.num_tokens, count, tuple(errors), is_settled, usage
  )


def _settled(
  vectors: np.ndarray, centres: np.ndarray, most: int, progress: bool
) -> tuple[list[float], bool]:
  """Errors while `centres` are moved, and whether they rest in the end."""
  from tqdm import tqdm

  errors = []
  with tqdm(desc="k-means", total=most, disable=not progress) as shown:
    # One error more than iterations: that of the centres that are written.
    for error in k_means.iterations(vectors, centres):
      errors.append(error / vectors.shape[1])
      shown.set_postfix(error=f"{errors[-1]:.4g}")
      if len(errors) > most:
        return errors, False
      shown.update()
  return errors, True


def patches_of(
  codec: CodebookConfig,
  data: DataConfig,
  choices: Choices,
  progress: bool,
) -> Float32[np.ndarray, "N D"]:
  """Standardised patches [N, D] of the training images that were chosen.

  Raises:
    ValueError, OSError: see `Examples`.
  """
  from tqdm import tqdm

  from marjax.data.examples import Examples

  examples = Examples(data, data.train_split)
  count = len(examples)
  order = np.arange(count)
  if choices.num_images is not None and choices.num_images < count:
    random = np.random.default_rng(choices.seed)
    order = np.sort(random.choice(count, choices.num_images, replace=False))
  cut = jax.jit(codec.vectors)
  size = min(READ_AT_ONCE, len(order))
  parts = []
  for first in tqdm(
    range(0, len(order), size), desc="reading", disable=not progress
  ):
    images = to_float(examples.gather(order[first : first + size]).images)
    mirrored = (images, images[:, :, ::-1]) if data.flip else (images,)
    for chosen in mirrored:
      vectors = np.asarray(cut(np.ascontiguousarray(chosen)))
      parts.append(vectors.reshape(-1, vectors.shape[-1]))
  return np.concatenate(parts)
