"""Weights of a feature network: one .safetensors file, with what they are.

1. A file holds the network's parameters by their names, as float32, and one
   text, `network`: JSON of the network's name, its settings, and where the
   weights came from. The same weights make the same bytes.
2. Names, types and shapes are compared with the network's before a number is
   read; NaN and infinity are refused.
3. The SHA-256 of the file goes along with every score.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from marjax import outputs
from marjax.arrays import check_finite, named
from marjax.evaluate.networks.protocol import Network
from marjax.release import files
from marjax.schema import check

NOTE = "network"

AGAIN = (
  "expected a .safetensors file of a network's weights: copy or convert it"
  " again, whole."
)


def write(
  path: str | os.PathLike,
  network: Network,
  params: PyTree,
  origin: Mapping[str, Any],
  overwrite: bool = False,
) -> str:
  """Writes a network's weights; returns the SHA-256 of the file.

  Args:
    path: of the file to make. network: whose they are.
    params: of `network.shapes()`.
    origin: what made them, of texts and numbers: file, sha256, url, ...
    overwrite: replaces a file that is there.

  Raises:
    ValueError: other names or shapes than the network's, NaN, infinity.
    OSError: the file exists, or cannot be written.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  path = outputs.local(path)
  arrays = {n: np.asarray(a, np.float32) for n, a in named(params).items()}
  theirs = {name: _kind(array) for name, array in arrays.items()}
  _compare(theirs, network, "the parameters")
  check_finite(arrays, "the parameters")
  note = {"name": network.name, "settings": _settings(network)}
  note["origin"] = dict(origin)
  with outputs.replacing(path, overwrite) as temporary:
    try:
      save_file(
        {name: np.asarray(a, order="C") for name, a in arrays.items()},
        temporary,
        {NOTE: json.dumps(note, sort_keys=True)},
      )
    except SafetensorError as error:
      raise OSError(outputs.reason(error)) from None
    digest = files.sha256(temporary)
  return digest


def read(path: str | os.PathLike, network: Network) -> tuple[PyTree, str]:
  """A network's parameters, on the default device, and the file's SHA-256.

  Args:
    path: of a file that `write` made. network: whose weights it must hold.

  Raises:
    FileNotFoundError: there is no such file; says where weights come from.
    ValueError: weights of another network, damaged, NaN, infinity.
  """
  path = outputs.local(path)
  if not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist; expected the weights of {network.name}: get"
      f" {network.source}, and run {command(network, path)}."
    )
  files.check_regular(path)
  digest = files.sha256(path)
  with files.opened(path, AGAIN) as file:
    _check_note(path, _note(path, file.metadata()), network)
    entries = {name: file.get_slice(name) for name in file.offset_keys()}
    kinds = {
      name: f"{entry.get_dtype()} {tuple(entry.get_shape())}"
      for name, entry in entries.items()
    }
    _compare(kinds, network, str(path))
    arrays = {name: file.get_tensor(name) for name in kinds}
  check_finite(arrays, str(path))
  tree = network.shapes()
  leaves = [jnp.asarray(arrays[name]) for name in named(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves), digest


def note(path: str | os.PathLike) -> dict[str, Any]:
  """What a file says of its weights: "name", "settings" and "origin".

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no file of a network's weights.
  """
  path = outputs.local(path)
  if not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist; expected a file of a network's weights: check"
      " the path."
    )
  with files.opened(path, AGAIN) as file:
    return _note(path, file.metadata())


def command(network: Network, path: str | os.PathLike) -> str:
  """The command that makes a file of a network's weights."""
  return f"{network.command} {shlex.quote(str(path))}"


def _settings(network: Network) -> dict[str, Any]:
  is_plain = not dataclasses.is_dataclass(network)
  return {} if is_plain else dataclasses.asdict(network)


def _note(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
  try:
    content = json.loads((metadata or {}).get(NOTE, ""))
  except ValueError:
    content = None
  check(
    isinstance(content, dict) and {"name", "settings", "origin"} <= {*content},
    f"{path} does not say which network's weights it holds; expected a file"
    " that marjax made, as with marjax convert NETWORK FILE --out PATH: convert"
    " yours so.",
  )
  return content


def _check_note(path: Path, content: Mapping, network: Network) -> None:
  check(
    content["name"] == network.name,
    f"{path} holds weights of {content['name']!r}; expected those of"
    f" {network.name}: name that network, or its file.",
  )
  ours = json.loads(json.dumps(_settings(network)))
  check(
    content["settings"] == ours,
    f"{path} holds weights of {network.name} with {content['settings']};"
    f" expected {ours}: name its own file.",
  )


def _kind(array: Any) -> str:
  kind = f"F{8 * array.dtype.itemsize}"
  return f"{kind} {tuple(array.shape)}"


def _compare(theirs: Mapping[str, str], network: Network, where: str) -> None:
  ours = {name: _kind(leaf) for name, leaf in named(network.shapes()).items()}
  for name in sorted(ours.keys() | theirs.keys()):
    check(
      ours.get(name) == theirs.get(name),
      f"{where} has {name} {theirs.get(name, 'absent')}; expected"
      f" {ours.get(name, 'absent')}, as {network.name} has it: convert its"
      " weights again.",
    )
