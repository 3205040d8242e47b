"""One number for a set of weights, however they are stored.

sha256 over all parameters, sorted by path; of each a line `path dtype shape`,
then its bytes in row-major order, little-endian. Two autoencoders with the same
digest make the same latents.
"""

import hashlib

import jax
import numpy as np
from jaxtyping import PyTree

from marjax.arrays import named
from marjax.parallel.hosts import fetch


def digest(params: PyTree) -> str:
  """The sha256 of nested dicts of arrays, 64 hexadecimal digits.

  Where several processes share arrays, all of them must call it.
  """
  found = hashlib.sha256()
  for name, leaf in sorted(named(params).items()):
    array = fetch(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
    shape = ",".join(map(str, array.shape))
    found.update(f"{name} {array.dtype.name} {shape}\n".encode())
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    found.update(np.ascontiguousarray(little).tobytes())
  return found.hexdigest()
