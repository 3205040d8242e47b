"""Files of numpy arrays → arrays by name, running nothing.

1. `.npz`, a zip archive of arrays, is read without pickles; the archive's
   checksums are compared.
2. A pickle is a program. The reader here allows the names that an array of
   numbers is made of, and refuses every other before anything of it is run:

       numpy[._]core.multiarray._reconstruct, scalar    an empty array, a number
       numpy[._]core.numeric._frombuffer                an array of given bytes
       numpy.ndarray, numpy.dtype                       their types
       _codecs.encode                                   bytes in old pickles,
                                                        of latin1 text only

3. What comes out is nested dicts and lists of arrays. Their names are joined
   with dots, the places in a list counted: {"fire2/squeeze1x1": [w, b]} is
   `fire2/squeeze1x1.0` and `.1`; None is left out.
"""

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from marjax.convert.read import is_page
from marjax.release import files
from marjax.schema import check, printable

MAX_BYTES = 2 * 2**30
"""Of a pickle, all of which is read at once."""

_DEPTH = 16  # of nested containers

# numpy 2 has another name for `core`.
_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype")} | {
  (f"numpy.{core}.{module}", name)
  for core in ("core", "_core")
  for module, name in (
    ("multiarray", "_reconstruct"),
    ("multiarray", "scalar"),
    ("numeric", "_frombuffer"),
  )
}


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
  """The arrays of an .npz file by their names.

  Raises:
    ValueError: no such archive, damaged, or an array of objects.
    OSError: the file cannot be opened.
  """
  path = Path(path)
  files.check_regular(path)
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
    raise _unreadable(path, error) from None


def read_pickle(path: str | Path) -> dict[str, np.ndarray]:
  """The arrays of a pickle by their joined names.

  Raises:
    ValueError: another name than those of arrays, damaged, too large, or
      something else than dicts and lists of arrays of numbers.
    OSError: the file cannot be opened.
  """
  path = Path(path)
  size = files.check_regular(path)
  check(
    size <= MAX_BYTES,
    f"{path} has {size:,} bytes; expected a pickle of {MAX_BYTES:,} at most:"
    " name the file of weights.",
  )
  content = path.read_bytes()
  check(
    not is_page(content[:1024]),
    f"{path} is a web page (on Dropbox, dl=1 in the address gives the file);"
    " expected a pickle of arrays: download it again.",
  )
  return unpickled(content, path)


def unpickled(content: bytes, path: str | Path) -> dict[str, np.ndarray]:
  """The arrays of a pickle's bytes, as `read_pickle`; its path for messages."""
  path = Path(path)
  try:
    tree = _Arrays(io.BytesIO(content), encoding="latin1").load()
    arrays = dict(_flat(tree, "", 0))
  except _Refused as refusal:
    raise ValueError(
      f"{path} {refusal}, so it is refused and nothing of it was run; expected"
      " dicts and lists of arrays of numbers only: save those alone, where you"
      " trust it."
    ) from None
  except Exception as error:
    raise _unreadable(path, error) from None
  check(
    bool(arrays),
    f"{path} holds no arrays; expected those of a network: download it again.",
  )
  return arrays


class _Refused(Exception):
  """Says what a pickle asks for that is no array."""


class _Arrays(pickle.Unpickler):
  """Builds arrays, numbers, texts and containers."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("_codecs", "encode"):
      return _latin1
    if (module, name) not in _ALLOWED:
      what = printable(f"{module}.{name}")[:200]
      raise _Refused(f"asks for {what}, which could run code")
    # Of the old name numpy warns.
    return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
  """Bytes that a pickle of protocol 2 has as a text."""
  if encoding != "latin1":
    raise _Refused(f"asks for the encoding {printable(str(encoding))[:200]}")
  return text.encode("latin1")


def _flat(tree: Any, name: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
  """Every array below, by its name."""
  if depth > _DEPTH:
    raise _Refused(f"nests more than {_DEPTH} deep")
  if tree is None:
    return
  if isinstance(tree, np.ndarray) and tree.dtype.kind in "fiub":
    yield name, tree
    return
  if isinstance(tree, dict):
    entries = tree.items()
  elif isinstance(tree, list | tuple):
    entries = enumerate(tree)
  else:
    kind = f"objects of {tree.dtype}" if hasattr(tree, "dtype") else ""
    raise _Refused(f"holds {kind or type(tree).__name__} under {name!r}")
  for key, value in entries:
    if not isinstance(key, str | int) or printable(str(key)) != str(key):
      raise _Refused(f"has the key {key!r}")
    yield from _flat(value, f"{name}.{key}" if name else str(key), depth + 1)


def _unreadable(path: Path, error: Exception) -> ValueError:
  reason = (str(error).splitlines() or [""])[0].rstrip(".")
  return ValueError(
    f"{path} is damaged, or holds more than arrays"
    f" ({printable(reason) or type(error).__name__}); expected a whole file of"
    " arrays: download or save it again."
  )
