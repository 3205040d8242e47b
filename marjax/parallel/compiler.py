"""What XLA's compiler is told, by platform.

On NVIDIA GPUs: no matrix products in Triton, because cuBLAS is as fast or
faster for all but the smallest, and the search for the best Triton kernel is
half of the compile time; of cuBLAS's algorithms the fastest is taken, without a
check of each against the others (for a GPU that is not there none is timed);
and products that share an operand stay apart, because merging copies their
other operands together and cuts up the result.
"""

import jax
from jax.sharding import Mesh


def compiler_options(mesh: Mesh) -> dict[str, bool | int] | None:
  """`compiler_options` of `jax.jit` and of `.lower(...).compile`."""
  device = mesh.devices.flat[0]
  if device.platform != "gpu":
    return None
  level = 2 if device in jax.devices() else 0
  return {
    # MAR-L at 512 sequences: 174 → 164 ms and half of the compile time; at
    # batch 8 the head's products lose, 1.55 → 1.69 s for a generation.
    "xla_gpu_enable_triton_gemm": False,
    # Without a search a generation is 8 % slower, 1.69 → 1.83 s.
    "xla_gpu_autotune_level": level,
    # Queries, keys and values apart spare a copy, 0.48 ms a block.
    "xla_gpu_dot_merger_threshold_mb": 0,
  }
