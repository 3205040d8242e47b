"""NVIDIA GPUs as XLA's compiler wants them described.

With such a description jax's CUDA plugin compiles without a GPU, driver or
CUDA toolkit. What is measured on the GPU itself is left out then: the fastest
algorithm of each matrix product is not sought. Kernels of our own are compiled
too, but their arithmetic is not counted.
"""

from marjax.parallel.chips import CHIPS

GPUS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
"""Name in a topology → `device_kind`."""

PLUGIN = "jax_cuda12_plugin"

# From the maker's data sheet and tuning guide for Hopper chips; the versions
# are those of the libraries that are compiled for.
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{kind}"
"""


def description(kind: str) -> str:
  """The text that the compiler takes for a `device_kind`."""
  chip = CHIPS[kind]
  return _DESCRIPTION.format(
    kind=kind,
    bandwidth=round(chip.memory_gbps * 1e9),
    memory=round(chip.memory),
  )
