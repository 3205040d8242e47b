"""How images are revealed: what each autoregressive step has of them.

1. A frame is the image decoded from the tokens known after a step.
2. A pixel is known when its token is: the order says at which step that is.
3. The others are grey. What a decoder gives for them is of latent 0, or of code
   0, which the model did not draw.

`watched` shows frames while more is drawn; a `Trajectory` has them all.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from marjax.arrays import shown
from marjax.protocols import Codec
from marjax.requests.batching import Request
from marjax.tokens import regions

GREY = np.uint8(128)
"""The pixels of a frame that are not known yet."""

MOST_FRAMES = 16
"""Of images that somebody watches, the whole ones among them."""

Watch = Callable[[UInt8[np.ndarray, "n height width C"]], None]


def watched(
  request: Request,
  codec: Codec,
  decode: Callable[[np.ndarray], np.ndarray],
  watch: Watch | None,
  frames: list | None = None,
) -> Request:
  """The request, with its frames shown as they are drawn, but the last.

  Args:
    request: of a model with that codec.
    decode: tokens to images. watch: called with frames, every few steps.
    frames: a list that gets those of every step.
  """
  if watch is None and frames is None:
    return request
  plan, given = request.static.plan, request.given
  num_given = 0 if given is None else np.asarray(given.num_given)
  order = np.asarray(request.draws.order)

  def tell(index: np.ndarray, done: int, tokens: np.ndarray) -> None:
    num_known = np.maximum([plan.known_after[done - 1]], num_given)
    is_known = known_pixels(codec, order, num_known)[index]
    frame = np.where(is_known[..., None], decode(tokens), GREY)
    if frames is not None:
      frames.append(frame)
    if watch is not None:
      watch(frame)

  few = math.ceil(plan.num_ar_steps / MOST_FRAMES)
  every = few if frames is None else 1
  return dataclasses.replace(request, watch=tell, every=every)


def known_pixels(
  codec: Codec, order: Int[np.ndarray, "N L"], num_known: Int[np.ndarray, "#N"]
) -> Bool[np.ndarray, "N height width"]:
  """Which pixels are known when so many tokens of each image, or all, are."""
  rank, cells = np.argsort(order, axis=1), codec.image_size // codec.cell
  is_known = rank < num_known[:, None]
  return regions.pixel_mask(is_known, cells, cells, codec.cell)


@dataclass(frozen=True, repr=False)
class Trajectory:
  """Images and how they were revealed.

  Attributes:
    images: uint8 [N, H, W, C].
    frames: uint8 [S, N, H, W, C] after each autoregressive step; pixels of
      unknown tokens are grey, 128.
    is_known: bool [S, N, H, W], which pixels of a frame are final.
    num_known: known tokens after each step, S integers.
  """

  images: UInt8[np.ndarray, "N height width C"]
  frames: UInt8[np.ndarray, "S N height width C"]
  is_known: Bool[np.ndarray, "S N height width"]
  num_known: tuple[int, ...]

  def __repr__(self) -> str:
    steps = len(self.num_known)
    return f"Trajectory(images {shown(self.images)}, {steps} steps)"

  @classmethod
  def of(
    cls,
    codec: Codec,
    request: Request,
    images: UInt8[np.ndarray, "N height width C"],
    frames: list,
  ) -> "Trajectory":
    """The trajectory of a request's images, of the frames before the last.

    There is one for each step of each batch, one batch after the other.
    """
    counts = request.static.plan.known_after
    order, steps = np.asarray(request.draws.order), len(counts) - 1
    each = [np.concatenate(frames[step::steps]) for step in range(steps)]
    is_known = [known_pixels(codec, order, np.array([n])) for n in counts]
    return cls(images, np.stack([*each, images]), np.stack(is_known), counts)
