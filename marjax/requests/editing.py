"""Editing: some tokens of an image are kept, the others are drawn anew.

1. The mask is in pixels; a token is drawn anew if any of its pixels is masked.
2. Kept tokens come first in the image's order, in order space they are simply a
   longer known prefix. The others keep the order that the seed gave them.
3. Generation goes on from there, as it would have from a step that had revealed
   as many: same schedule, same guidance. Kept latents stay bit-equal.

Inpainting, outpainting, another class and variations differ in mask and label
only; `marjax.tokens.regions` makes the masks.
"""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from marjax.arrays import shown
from marjax.generate.draws import Draws
from marjax.generate.reveal import Given
from marjax.latents.images import as_uint8
from marjax.tokens import regions


@dataclass(frozen=True, repr=False)
class Edited:
  """What an edit gives.

  Attributes:
    images: uint8 [N, H, W, C].
    mask: bool [N, H, W], the pixels drawn anew: those asked for, rounded
      outwards to whole tokens.
    latents: [N, *latent_shape], float32, or int32 where they are codes; where
      nothing was masked they are bit-equal to those of the image given.
  """

  images: UInt8[np.ndarray, "N height width C"]
  mask: Bool[np.ndarray, "N height width"]
  latents: Shaped[np.ndarray, "N rows columns *latent"]

  def __repr__(self) -> str:
    return (
      f"Edited(images {shown(self.images)}, {self.mask.mean():.0%} drawn anew)"
    )


def token_mask(mask, num_images: int, size: int, cell: int) -> np.ndarray:
  """The tokens to draw anew, bool [N, L].

  Args:
    mask: [H, W] for all images or [N, H, W], see `regions.check_mask`.
    num_images: N. size: H = W. cell: pixels per side of a token.

  Raises:
    ValueError: another kind or size of mask; no token, or every one, masked.
  """
  mask = regions.check_mask(mask, num_images, size, size)
  is_masked = regions.token_mask(mask, cell)
  regions.check_covers(is_masked, cell)
  return is_masked


def kept_first(draws: Draws, is_masked: Bool[np.ndarray, "N L"]) -> Draws:
  """The same draws, but tokens that are kept come first in the order."""
  order = np.asarray(draws.order)
  place = np.argsort(np.take_along_axis(is_masked, order, 1), 1, kind="stable")
  order = jnp.asarray(np.take_along_axis(order, place, 1))
  return dataclasses.replace(draws, order=order)


def given(tokens: np.ndarray, is_masked: Bool[np.ndarray, "N L"]) -> Given:
  """The tokens to keep, for `marjax.generate.reveal`."""
  num_given = np.sum(~is_masked, axis=1, dtype=np.int32)
  return Given(np.asarray(tokens), num_given)


def pasted(
  images: UInt8[np.ndarray, "N height width C"],
  originals: Shaped[np.ndarray, "N height width C"],
  mask: Bool[np.ndarray, "N height width"],
) -> UInt8[np.ndarray, "N height width C"]:
  """The original pixels wherever nothing was masked."""
  return np.where(mask[..., None], images, as_uint8(originals))


def count_of(
  images: np.ndarray, labels: np.ndarray, num_images: int | None
) -> int:
  """How many images an edit makes: one of several counts, or 1.

  Raises:
    ValueError: two counts that differ.
  """
  counts = {
    "images": len(images),
    "labels": len(labels),
    "num_images": 1 if num_images is None else num_images,
  }
  several = {name: count for name, count in counts.items() if count != 1}
  if len(set(several.values())) > 1:
    shown = ", ".join(f"{count} {name}" for name, count in several.items())
    raise ValueError(
      f"an edit of {shown}: expected as many of each, or one: repeat or drop"
      " some."
    )
  return max(counts.values())


def repeated(values: Shaped[np.ndarray, "n ..."], count: int) -> np.ndarray:
  """One value for all, or one for each: N of them."""
  values = np.asarray(values)
  return np.repeat(values, count, axis=0) if len(values) == 1 else values
