"""Damage: one random bit of one random file is flipped, many times.

1. Files are drawn with equal chances, so that small ones are met too.
2. After each flip `use` is called. It must give what it gave before, or raise
   ValueError or OSError with one line: a sentence. Anything else is silent.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


def outcomes(
  files: Iterable[Path], use: Callable[[], Any], num_trials: int = 24
) -> Counter:
  """How often "told", "same", and else what happened, with the place."""
  files, rng = sorted(files), np.random.default_rng(0)
  expected, seen = use(), Counter()
  for _ in range(num_trials):
    path = files[rng.integers(len(files))]
    content = path.read_bytes()
    place, bit = rng.integers(len(content)), 1 << int(rng.integers(8))
    flipped = bytearray(content)
    flipped[place] ^= bit
    path.write_bytes(flipped)
    try:
      fine = use() == expected
      outcome = "same" if fine else f"silent: {path.name}, {place}, {bit}"
    except (ValueError, OSError) as error:
      is_line = len(str(error).splitlines()) == 1
      outcome = "told" if is_line else f"no sentence: {path.name}: {error}"
    finally:
      path.write_bytes(content)
    seen[outcome] += 1
  return seen
