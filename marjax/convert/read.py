"""Weight files → arrays by name, read one at a time, running nothing.

1. The first bytes say what a file is, whatever its name: a PyTorch file (a zip,
   or what PyTorch wrote before 1.6), or a safetensors file.
2. A PyTorch file is a pickle, and a pickle is a program. PyTorch's restricted
   reader is the only one used: it builds tensors, numbers, texts, containers,
   and refuses every other name before anything of it is run. One more name is
   allowed, the argparse.Namespace of training files, for which it builds an
   object of ours that holds nothing.
3. The set of weights is looked for where published files have it:

       model, model_ema     raw weights, and their moving average (MAR)
       model                one set (autoencoders)
       state_dict           one set (other training programs)
       names → tensors      one set, alone in the file

   A set that holds its own moving average, as training programs for
   autoencoders write it, is two: `encoder.conv_in.weight` is averaged in
   `model_ema.encoderconv_inweight`.
4. Arrays stay on disk (files are memory-mapped, but for PyTorch's old format)
   until `load` is called; it gives float32.
5. A zip archive has a checksum of each of its files, and all are compared.
   PyTorch's old format and other programs' safetensors files have none: what is
   cut off or contradicts itself is refused there, and so are NaN and infinity
   (see `table`), but a flipped bit in a number may pass.
"""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from marjax.release import files
from marjax.schema import check, printable

_ZIP = b"PK\x03\x04"
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""The first bytes of PyTorch's format before 1.6."""

_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")
_MAX_HEADER = 100_000_000  # bytes, the safetensors format's own limit

# Those of safetensors that numpy reads. bfloat16 comes with jax.
_NUMBERS = {"F64", "F32", "F16", "BF16", "BOOL"}
_NUMBERS |= {f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)}

_AVERAGE = "model_ema."


@dataclass(frozen=True)
class LazyArray:
  """An array in a file.

  Attributes:
    shape: known without reading the numbers.
    read: reads the numbers, in the file's type.
  """

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]

  def load(self) -> Float32[np.ndarray, "..."]:
    """Reads the array into memory of its own, as float32 of `shape`.

    What is too large for float32 is infinite.
    """
    with np.errstate(over="ignore"):
      return np.asarray(self.read(), np.float32, order="C")


@dataclass(frozen=True)
class WeightFile:
  """One set of weights.

  Attributes:
    arrays: name to array, in the file's order.
    weights: which set it is, "ema", "raw", or "only" if the file has one.
    metadata: the texts of a safetensors file; {} for PyTorch files.
    has_checksums: whether damage to any of its numbers would have been told.
  """

  arrays: Mapping[str, LazyArray]
  weights: str
  metadata: dict[str, str]
  has_checksums: bool


def read(path: str | Path, weights: str | None = None) -> WeightFile:
  """Opens a weight file; see the module's docstring.

  Args:
    path: a PyTorch or safetensors file; its name does not matter.
    weights: "ema" or "raw"; None is the moving average where there is one, and
      is needed for files with a single set.

  Raises:
    ValueError: the file is of another kind, damaged, would run code, or does
      not hold such weights.
    OSError: the file cannot be opened.
    ModuleNotFoundError: torch, or safetensors, is not installed.
  """
  path = Path(path)
  kind, to_lazy, metadata = _kind(path), _from_torch, {}
  if kind == "safetensors":
    sets, metadata = _open_safetensors(path)
    to_lazy = _from_safetensors
  else:
    sets = _open_torch(path, is_zip=kind == "zip")
  chosen = weights or ("ema" if "ema" in sets else next(iter(sets)))
  if chosen not in sets:
    raise ValueError(
      f"{path} has no {weights!r} weights, only one set; expected a file with"
      " both, or no choice: leave it out to take what is there."
    )
  for name in sets[chosen]:
    check(
      not isinstance(name, str) or printable(name) == name,
      f"{path} names an array {name!r}, with control characters; expected names"
      " that can be shown: take another copy.",
    )
  arrays = {n: to_lazy(path, n, value) for n, value in sets[chosen].items()}
  if not arrays:
    raise ValueError(
      f"{path} holds no tensors in its {chosen} weights; expected a whole"
      " weight file: download or save it again."
    )
  return WeightFile(arrays, chosen, metadata, kind == "zip")


def is_page(start: bytes) -> bool:
  """Whether a file that starts so is a web page."""
  text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
  return text.startswith(_PAGES)


def sha256(path: str | Path) -> str:
  """The file's SHA-256 in hexadecimal; OSError if it cannot be read."""
  with _opened(Path(path)) as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> BinaryIO:
  try:
    if not path.is_dir():
      files.check_regular(path)
    return path.open("rb")
  except OSError as error:
    reason = (error.strerror or str(error)).lower()
    raise type(error)(
      f"{path} cannot be read ({reason}); expected a weight file: check the"
      " path."
    ) from error


def _kind(path: Path) -> str:
  """Either of "zip", "legacy" and "safetensors"."""
  with _opened(path) as file:
    start = file.read(1024)
  if start.startswith(_ZIP):
    return "zip"
  if start.startswith(LEGACY):
    return "legacy"
  header = int.from_bytes(start[:8], "little")
  if start[8:9] == b"{" and header <= _MAX_HEADER:
    return "safetensors"
  if not start:
    found = "is empty"
  elif is_page(start):
    found = "is a web page (on Dropbox, dl=1 in the address gives the file)"
  elif start[:1] == b"\x80" and start[1:2] <= b"\x05":
    found = "is a plain pickle, which may run any program and is not opened"
  else:
    found = f"starts with {start[:8]!r}"
  raise ValueError(
    f"{path} {found}; expected a PyTorch or safetensors weight file: download"
    " or save it again."
  )


class _Forgotten:
  """Stands for argparse.Namespace: it has no attributes, and takes none.

  Whatever a file asks to be done with it ends here: it cannot be made with
  arguments, hold a value, or change its class.
  """

  __slots__ = ()

  def __setstate__(self, state: Any) -> None:
    pass


def _open_torch(path: Path, is_zip: bool) -> dict[str, Mapping]:
  import torch

  if is_zip:
    _check_zip(path)
  # torch takes another path for files of this name, whatever they are.
  is_mapped = is_zip and path.suffix != ".safetensors"
  allowed = [(_Forgotten, "argparse.Namespace")]
  try:
    with torch.serialization.safe_globals(allowed), _opened(path) as file:
      content = torch.load(
        path if is_mapped else file,
        map_location="cpu",
        weights_only=True,
        mmap=is_mapped,
      )
  except pickle.UnpicklingError as error:
    # Its message recommends to load the file unsafely: not passed on.
    raise ValueError(_refusal(path, str(error))) from None
  except Exception as error:
    raise _damaged(path, error) from error
  return _sets(path, content)


def _check_zip(path: Path) -> None:
  """Compares all checksums, which torch does not."""
  try:
    with zipfile.ZipFile(path) as file:
      entries = file.infolist()
      names = [entry.filename.partition("/")[2] for entry in entries]
      is_packed = any(entry.compress_type for entry in entries)
      is_ours = "data.pkl" in names and "constants.pkl" not in names
      changed = file.testzip() if is_ours and not is_packed else None
  except Exception as error:
    raise _damaged(path, error) from error
  if changed is not None:
    raise _damaged(path, ValueError(f"another checksum in {changed!r}"))
  if len({*names}) < len(names):
    raise _damaged(path, ValueError("two files of one name in it"))
  if "data.pkl" not in names:
    found = "a zip archive of something else"
  elif "constants.pkl" in names:
    found = "a TorchScript program"
  elif is_packed:
    found = "a file of torch.save that was packed again, with compression"
  else:
    return
  raise ValueError(
    f"{path} is {found}; expected weights as torch.save wrote them: choose"
    " another file, or save it again."
  )


def _refusal(path: Path, message: str) -> str:
  named = re.search(r"GLOBAL (\S+)", message)
  found = f"asks for {named[1]}" if named else "holds instructions"
  return (
    f"{path} {found}, which could run code, so it is refused and nothing of it"
    " was run; expected tensors, numbers and texts only: save its state dict"
    " alone, where you trust it."
  )


def _damaged(path: Path, error: Exception) -> ValueError:
  reason = str(error).strip().partition("\n")[0].rstrip(".")
  return ValueError(
    f"{path} is damaged or cut short ({reason or type(error).__name__});"
    " expected a whole weight file: download or save it again."
  )


def _sets(path: Path, content: Any) -> dict[str, Mapping]:
  """The sets of weights of a PyTorch file; "only" where there is one."""
  if not isinstance(content, dict):
    raise ValueError(
      f"{path} holds one {type(content).__name__}; expected a dict of tensors:"
      " save the model's state dict."
    )
  places = {"raw": "model", "ema": "model_ema", "only": "state_dict"}
  sets = {name: content.get(key) for name, key in places.items()}
  sets = {n: value for n, value in sets.items() if isinstance(value, dict)}
  if "ema" in sets:
    return {name: sets[name] for name in ("raw", "ema") if name in sets}
  return _averages(next(iter(sets.values()), content))


def _averages(arrays: dict) -> dict[str, Mapping]:
  """A set by itself, or the two that are in it."""
  plain = {
    name: value
    for name, value in arrays.items()
    if not (isinstance(name, str) and name.startswith(_AVERAGE))
  }
  averages = {
    name: arrays[_AVERAGE + name.replace(".", "")]
    for name in plain
    if isinstance(name, str) and _AVERAGE + name.replace(".", "") in arrays
  }
  return {"raw": plain, "ema": averages} if averages else {"only": arrays}


def _from_torch(path: Path, name: Any, value: Any) -> LazyArray:
  import torch

  found = f"a value of type {type(value).__name__}"
  if isinstance(value, torch.Tensor) and isinstance(name, str):
    is_plain = value.layout is torch.strided and value.device.type == "cpu"
    if is_plain and not (value.is_quantized or value.is_complex()):
      numbers = value.detach()
      return LazyArray(
        tuple(value.shape), lambda: numbers.to(torch.float32, copy=True).numpy()
      )
    found = "a sparse, quantized, complex or meta tensor"
  raise ValueError(
    f"{path} has {found} under {name!r}; expected one tensor of real numbers"
    " under each name, in the file itself or under 'model', 'model_ema' or"
    " 'state_dict': save a plain state dict."
  )


def _open_safetensors(path: Path) -> tuple[dict[str, Mapping], dict[str, str]]:
  from safetensors import safe_open

  try:
    file = safe_open(path, framework="numpy")
    names, metadata = file.keys(), file.metadata() or {}
  except Exception as error:
    raise _damaged(path, error) from error
  return {"only": dict.fromkeys(names, file)}, metadata


def _from_safetensors(path: Path, name: str, file: Any) -> LazyArray:
  entry = file.get_slice(name)
  if entry.get_dtype() not in _NUMBERS:
    raise ValueError(
      f"{path} has {entry.get_dtype()} numbers under {name!r}; expected float,"
      " integer or boolean ones: convert them before."
    )
  return LazyArray(tuple(entry.get_shape()), lambda: file.get_tensor(name))
