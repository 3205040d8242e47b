"""What a path is, told by the names in it: never one kind taken for another.

    release.json, weights-*             a released checkpoint
    config.json, checkpoints/           a work directory of a training run
    index.json, settings.json           a cache of latents
    anything else                       a folder of something else

Half of a kind is named as that. A folder that is two at once, as when a run was
started inside a release, is neither: nobody knows which weights are meant.
"""

import os
import shlex
from pathlib import Path

from marjax.release.files import special

NOTHING = "not there"
FILE = "a file"
EMPTY = "an empty folder"
FOLDER = "a folder of something else"
RELEASE = "a released checkpoint"
HALF_RELEASE = "a half-written release, with weights but no release.json"
WORKDIR = "a work directory"
HALF_WORKDIR = "half a work directory, with checkpoints but no config.json"
CACHE = "a cache of latents"
HALF_CACHE = "a half-written cache of latents"
DIFFUSERS = "a folder of diffusers"

CURES = {
  FILE: "make a release of it with marjax convert {path} --out FOLDER",
  HALF_RELEASE: "copy the release again, whole, or convert again",
  HALF_WORKDIR: "restore its config.json",
  CACHE: "the autoencoder that made it is the folder autoencoder in it",
  HALF_CACHE: "finish it with the marjax cache-latents command that began it",
  DIFFUSERS: "make a release of a file of weights in it with marjax convert",
}


def kind_of(path: str | os.PathLike) -> str:
  """One of the kinds above, or several at once, or what no kind is.

  Raises:
    OSError: it cannot be looked at.
  """
  path = Path(path)
  if not path.exists():
    return NOTHING
  if not path.is_dir():
    return special(path) or FILE
  kinds = _kinds(path)
  if len(kinds) > 1:
    return f"{' and '.join(kinds)} at once"
  if kinds:
    return kinds[0]
  has_names = any(name[:1] != "." for name in os.listdir(path))
  return FOLDER if has_names else EMPTY


def _kinds(path: Path) -> list[str]:
  names = {name for name in os.listdir(path) if name[:1] != "."}
  if "model_index.json" in names or any(
    name.startswith("diffusion_pytorch_model.") for name in names
  ):
    return [DIFFUSERS]
  has_latents = any(name.startswith("latents-") for name in names)
  has_weights = any(name.startswith("weights-") for name in names)
  begun = {"settings.json", "autoencoder"}
  kinds = []
  if "release.json" in names:
    kinds.append(RELEASE)
  elif has_weights and "config.json" not in names:
    kinds.append(HALF_RELEASE)
  if "config.json" in names:
    kinds.append(WORKDIR)
  elif (path / "checkpoints").is_dir():
    kinds.append(HALF_WORKDIR)
  if {"index.json", "settings.json"} <= names:
    kinds.append(CACHE)
  elif has_latents or ("settings.json" in names and names <= begun):
    kinds.append(HALF_CACHE)
  return kinds


def check_kind(path: str | os.PathLike, *wanted: str) -> str:
  """The kind of a path; refuses another kind than those wanted.

  Raises:
    FileNotFoundError: it is not there, or half of something.
    ValueError: it is of another kind.
  """
  kind = kind_of(path)
  if kind in wanted:
    return kind
  is_absent = kind in (NOTHING, EMPTY, FOLDER) or "half" in kind
  cure = CURES.get(kind, "name one")
  if kind.endswith("at once"):
    cure = "nobody knows which is meant: move one of them elsewhere"
  raise (FileNotFoundError if is_absent else ValueError)(
    f"{path} is {kind}; expected {' or '.join(wanted)}:"
    f" {cure.replace('{path}', shlex.quote(str(path)))}."
  )
