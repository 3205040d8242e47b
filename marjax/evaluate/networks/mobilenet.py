"""MobileNetV2 1.0 at 224²: a stand-in for the FID network.

1. Images are resized smoothly to 224², and scaled to -1 ... 1.
2. 53 convolutions in the order in which they run, 00 ... 52; between the first
   and the last two of them 17 blocks of three, the first block of two:

       widen 1 × 1, ReLU6 ─▶ depthwise 3 × 3, ReLU6 ─▶ narrow 1 × 1 (─▶ + input)

   Padding is TensorFlow's SAME: at stride 2 it lies below and on the right. The
   input is added where the block keeps its shape.
3. 51 makes 1280 channels, whose means over the map are the features; 52 makes
   the logits of 1000 classes after one of background.

A Fréchet distance of these features is no FID and never called so. Source:
arXiv 1801.04381.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from marjax import schema
from marjax.evaluate.networks import layers, resize
from marjax.evaluate.networks.protocol import Features, Named

SIZE = 224

# Of blocks that follow each other: widening, channels, blocks, first stride.
GROUPS = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)
STEM, TOP, NUM_LOGITS = 32, 1280, 1001


@schema.config
class MobileNet(Named):
  """Images of any size → 1280 features, 1001 logits; see the module."""

  name = "mobilenet"
  num_features = TOP
  num_logits = NUM_LOGITS
  source = (
    "MobileNetV2 1.0/224 of google-coral/test_data"
    " (tf2_mobilenet_v2_1.0_224_ptq.tflite, Apache-2.0), its arrays saved as"
    " .npz: NN_weight int8, NN_scale and NN_bias for NN = 00 ... 52"
  )

  def shapes(self) -> PyTree:
    """{"conv_NN": kernel and bias}, depthwise kernels [3, 3, 1, C]."""
    sizes = [(3, 3, 3, STEM)]
    width = STEM
    for widening, channels, _ in blocks():
      wide = width * widening
      sizes += [(1, 1, width, wide)] if widening > 1 else []
      sizes += [(3, 3, 1, wide), (1, 1, wide, channels)]
      width = channels
    sizes += [(1, 1, width, TOP), (1, 1, TOP, NUM_LOGITS)]
    return {
      f"conv_{i:02d}": layers.conv_shapes(*size) for i, size in enumerate(sizes)
    }

  def __call__(self, params: PyTree, images: resize.Pictures) -> Features:
    pixels = resize.smooth(resize.rgb(images), SIZE) / 127.5 - 1
    *_, pooled, logits = stages(params, pixels)
    return Features(pooled, logits=logits)


def blocks() -> list[tuple[int, int, int]]:
  """Widening, channels and stride of each of the 17 blocks."""
  return [
    (widening, channels, stride if i == 0 else 1)
    for widening, channels, count, stride in GROUPS
    for i in range(count)
  ]


def stages(
  params: PyTree, pixels: Float32[Array, "B H W 3"]
) -> list[Float32[Array, "B ..."]]:
  """What comes out of the stem, of each block, of the top; features, logits."""
  rest = iter(params[name] for name in sorted(params))

  def relu6(x: Any) -> Any:
    return jnp.clip(x, 0, 6)

  x = relu6(layers.conv(next(rest), pixels, 2, "SAME"))
  outputs = [x]
  for widening, _, stride in blocks():
    h = relu6(layers.conv(next(rest), x)) if widening > 1 else x
    h = relu6(layers.conv(next(rest), h, stride, "SAME"))
    h = layers.conv(next(rest), h)
    x = x + h if x.shape == h.shape else h
    outputs.append(x)
  x = relu6(layers.conv(next(rest), x))
  pooled, last = layers.mean_over_map(x), next(rest)
  logits = layers.dense(last["kernel"][0, 0], pooled) + last["bias"]
  return [*outputs, x, pooled, logits]
