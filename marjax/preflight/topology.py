"""Devices to compile for: chips that are not there, or those at hand.

1. "v5e:16x16" is a slice of 16 × 16 chips; libtpu, which brings XLA's real TPU
   compiler, describes it on any machine. "h200:8" are 8 GPUs of one host
   (`marjax.preflight.gpus`). "here" are the devices at hand.
2. Before libtpu loads, the environment tells it that it will find no TPU, that
   other processes may load it too, and to give its threads larger stacks: the
   compiler overflows the usual ones on a training step.
"""

import importlib.util
import os
import re

import jax

from marjax.parallel.chips import CHIPS
from marjax.preflight import gpus
from marjax.schema import check

HERE = "here"

_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_STACKS = "--fibers_default_thread_stack_size"


def devices_of(topology: str, num_slices: int = 1) -> list:
  """The devices of a topology, e.g. "v5e:16x16", or of this machine.

  Args:
    topology: KIND:AxB or KIND:AxBxC of TPUs, KIND:N of GPUs, or "here".
    num_slices: slices of that shape, joined by the data-centre network.

  Raises:
    ValueError: there is no such topology.
    ModuleNotFoundError: the compiler, libtpu or jax's CUDA plugin, is not
      installed.
  """
  if topology == HERE:
    check(
      num_slices == 1,
      f"num_slices is {num_slices} with topology here; expected 1: slices are"
      " of chips that are not there.",
    )
    return jax.devices()
  kinds = [chip.name for kind, chip in CHIPS.items() if kind.startswith("TPU")]
  form = re.fullmatch(r"(\w+):(\d+x\d+(?:x\d+)?|[1-8])", topology)
  kind, shape = form.groups() if form else ("", "")
  is_gpu = kind in gpus.GPUS and "x" not in shape and num_slices == 1
  check(
    is_gpu or (kind in kinds and "x" in shape and num_slices >= 1),
    f"topology is {topology!r} with {num_slices} slices; expected"
    f" KIND:AxB or KIND:AxBxC with KIND one of {', '.join(kinds)}, such as"
    f" v5e:16x16 or v4:4x4x4, and 1 slice or more; or"
    f" {', '.join(gpus.GPUS)} with 1 to 8 GPUs, such as h200:1; or {HERE!r}.",
  )
  compiler, name = (
    (gpus.PLUGIN, "jax's CUDA plugin") if is_gpu else ("libtpu", "libtpu")
  )
  if importlib.util.find_spec(compiler) is None:
    raise ModuleNotFoundError(
      f"{name} is not installed, and it brings the compiler for {kind}",
      name=compiler,
    )
  _prepare()
  from jax.experimental import topologies

  if is_gpu:
    name, size = gpus.GPUS[kind], f"1x1x{shape}"
    options = {"platform": "cuda", "topology_name": name, "topology": size}
    options["target_config"] = gpus.description(name)
  else:
    options = {"platform": "tpu", "topology_name": topology}
    if num_slices > 1:
      options["num_slices"] = num_slices
    if kind == "v4":
      # One device per chip, as jax has it on such a machine.
      options["chip_config_name"] = "megacore"
  try:
    return list(topologies.get_topology_desc(**options).devices)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
    raise ValueError(
      f"topology {topology!r} cannot be had ({reason}); expected the shape of"
      " a slice that is built, such as v5e:4x8, v5p:4x4x4 or v6e:16x16."
    ) from None


def _prepare() -> None:
  """What the compilers read when they are loaded."""
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  flags = os.environ.get("LIBTPU_INIT_ARGS", "")
  if _STACKS not in flags:
    os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {_STACKS}=1048576".strip()
  if "JAX_PLATFORMS" not in os.environ:
    # With a plugin installed jax would look for its chip, and wait or fail.
    jax.config.update("jax_platforms", "cpu")
