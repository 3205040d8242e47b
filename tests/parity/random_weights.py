"""Weights that nobody published, in the names of those that somebody did.

They are drawn so that the numbers of every layer stay of order one, and so that
no two layers, channels or batch norms are alike.
"""

import numpy as np

from marjax.evaluate.networks import inception


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
