"""What every test runs with, set before jax starts.

1. Eight fake CPU devices, so that placement is tested on any machine.
2. A folder of compiled programs kept between runs: most of a run is compiling.
   Processes that tests start inherit both through the environment.
3. Full float32 matmuls, on accelerators too: tolerances assume them.
4. Programs compiled fast rather than to be fast: they are small. With
   JAX_DISABLE_MOST_OPTIMIZATIONS=0 they are what users run. And garbage is
   looked for less often: tracing makes many small objects, and they stay.
5. The jaxtyping signatures of `marjax` are checked; outside of tests they cost
   nothing. MARJAX_CHECK_TYPES=0 leaves them alone.
6. Parsed absl flags, which grain's worker processes read.
7. Files with slow tests come first: what runs last should be short, or workers
   wait for one of them.
8. `golden("folder/file.npz")` reads numbers kept in tests/golden.
9. What compiled programs take is given back between files once it is much, so
   that a worker stays below 3 GB. From the folder they come back fast.
10. With `kernels` a test runs those for GPUs, interpreted; with
    `traced_for_gpus` they are in its programs, which take the plain code.
"""

import ctypes
import gc
import os
import pathlib
from importlib import metadata

import pytest

TESTS = pathlib.Path(__file__).parent

ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "JAX_NUM_CPU_DEVICES": "8",
  "JAX_COMPILATION_CACHE_DIR": str(TESTS.parent / ".cache" / "jax"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_DEFAULT_MATMUL_PRECISION": "highest",
  "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  # More threads wait for each other by spinning: of small matrices on a busy
  # machine that took ten times the processor time that the products do.
  "OPENBLAS_NUM_THREADS": "1",
  "OMP_NUM_THREADS": "1",
  # The TPU compiler, which needs no TPU: it would look for one, and allow only
  # one process to load it.
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


# XLA's older emitters compile a third faster. By version, because XLA ends a
# process that gives it a flag which it does not know.
QUICK_TO_COMPILE = {"0.10": "--xla_cpu_use_fusion_emitters=false"}


def _prepare():
  """A variable set by the caller wins."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  version = ".".join(metadata.version("jaxlib").split(".")[:2])
  if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0":
    os.environ.setdefault("XLA_FLAGS", QUICK_TO_COMPILE.get(version, ""))
  gc.set_threshold(50_000, 20)
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


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
  """Programs are forgotten after a file that leaves 1.5 GiB or more in use."""
  yield
  statm = pathlib.Path("/proc/self/statm")
  if statm.exists():
    num_pages = int(statm.read_text().split()[1])
    if num_pages * os.sysconf("SC_PAGE_SIZE") < 3 * 2**29:
      return
  import jax

  jax.clear_caches()
  gc.collect()
  # glibc else keeps for itself what was freed.
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim:
    trim(0)


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
  from marjax.layers import fused

  monkeypatch.setattr(fused, "has_kernels", lambda: True)


@pytest.fixture
def kernels(monkeypatch, traced_for_gpus):
  """And they are run, on a CPU."""
  from marjax.layers import fused

  monkeypatch.setattr(
    fused, "choose", lambda kernel, plain, *arrays: kernel(*arrays)
  )


@pytest.fixture
def command(capsys):
  """Runs `marjax ...`: its exit code, then what it printed."""

  def do(*argv) -> tuple[int, str, str]:
    from marjax.cli import main

    code = main.main([str(word) for word in argv])
    return code, *capsys.readouterr()

  return do


@pytest.fixture
def fails(command):
  """Runs a command that must fail with one line; returns it."""

  def do(*argv) -> str:
    code, _, shown = command(*argv)
    line = shown.replace("\r", "\n").splitlines()[-1]
    assert code == 2
    assert line.startswith("marjax: ")
    assert line.endswith(".")
    return line

  return do
