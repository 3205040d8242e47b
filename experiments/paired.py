"""Is one setting as good as another? Differences taken seed by seed.

1. Both settings were scored on the same seeds: the same orders of tokens and
   the same initial noise. What a lucky seed adds to both drops out.
2. From the differences: mean, standard error, the two-sided paired t-test, and
   the 95 % interval of Student's t.
3. The reading needs a margin, the smallest difference that matters. Equal means
   that the whole interval is within it: a large p alone shows nothing but too
   few seeds.
"""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

MARGINS = {"frechet_ratio": 0.3, "label_accuracy": 0.01}
"""The ratio's is what `marjax.evaluate.scores.pixels` calls noise; the
accuracy's is the difference of real test digits and good generated ones."""

LOWER_IS_BETTER = {"frechet_ratio": True, "label_accuracy": False}


class Difference(NamedTuple):
  """Ours minus theirs, over n seeds.

  Attributes:
    error: standard error of the mean. p: of the two-sided paired t-test.
    low, high: the 95 % interval.
  """

  count: int
  mean: float
  error: float
  p: float
  low: float
  high: float


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
  """The paired difference of scores, one of each per seed.

  Raises:
    ValueError: fewer than two seeds, or not one of each.
  """
  # scikit-learn, which the scores need, brings scipy along.
  from scipy import stats

  if len(ours) != len(theirs) or len(ours) < 2:
    raise ValueError(
      f"there are scores of {len(ours)} and {len(theirs)} seeds; expected the"
      " same seeds of both, at least two."
    )
  found = stats.ttest_rel(ours, theirs)
  low, high = found.confidence_interval(0.95)
  gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
  error = stdev(gaps) / math.sqrt(len(gaps))
  numbers = (mean(gaps), error, found.pvalue, low, high)
  return Difference(len(gaps), *map(float, numbers))


def reading(found: Difference, score: str) -> str:
  """What a difference in that score says, in a word or two.

  "equal": within the margin. "better", "worse": not 0, and perhaps more than
  the margin. "not worse": at most the margin worse. "unclear": anything.
  """
  margin, low, high = MARGINS[score], found.low, found.high
  if -margin < low and high < margin:
    return "equal"
  if not LOWER_IS_BETTER[score]:
    low, high = -high, -low
  if high < 0:
    return "better"
  if low > 0:
    return "worse"
  return "not worse" if high < margin else "unclear"
