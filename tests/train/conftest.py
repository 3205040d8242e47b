"""What the tests of whole runs of tests/train/tiny.py share."""

import numpy as np
import pytest

from marjax.train import loop, samples


@pytest.fixture(scope="module")
def quick():
  """Runs share one program and draw black: tracing is most of a run."""
  programs, make = [], loop.make_train_program

  def make_once(*args):
    if not programs:
      programs.append(make(*args))
    return programs[0]

  def draw(self, labels):
    return np.zeros((len(labels), 4, 4, 1), np.uint8)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "make_train_program", make_once)
    patch.setattr(samples.Pipeline, "generate", draw)
    yield
