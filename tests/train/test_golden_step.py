"""Did training change? One step's numbers, kept here.

If a change is meant to alter training (another draw, another init, another
arithmetic order), run this test, read the new numbers from its message, judge
them, and put them here with a line in CHANGELOG.
"""

import dataclasses

import numpy as np
import small

from marjax.train.step import make_train_program

GOLDEN = {
  "loss": 3.5382352,
  "mse": 1.2559063,
  "vlb": 2.2823288,
  "grad_norm": 2.8702421,
  "update_norm": 0.21704368,
  "learning_rate": 1e-3,
}


def test_one_step():
  mesh = small.one_device()
  program = make_train_program(small.EXPERIMENT, mesh, num_examples=64)
  # As initialised, the head looks at nothing.
  begun = dataclasses.replace(program.init(), params=small.params())
  state, metrics = program.step(begun, small.images(16))
  ours = {name: float(value) for name, value in metrics.items()}
  assert int(state.step) == 1
  assert ours.keys() == GOLDEN.keys()
  for name, value in GOLDEN.items():
    np.testing.assert_allclose(
      ours[name], value, rtol=2e-5, err_msg=f"training changed: {ours}"
    )
