"""What every test runs with, set before jax starts.

1. Eight fake CPU devices, so that placement is tested on any machine.
2. A folder of compiled programs kept between runs: most of a run is compiling.
   Processes that tests start inherit both through the environment.
3. Full float32 matmuls, on accelerators too: tolerances assume them.
4. The jaxtyping signatures of `marjax` are checked; outside of tests they cost
   nothing. MARJAX_CHECK_TYPES=0 leaves them alone.
5. Parsed absl flags, which grain's worker processes read.
6. `golden("folder/file.npz")` reads numbers kept in tests/golden.
"""

import os
import pathlib

import pytest

TESTS = pathlib.Path(__file__).parent

ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "JAX_NUM_CPU_DEVICES": "8",
  "JAX_COMPILATION_CACHE_DIR": str(TESTS.parent / ".cache" / "jax"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_DEFAULT_MATMUL_PRECISION": "highest",
}


def _prepare():
  """A variable set by the caller wins."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  from absl import flags
  from jaxtyping import install_import_hook

  flags.FLAGS.mark_as_parsed()
  if os.environ.get("MARJAX_CHECK_TYPES", "1") != "0":
    install_import_hook("marjax", "beartype.beartype")


# Now, not in a pytest hook: conftest files of subfolders, which import marjax,
# are read before any hook is called.
_prepare()


@pytest.fixture(scope="session")
def golden():
  """Reads tests/golden/NAME.npz as a dict of arrays."""
  import numpy as np

  def read(name: str) -> dict:
    with np.load(TESTS / "golden" / name) as file:
      return dict(file)

  return read
