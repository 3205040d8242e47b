"""What tests of whole runs share, most of them of tests/train/tiny.py."""

import numpy as np
import pytest
from train.shared import share_program

from marjax.train import samples


@pytest.fixture(scope="module")
def quick():
  """Runs of a file share one program and draw black."""

  def draw(self, labels):
    return np.zeros((len(labels), 4, 4, 1), np.uint8)

  with pytest.MonkeyPatch.context() as patch:
    share_program(patch)
    patch.setattr(samples.Pipeline, "generate", draw)
    yield


@pytest.fixture
def one_program(monkeypatch):
  """Runs of a test share one program; they are of one codec's weights."""
  share_program(monkeypatch)
