"""What feature networks are made of, on maps [B, H, W, C], with full products.

1. A layer's parameters are {"kernel": [height, width, in, out], "bias": [out]};
   batch norm was folded into them, in float64, when its file was converted.
2. Every product is of whole float32 numbers: reported scores must not hang on
   what a chip rounds by default.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32

Layer = Mapping[str, Any]
"""kernel and bias of a layer: arrays, or their shapes."""

HIGHEST = lax.Precision.HIGHEST


def conv_shapes(
  height: int, width: int, inputs: int, outputs: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a convolution's layer."""
  return {
    "kernel": float32(height, width, inputs, outputs),
    "bias": float32(outputs),
  }


def float32(*shape: int) -> jax.ShapeDtypeStruct:
  """An array of that shape, of float32."""
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(
  layer: Layer,
  x: Float32[Array, "B H W C"],
  stride: int = 1,
  padding: Any = "VALID",
) -> Float32[Array, "B rows columns D"]:
  """A convolution, depthwise where the kernel takes one of many channels.

  Args:
    layer: see the module's docstring. x: maps. stride: of both axes.
    padding: "VALID", "SAME" as TensorFlow pads, or (before, after) per axis.
  """
  kernel = layer["kernel"]
  if kernel.shape[:2] == (1, 1) and stride == 1:
    # cuBLAS is faster than cuDNN: 2 271 → 2 538 images of 256² in a second
    # through Inception, in float32 on an H200.
    return dense(kernel[0, 0], x) + layer["bias"]
  if kernel.shape[2] == 1 and kernel.shape[3] == x.shape[-1]:
    return _depthwise(kernel, x, stride, padding) + layer["bias"]
  convolved = lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1] // kernel.shape[2],
    precision=HIGHEST,
  )
  return convolved + layer["bias"]


def _depthwise(
  kernel: Float32[Array | np.ndarray, "height width 1 C"],
  x: Float32[Array, "B H W C"],
  stride: int,
  padding: Any,
) -> Float32[Array, "B rows columns C"]:
  """Each channel by itself: a sum of shifted maps, one for each cell.

  On CPUs, where XLA has no program of its own for it, that takes a
  seventh of the time for the whole of MobileNetV2.
  """
  size, strides = kernel.shape[:2], (stride, stride)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  rows, columns = (
    (length - cells) // stride * stride + 1
    for length, cells in zip(x.shape[1:3], size, strict=True)
  )
  return sum(
    x[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0]
    for i, j in np.ndindex(size)
  )


def max_pool(
  x: Float32[Array, "B H W C"], stride: int = 2, padding: int = 0
) -> Float32[Array, "B rows columns C"]:
  """The largest of each 3 × 3 cells; `padding` rings of cells never win."""
  return lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    (1, 3, 3, 1),
    (1, stride, stride, 1),
    ((0, 0), (padding, padding), (padding, padding), (0, 0)),
  )


def mean_pool(x: Float32[Array, "B H W C"]) -> Float32[Array, "B H W C"]:
  """The mean of each 3 × 3 cells, of those alone that are on the map.

  weights at a corner   · · ·     not   ninths of all, as if the border
                        · ¼ ¼           were black
                        · ¼ ¼
  """
  window, strides = (1, 3, 3, 1), (1, 1, 1, 1)
  total = lax.reduce_window(x, 0.0, lax.add, window, strides, "SAME")
  rows, columns = (_num_neighbours(size) for size in x.shape[1:3])
  count = rows[:, None] * columns[None]
  return total / count[None, :, :, None]


def mean_over_map(x: Float32[Array, "B H W C"]) -> Float32[Array, "B C"]:
  """One number a channel."""
  return jnp.mean(x, axis=(1, 2))


def dense(
  kernel: Float32[Array, "C D"], x: Float32[Array, "*B C"]
) -> Float32[Array, "*B D"]:
  """A product with a matrix, without a bias."""
  return jnp.matmul(x, kernel, precision=HIGHEST)


def _num_neighbours(size: int) -> np.ndarray:
  """How many of the three cells around each are on an axis of that size."""
  at = np.arange(size)
  return (3 - (at == 0) - (at == size - 1)).astype(np.float32)
