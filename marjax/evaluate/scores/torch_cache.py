"""Statistics as torch-fidelity caches them: a PyTorch file of two arrays.

1. The file is a zip archive with a pickle, `archive/data.pkl`, of the mapping
   {"mu": array, "sigma": array}; its arrays are numpy's, inside the pickle.
2. It is read by the reader of arrays, which runs nothing, and written without
   PyTorch.
3. torch-fidelity takes it for the images named NAME if it is called
   NAME-inception-v3-compat-features-2048-stat-fid-2048.pt and stands in its
   cache folder.
"""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np

from marjax.convert import numpy_files

FOLDER = "archive"
PICKLE = "data.pkl"


def is_one(names: list[str]) -> bool:
  """Whether an archive of files with these names is a PyTorch file."""
  return any(name.rpartition("/")[2] == PICKLE for name in names)


def read(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a file by their names.

  Raises:
    ValueError: it holds more than arrays.
  """
  with zipfile.ZipFile(path) as archive:
    name = next(name for name in archive.namelist() if is_one([name]))
    return numpy_files.unpickled(archive.read(name), path)


def written(mean: np.ndarray, covariance: np.ndarray) -> bytes:
  """The content of a file of a mean and a covariance."""
  arrays = {"mu": mean, "sigma": covariance}
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as archive:
    for name, part in (
      (PICKLE, pickle.dumps(arrays, protocol=2)),
      ("byteorder", b"little"),
      ("version", b"3\n"),
    ):
      # A date of its own would make other bytes of the same numbers.
      entry = zipfile.ZipInfo(f"{FOLDER}/{name}")
      archive.writestr(entry, part)
  return content.getvalue()
