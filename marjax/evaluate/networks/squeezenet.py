"""SqueezeNet 1.1 at 227²: a stand-in for the FID network, from PyPI.

1. Images are resized smoothly to 227², turned to BGR, and the mean colour of
   ImageNet is subtracted.
2. A convolution of stride 2 and eight fires, with pools that halve the map
   before fires 2, 4 and 6; nothing is padded but the wide half of a fire:

       x ─ 1 × 1, ReLU ─┬─ 1 × 1, ReLU ─┬─▶
                        └─ 3 × 3, ReLU ─┘

3. The features are the 512 means over the map after fire 9; a last 1 × 1
   convolution with ReLU, and its means, are the logits of 1000 classes.

A Fréchet distance of these features is no FID and never called so. Source:
arXiv 1602.07360, with the second version's fewer channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from marjax import schema
from marjax.evaluate.networks import layers, resize
from marjax.evaluate.networks.protocol import Features, Named

SIZE, NUM_FEATURES, NUM_LOGITS = 227, 512, 1000

MEAN_BGR = (103.939, 116.779, 123.68)  # of 0 to 255

# Number of a fire: channels between, and of each half.
FIRES = {
  2: (16, 64),
  3: (16, 64),
  4: (32, 128),
  5: (32, 128),
  6: (48, 192),
  7: (48, 192),
  8: (64, 256),
  9: (64, 256),
}
AFTER_A_POOL = (2, 4, 6)


@schema.config
class SqueezeNet(Named):
  """Images of any size → 512 features, 1000 logits; see the module."""

  name = "squeezenet"
  num_features = NUM_FEATURES
  num_logits = NUM_LOGITS
  source = (
    "ndf/example_models/weights/squeezenet_weights.pkl in the source of the"
    " package ndf 0.1.4, or torchvision's squeezenet1_1 (.pth)"
  )

  def shapes(self) -> PyTree:
    """{"conv1": kernel and bias, "fire2/squeeze1x1": ..., "conv10": ...}."""
    width = 64
    shapes = {"conv1": layers.conv_shapes(3, 3, 3, width)}
    for number, (narrow, half) in FIRES.items():
      shapes[f"fire{number}"] = {
        "squeeze1x1": layers.conv_shapes(1, 1, width, narrow),
        "expand1x1": layers.conv_shapes(1, 1, narrow, half),
        "expand3x3": layers.conv_shapes(3, 3, narrow, half),
      }
      width = 2 * half
    return shapes | {"conv10": layers.conv_shapes(1, 1, width, NUM_LOGITS)}

  def __call__(self, params: PyTree, images: resize.Pictures) -> Features:
    resized = resize.smooth(resize.rgb(images), SIZE)
    maps = stages(params, resized[..., ::-1] - jnp.float32(MEAN_BGR))
    return Features(maps["pooled"], logits=maps["logits"])


def stages(
  params: PyTree, pixels: Float32[Array, "B H W 3"]
) -> dict[str, Float32[Array, "B ..."]]:
  """The maps after the first layer and each fire, "pooled" and "logits"."""
  maps = {"conv1": _conv(params["conv1"], pixels, 2, "VALID")}
  x = maps["conv1"]
  for number in FIRES:
    x = layers.max_pool(x) if number in AFTER_A_POOL else x
    fire = params[f"fire{number}"]
    x = _conv(fire["squeeze1x1"], x)
    halves = [_conv(fire[name], x) for name in ("expand1x1", "expand3x3")]
    maps[f"fire{number}"] = x = jnp.concatenate(halves, axis=-1)
  maps["pooled"] = layers.mean_over_map(x)
  maps["logits"] = layers.mean_over_map(_conv(params["conv10"], x))
  return maps


def _conv(
  layer: layers.Layer,
  x: Float32[Array, "B H W C"],
  stride: int = 1,
  padding: str = "SAME",
) -> Float32[Array, "B rows columns D"]:
  return jax.nn.relu(layers.conv(layer, x, stride, padding))
