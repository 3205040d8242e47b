"""How images were revealed: what each autoregressive step had of them.

1. A frame is the image decoded from the tokens known after a step.
2. A pixel is known when its token is: the order says at which step that was.
3. The others are grey. What a decoder gives for them is of latent 0, or of code
   0, which the model did not draw.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from marjax.arrays import shown
from marjax.generate.draws import Draws
from marjax.generate.plan import Plan
from marjax.protocols import Codec
from marjax.tokens import regions

GREY = np.uint8(128)
"""The pixels of a frame that are not known yet."""


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
    plan: Plan,
    images: UInt8[np.ndarray, "N height width C"],
    frames: UInt8[np.ndarray, "S N height width C"],
    draws: Draws,
  ) -> "Trajectory":
    """The trajectory of images that were drawn by a plan in their order."""
    rank = np.argsort(np.asarray(draws.order), axis=1)
    is_known = rank[None] < np.asarray(plan.known_after)[:, None, None]
    cells = codec.image_size // codec.cell
    flat = is_known.reshape(-1, codec.num_tokens)
    pixels = regions.pixel_mask(flat, cells, cells, codec.cell)
    pixels = pixels.reshape(*is_known.shape[:2], *pixels.shape[1:])
    frames = np.where(pixels[..., None], frames, GREY)
    return cls(images, frames, pixels, plan.known_after)
