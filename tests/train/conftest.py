"""What tests of whole runs share, most of them of tests/train/tiny.py."""

import numpy as np
import pytest
from train.shared import share_programs

from marjax.train import samples


@pytest.fixture(scope="module")
def shared_programs():
  """Runs of a file share their programs."""
  with pytest.MonkeyPatch.context() as patch:
    share_programs(patch)
    yield


@pytest.fixture(scope="module")
def quick(shared_programs):
  """And they draw black."""

  def draw(self, labels):
    return np.zeros((len(labels), 4, 4, 1), np.uint8)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(samples.Pipeline, "generate", draw)
    yield
