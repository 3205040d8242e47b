"""What scores are computed with, beside images and a network."""

from typing import Annotated, Literal

from marjax import schema
from marjax.schema import Positive, Range, Seed

Order = Literal["shuffled", "given"]


@schema.config
class Options:
  """Settings of scores; the defaults are those of published numbers.

  Attributes:
    num_splits: of the class score.
    order: of images before they are split: shuffled, or as given.
    num_neighbours: k of precision and recall.
    num_subsets: drawn for the kernel distance.
    subset_size: images in each of them.
    num_sizes: of sets that the Fréchet distance is extrapolated from.
    num_draws: of images, for every interval; 0 for no intervals, which spares
      Fréchet distances and the class score from keeping what was seen of each
      image.
    seed: of subsets and draws.
    allow_few: score with fewer images than features.
  """

  num_splits: Annotated[int, Range(1, 10_000)] = 10
  order: Order = "shuffled"
  num_neighbours: Annotated[int, Range(1, 1000)] = 3
  num_subsets: Positive = 100
  subset_size: Annotated[int, Range(2, 100_000)] = 1000
  num_sizes: Annotated[int, Range(2, 1000)] = 15
  num_draws: Annotated[int, Range(0, 100_000)] = 0
  seed: Seed = 2020
  allow_few: bool = False


DEFAULTS = Options()
