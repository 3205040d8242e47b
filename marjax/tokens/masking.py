"""Training masks: how many tokens of each image are known.

1. Mask ratio: a normal of mean 1.0 and std 0.25, cut to [0.7, 1.0]; unknown
   tokens = ceil(L · ratio), so at most L - ceil(0.7 L) tokens are known.
2. The batch is dealt into G strata: image b takes its ratio from quantiles
   [g/G, (g+1)/G) with g = b mod G. Batches are shuffled, so the distribution
   per image is that of step 1, but each stratum's counts are bounded:

     G = 1   known 0 ........................ 76        of 256 tokens
     G = 4   known 51 .. 76 | 32 .. 51 | 15 .. 32 | 0 .. 15

   Encoder length (upper bound) and unknown tokens of the loss (from the lower
   bound on) are then static slices with little padding.

DIFFERS: mask-ratio. The published program draws one ratio for a whole batch;
here each image has its own. `MaskConfig(per="batch")` gives the published way.
"""

import itertools
import math
import statistics
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from marjax import keys, schema
from marjax.arrays import Counts, ImageKeys
from marjax.schema import Range, check

_NORMAL = statistics.NormalDist()


@schema.config
class MaskConfig:
  """How training masks are drawn.

  Attributes:
    per: "image" for one ratio per image, "batch" for one per batch.
    num_strata: G; the batch size must be a multiple of it.
    mean, std, lowest: of the mask ratio's normal, cut to [lowest, 1].
  """

  per: Literal["image", "batch"] = "image"
  num_strata: Annotated[int, Range(1, 1024)] = 1
  mean: Annotated[float, Range(0, 1, is_open=True)] = 1.0
  std: Annotated[float, Range(0, 1e3, is_open=True)] = 0.25
  lowest: Annotated[float, Range(0, 1, is_open=True)] = 0.7

  def __post_init__(self):
    check(
      self.lowest < self.mean,
      f"masking has lowest={self.lowest} and mean={self.mean}; expected a mean"
      " above the lowest ratio.",
    )
    check(
      self.per == "image" or self.num_strata == 1,
      f"masking.num_strata is {self.num_strata}; expected 1 with"
      ' masking.per="batch".',
    )

  def known_bounds(self, num_tokens: int) -> tuple[tuple[int, int], ...]:
    """(fewest, most) known tokens of each stratum, G pairs."""
    edges = [
      num_tokens - self._num_unknown(num_tokens, g / self.num_strata)
      for g in range(self.num_strata + 1)
    ]
    return tuple((fewest, most) for most, fewest in itertools.pairwise(edges))

  def draw_num_known(self, image_keys: ImageKeys, num_tokens: int) -> Counts:
    """Known tokens of each image [B], int32.

    Raises:
      ValueError: the batch is not a multiple of num_strata.
    """
    batch = image_keys.shape[0]
    check(
      batch % self.num_strata == 0,
      f"the batch has {batch} images; expected a multiple of"
      f" masking.num_strata = {self.num_strata}.",
    )
    u = keys.uniform(image_keys)
    if self.per == "batch":
      u = jnp.broadcast_to(u[:1], u.shape)
    stratum = jnp.arange(batch) % self.num_strata
    ratio = self.ratio((stratum + u) / self.num_strata)
    num_known = num_tokens - jnp.ceil(num_tokens * ratio).astype(jnp.int32)
    bounds = jnp.asarray(self.known_bounds(num_tokens))[stratum]
    return jnp.clip(num_known, bounds[:, 0], bounds[:, 1])

  def ratio(self, quantile: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The mask ratio's inverse CDF at a quantile in [0, 1]."""
    normal = jax.scipy.stats.norm.ppf(self._probability(quantile))
    return jnp.clip(self.mean + self.std * normal, self.lowest, 1.0)

  def _num_unknown(self, num_tokens: int, quantile: float) -> int:
    """ceil(L · ratio) at a quantile, on the host in float64."""
    normal = _NORMAL.inv_cdf(self._probability(quantile))
    ratio = min(1.0, max(self.lowest, self.mean + self.std * normal))
    return math.ceil(round(num_tokens * ratio, 9))

  def _probability(self, quantile):
    """The untruncated normal's CDF at a quantile of the interval."""
    low = _NORMAL.cdf((self.lowest - self.mean) / self.std)
    high = _NORMAL.cdf((1.0 - self.mean) / self.std)
    return low + (high - low) * quantile
