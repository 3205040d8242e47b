"""Parameters of the tiny published-layout checkpoints."""

import pytest

from parity.published import params_of


@pytest.fixture(scope="session")
def model_params(golden):
  return params_of(golden("weights_model.npz"))


@pytest.fixture(scope="session")
def ema_params(golden):
  return params_of(golden("weights_ema.npz"))
