"""What editing is worth: real test digits, partly drawn anew by one model.

    python -m experiments.edits --checkpoint out/digits

1. inpaint: a region of every test digit is drawn anew, given its own label. A
   classifier fit on real training digits says how often it sees that label, in
   the result and, for comparison, in the digit whose region is filled with the
   mean grey of the training digits, and in the whole digit.
2. inpaint, no label: the same without telling the model what the digit is, so
   what the classifier sees comes from the part that was kept.
3. another label: the label asked for is one of the others, drawn at random for
   each digit and seed; how often is it seen, how often still the old one?
   Which regions are large enough is the result. Once with the checkpoint's
   settings, once with more guidance: STRONG, chosen on training digits.
4. Latents outside the region must be bit-equal to those before; the experiment
   stops if one is not.
5. Append a row per edit, region and seed; a row already there is skipped.
   `python -m experiments.tables` makes the table: mean and spread over seeds.
6. With --picture, draw some of these edits.

Seconds are those of one edit of all digits; the first of a kind compiles.
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import programs, rows, samplers
from marjax import outputs, regions
from marjax.evaluate import run
from marjax.evaluate.scores import pixels
from marjax.generate.settings import Settings
from marjax.pipeline import Pipeline, load
from marjax.requests import pictures
from marjax.requests.editing import Edited

RESULTS = Path("experiments/results/edits.jsonl")

STRONG = Settings(guidance_scale=3.0)
"""Of 1.25, 2, 3 and 5, tried on 300 training digits: the more, the more often
the label is seen, and from 3 on hardly more in the regions that pass 0.9."""

HALVES = ("left half", "right half", "top half", "bottom half")

Region = Callable[[int, int, int], np.ndarray]
"""(size, cell, num_images) → the pixels to draw anew, [H, W] or [N, H, W]."""


class Edit(NamedTuple):
  """One kind of edit, with every region that it is measured on.

  Attributes:
    label: what the model is told: "own", "none" or "another".
    settings: what differs from the checkpoint's.
  """

  label: str
  settings: Settings
  regions: tuple[str, ...]


def _half(side: str) -> Region:
  return lambda size, cell, num_images: regions.half(size, side)


def _band(*quarters: int) -> Region:
  """A box: top, left, height and width in quarters of the image's side."""
  return lambda size, cell, num_images: regions.box(
    size, *(number * size // 4 for number in quarters)
  )


def _scattered(share: float) -> Region:
  """Random tokens, other ones in every image."""
  return lambda size, cell, num_images: np.stack(
    [regions.scattered(size, cell, share, seed) for seed in range(num_images)]
  )


REGIONS: dict[str, Region] = {
  **{half: _half(half.removesuffix(" half")) for half in HALVES},
  "middle rows": _band(1, 0, 2, 4),
  "middle columns": _band(0, 1, 4, 2),
  "all but the bottom quarter": _band(0, 0, 3, 4),
  "all but the left quarter": _band(0, 1, 4, 3),
  "scattered, 3 of 4 tokens": _scattered(3 / 4),
  "scattered, 7 of 8 tokens": _scattered(7 / 8),
}

EDITS = {
  "inpaint": Edit("own", Settings(), HALVES),
  "inpaint, no label": Edit("none", Settings(), HALVES),
  "another label": Edit("another", Settings(), tuple(REGIONS)),
  "another label, guidance 3": Edit("another", STRONG, tuple(REGIONS)),
}


class Shown(NamedTuple):
  """A row of the picture: its caption, an edit and a region of it."""

  caption: str
  edit: str
  region: str


SHOWN = (
  Shown("repair the left half", "inpaint", "left half"),
  Shown("repair the top half", "inpaint", "top half"),
  Shown("make it another digit", "another label, guidance 3", "middle columns"),
  Shown("vary it", "inpaint", "scattered, 3 of 4 tokens"),
)

DIGITS = (0, 3, 5)
"""Classes in the picture, each by its first test digit; chosen as legible."""

OTHERS = (3, 8)
"""The other digits that one is made into: so many classes further on."""

SCALE = 6


def asked_labels(
  edit: Edit, own: np.ndarray, num_classes: int, seed: int
) -> np.ndarray | None:
  """What the model is told, for digits of the classes own: [N] or None."""
  if edit.label == "none":
    return None
  if edit.label == "own":
    return own
  # Never 0 and never num_classes, so never the same class.
  shift = np.random.RandomState(seed).randint(1, num_classes, len(own))
  return (own + shift) % num_classes


def masks_of(pipe: Pipeline, region: str, num_images: int) -> np.ndarray:
  """The pixels of a region, bool [N, H, W]."""
  codec = pipe.card.codec
  size, cell = codec.image_size, codec.stride * codec.patch
  mask = REGIONS[region](size, cell, num_images)
  return np.broadcast_to(mask, (num_images, size, size))


def check_kept(edited: Edited, before: np.ndarray) -> None:
  """Latents outside of the mask are those from before, bit by bit.

  Raises:
    ValueError: some differ.
  """
  stride = edited.mask.shape[1] // before.shape[1]
  kept = ~edited.mask[:, ::stride, ::stride]
  is_other = edited.latents[kept].view(np.uint32) != before[kept].view(
    np.uint32
  )
  if is_other.any():
    raise ValueError(
      f"{is_other.sum()} of {is_other.size} latents that were to be kept have"
      " changed; expected none: editing is broken, so nothing was measured."
    )


def measure(
  pipe: Pipeline, real: run.Real, edit: Edit, region: str, seed: int
) -> dict[str, Any]:
  """Edits every test digit and asks the classifier what it sees."""
  images, own = real.test.images, real.test.labels
  mask = masks_of(pipe, region, len(images))
  asked = asked_labels(edit, own, pipe.card.data.num_classes, seed)
  start = time.perf_counter()
  edited = pipe.edit(images, mask, asked, seed, edit.settings)
  seconds = time.perf_counter() - start
  check_kept(edited, pipe.encode(images))
  mean = real.train.images.mean().round().astype(np.uint8)
  grey = np.where(edited.mask[..., None], mean, images)

  def accuracy(shown, labels):
    return pixels.label_accuracy(real.classifier, shown, labels)

  return {
    "asked_label_accuracy": (
      None if asked is None else accuracy(edited.images, asked)
    ),
    "own_label_accuracy": accuracy(edited.images, own),
    "grey_accuracy": accuracy(grey, own),
    "real_test_accuracy": accuracy(images, own),
    "share_drawn": float(edited.mask.mean()),
    "seconds": seconds,
  }


def measure_missing(
  pipe: Pipeline, real: run.Real, num_seeds: int, out: Path
) -> None:
  """Adds the rows that the file of results does not have, and prints all."""
  common = {
    "num_images": len(real.test.images),
    "steps_trained": pipe.card.step,
    "parameters": samplers.fingerprint(pipe.params),
  }
  for name, edit in EDITS.items():
    settings = rows.as_row(pipe.settings(edit.settings))
    for region in edit.regions:
      for seed in range(num_seeds):
        asked = {"edit": name, "region": region, "seed": seed}
        asked |= {"settings": settings, **common}
        how = functools.partial(measure, pipe, real, edit, region, seed)
        print(_line(*rows.measured(out, asked, how)), flush=True)


def _line(row: rows.Row, is_new: bool) -> str:
  """A row for a person to read."""
  asked = row["asked_label_accuracy"]
  shown = "--" if asked is None else f"{asked:.3f}"
  return (
    f"{row['edit']}, {row['region']}, seed {row['seed']}:"
    f"{'' if is_new else ' already there,'} label asked for {shown},"
    f" own label {row['own_label_accuracy']:.3f},"
    f" own label in grey {row['grey_accuracy']:.3f}, {row['seconds']:.1f} s"
  )


def picture(pipe: Pipeline, real: run.Real, seed: int = 0) -> np.ndarray:
  """Digits, the parts kept and results, uint8 [H, W, 3]; a row per SHOWN."""
  own = np.array(DIGITS)
  found = [np.flatnonzero(real.test.labels == label)[0] for label in own]
  digits = real.test.images[found]
  others = (own[:, None] + OTHERS) % 10
  columns = len(DIGITS) * (3 + len(OTHERS)) - 1
  cells, captions = [], []
  for row in SHOWN:
    edit = EDITS[row.edit]
    is_other = edit.label == "another"
    labels = others if is_other else np.repeat(own[:, None], len(OTHERS), 1)
    masks = masks_of(pipe, row.region, len(DIGITS))
    for index, digit in enumerate(digits):
      one = np.repeat(digit[None], len(OTHERS), 0)
      edited = pipe.edit(one, masks[index], labels[index], seed, edit.settings)
      images = np.concatenate([digit[None], digit[None], edited.images])
      is_hatched = np.zeros(images.shape[:3], bool)
      is_hatched[1] = edited.mask[0]
      cells.append(_hatched(images, is_hatched))
      captions += [f"real {own[index]}", "kept"]
      captions += [f"as {label}" for label in labels[index]]
      if index < len(DIGITS) - 1:
        cells.append(np.full_like(cells[-1][:1], 255))
        captions.append("")
  return pictures.grid(
    np.concatenate(cells),
    columns,
    labels=captions,
    row_labels=[row.caption for row in SHOWN],
    title="The hatched part of a real digit is drawn anew, the rest is kept",
  )


def _hatched(images: np.ndarray, is_hatched: np.ndarray) -> np.ndarray:
  """Enlarged images in colour; stripes, as of a reveal, where hatched."""
  height, width = (SCALE * side for side in images.shape[1:3])
  diagonal = np.add.outer(np.arange(height), np.arange(width)) // 4 % 2
  stripes = np.where(diagonal[..., None], 205, 232).astype(np.uint8)

  def enlarged(pixels):
    return np.repeat(np.repeat(pixels, SCALE, 1), SCALE, 2)

  shown = np.where(enlarged(is_hatched)[..., None], stripes, enlarged(images))
  return np.broadcast_to(shown, (*shown.shape[:3], 3))


@programs.program
def main(argv: Sequence[str] | None) -> None:
  """Flags → rows and a picture; 2 when something about them is wrong."""
  parser = programs.parser(__spec__, __doc__)
  add = parser.add_argument
  add("--checkpoint", type=Path, required=True, help="a work directory")
  add(
    "--num_seeds", type=programs.count, default=3, help="default: %(default)s"
  )
  add("--out", type=Path, default=RESULTS, help="default: %(default)s")
  add("--picture", type=Path, help="to write, such as docs/images/edits.png")
  args = parser.parse_args(argv)
  if args.picture:
    outputs.check_free([args.picture])
  pipe = load(args.checkpoint)
  real = run.load_real(run.known_data(pipe))
  measure_missing(pipe, real, args.num_seeds, args.out)
  if args.picture:
    pictures.save_png(args.picture, picture(pipe, real))


if __name__ == "__main__":
  sys.exit(main())
