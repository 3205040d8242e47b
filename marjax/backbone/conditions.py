"""What images are asked for by: classes, as one vector for each.

-1 is a label like any other: "no class", with a vector of its own,
`fake_latent`, which takes the place of a share of training's classes.
"""

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from marjax import schema
from marjax.arrays import NO_LABEL, Labels
from marjax.backbone import classes
from marjax.layers.linear import small_normal
from marjax.layers.placed import by_batch, constrained
from marjax.schema import Range, Share


@schema.config
class ClassesConfig:
  """Conditions are labels [B]: integers, -1 for "no class".

  Attributes:
    num_classes: 0 for none. dropout: share of training images whose class is
      hidden.
  """

  num_classes: Annotated[int, Range(0, 2**24)] = 1000
  dropout: Share = 0.1
  kind: Literal["classes"] = "classes"

  @property
  def num_slots(self) -> int:
    """Vectors of one condition."""
    return 1

  def nothing(self, batch: int) -> Labels:
    """The labels of images without a class."""
    return jnp.full((batch,), NO_LABEL, jnp.int32)

  def parse(
    self, asked: Any, num_images: int | None, names: tuple[str, ...]
  ) -> np.ndarray:
    """Numbers or names of classes to int32 [N], see `classes.one_each`."""
    labels = classes.one_each(asked, num_images, names, self.num_classes)
    return np.asarray(labels, np.int32)

  def build(self, width: int) -> nn.Module:
    """A module: labels [B] to vectors [B, 1, width]."""
    return ClassEmbedding(self.num_classes, width)


class ClassEmbedding(nn.Module):
  """Label to vector; a negative label gives `fake_latent`, "no class"."""

  num_classes: int
  width: int

  @nn.compact
  def __call__(self, labels: Labels) -> Float[Array, "B 1 W"]:
    """Labels [B] in -1 .. num_classes - 1 to [B, 1, W]."""
    fake = self.param(
      "fake_latent",
      nn.with_logical_partitioning(small_normal, (None, "embed")),
      (1, self.width),
    )
    if self.num_classes == 0:
      return jnp.broadcast_to(fake, (labels.shape[0], 1, self.width))
    table = self.param(
      "table",
      nn.with_logical_partitioning(small_normal, (None, "embed")),
      (self.num_classes, self.width),
    )
    table = constrained(table, (None, None))
    rows = table[jnp.maximum(labels, 0)]
    rows = by_batch(jnp.where((labels < 0)[:, None], fake, rows))
    return rows[:, None]
