"""Kernels for NVIDIA GPUs, in Pallas; `marjax.layers` has the plain code."""
