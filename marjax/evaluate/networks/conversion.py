"""A file or an address → a file of a feature network's weights.

    address ─fetch▶ file ─read▶ arrays ─layouts▶ parameters ─write▶ .safetensors

1. An address is fetched as `marjax convert` fetches others.
2. The first bytes say what a file is, whatever its name: a PyTorch or
   safetensors file, an .npz archive, or a pickle of arrays, which is read with
   a reader that runs nothing.
3. The SHA-256 of the file is compared with the one that is asked for, and goes
   into the result with the file's name and address.
"""

import functools
import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from marjax import outputs
from marjax.arrays import named
from marjax.convert import fetching, numpy_files, read
from marjax.evaluate.networks import kinds, layouts, weights
from marjax.evaluate.networks.layouts import LAYOUTS
from marjax.schema import check, printable


@dataclass(frozen=True)
class Report:
  """What was converted.

  Attributes:
    network, program: whose weights, and who named them so.
    source, sha256, url: the file, its hash, its address if it was fetched.
    path, new_sha256: the file that was made.
    num_arrays, num_parameters: in the source and in the result.
    seconds: reading to renaming.
  """

  network: str
  program: str
  source: Path
  sha256: str
  url: str
  path: Path
  new_sha256: str
  num_arrays: int
  num_parameters: int
  seconds: float

  def __str__(self) -> str:
    lines = [
      f"converted    {self.network}, in the names of {self.program}",
      f"parameters   {self.num_parameters:,} of {self.num_arrays} arrays, each"
      " placed exactly once",
      f"source       {self.url or self.source}",
      f"sha256       {self.sha256}",
      f"written      {self.path}, in {self.seconds:.1f} s",
      f"sha256       {self.new_sha256}",
    ]
    return "\n".join(lines)


def is_name(source: str | os.PathLike) -> bool:
  """Whether it names a network that has published weights."""
  return str(source) in LAYOUTS


def convert(
  name: str,
  source: str | os.PathLike | None,
  out: str | os.PathLike | None,
  sha256: str | None = None,
  progress: bool = True,
) -> Report:
  """Makes a file of a network's weights.

  Args:
    name: of the network. source: a path or an http(s) address.
    out: the .safetensors file to make, which must not exist.
    sha256: that the source must have, in hexadecimal; None asks for none.
    progress: show bars.

  Raises:
    FileExistsError: `out` exists. OSError: something cannot be read or written.
    ValueError: no such network, no source, another hash, another network's
      weights, a damaged file, NaN. ConversionError: see `layouts.params_of`.
  """
  start = time.perf_counter()
  network = kinds.network(name)
  path = outputs.local(f"{name}.safetensors" if out is None else out)
  check(
    source is not None,
    f"{name} is a network whose weights are not part of marjax; expected a file"
    f" of them or its address: get {network.source}, and run"
    f" {weights.command(network, path)}.",
  )
  check(
    not fetching.is_name(source),
    f"{source} is a published model; expected a file of weights of {name}, or"
    f" its address: get {network.source}.",
  )
  outputs.check_free([path])
  file, url = fetching.fetched(source, progress)
  digest = read.sha256(file)
  check(
    sha256 is None or digest == sha256.strip().lower(),
    f"{file} has the sha256 {digest}; expected {sha256}: download it again, or"
    " ask its publisher.",
  )
  params, program, num_arrays = read_params(network, file, progress)
  origin = {"file": printable(file.name), "sha256": digest, "url": url}
  origin["program"] = program
  new = weights.write(path, network, params, origin)
  count = sum(array.size for array in named(params).values())
  seconds = time.perf_counter() - start
  return Report(
    name, program, file, digest, url, path, new, num_arrays, count, seconds
  )


def read_params(
  network: Any, file: Path, progress: bool = False
) -> tuple[PyTree, str, int]:
  """Parameters of a published file, who named them so, and how many arrays.

  Raises: see `convert`.
  """
  from tqdm import tqdm

  arrays = _arrays(file)
  bar = functools.partial(
    tqdm, desc="converting", unit="array", disable=not progress
  )
  program = layouts.layout_of(network, arrays).program
  return layouts.params_of(network, arrays, bar), program, len(arrays)


def _arrays(file: Path) -> Mapping[str, Any]:
  """Name → array, of a file of any kind that is read."""
  with file.open("rb") as opened:
    start = opened.read(16)
  if start.startswith(b"PK\x03\x04") and _is_npz(file):
    return numpy_files.read_npz(file)
  # PyTorch's old format is a pickle as well, of a number.
  is_pickle = start[:1] == b"\x80" and not start.startswith(read.LEGACY)
  if is_pickle:
    return numpy_files.read_pickle(file)
  return read.read(file).arrays


def _is_npz(file: Path) -> bool:
  try:
    with zipfile.ZipFile(file) as archive:
      names = archive.namelist()
  except zipfile.BadZipFile:
    return False
  return bool(names) and all(name.endswith(".npy") for name in names)
