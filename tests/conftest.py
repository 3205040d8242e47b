"""What every test runs with, set before jax starts.

1. Eight fake CPU devices, so that placement is tested on any machine.
2. A folder of compiled programs kept between runs: most of a run is compiling.
   Processes that tests start inherit both through the environment.
3. Full float32 matmuls, on accelerators too: tolerances assume them.
4. Programs compiled fast rather than to be fast: they are small. With
   JAX_DISABLE_MOST_OPTIMIZATIONS=0 they are what users run.
5. The jaxtyping signatures of `marjax` are checked; outside of tests they cost
   nothing. MARJAX_CHECK_TYPES=0 leaves them alone.
6. Parsed absl flags, which grain's worker processes read.
7. Files with slow tests come first: what runs last should be short, or workers
   wait for one of them.
8. `golden("folder/file.npz")` reads numbers kept in tests/golden.
9. With `kernels` a test runs those for GPUs, interpreted; with
   `traced_for_gpus` they are in its programs, which take the plain code.
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
  "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  # The TPU compiler, which needs no TPU: it would look for one, and allow only
  # one process to load it.
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
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


def pytest_collection_modifyitems(items):
  """Puts the files that have slow tests first."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def golden():
  """Reads tests/golden/NAME.npz as a dict of arrays."""
  import numpy as np

  def read(name: str) -> dict:
    with np.load(TESTS / "golden" / name) as file:
      return dict(file)

  return read


@pytest.fixture
def traced_for_gpus(monkeypatch):
  """Programs have kernels wherever a GPU would run them."""
  from marjax.layers import add_norm, attention, gelu

  for module in (attention, gelu, add_norm):
    monkeypatch.setattr(module, "has_kernels", lambda: True)


@pytest.fixture
def kernels(monkeypatch, traced_for_gpus):
  """And they are run, on a CPU."""
  import jax
  from jax.experimental import pallas as pl

  from marjax.layers.gpu import add_norm as add_norm_kernel
  from marjax.layers.gpu import attention as attention_kernel

  def forget():
    """What was traced with, or without, what is changed here."""
    for module in (add_norm_kernel, attention_kernel):
      module.forward.clear_cache()
      module.backward.clear_cache()

  forget()
  call = pl.pallas_call
  monkeypatch.setattr(
    pl, "pallas_call", lambda *a, **k: call(*a, **{**k, "interpret": True})
  )
  monkeypatch.setattr(
    jax.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args)
  )
  yield
  forget()
