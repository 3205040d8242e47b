"""Names and addresses → files and folders on this machine.

1. `find` is what `marjax.load` looks a name up with: a path as it is; a
   published name in the folder of models, fetched and converted first if it is
   not there, and with it the autoencoder beside it.
2. `fetched` is what `marjax convert` looks a source up with: a published name
   or an address is downloaded to the folder of downloads, a path left alone.

    ~/.cache/marjax/models/NAME        or below $MARJAX_MODELS
    ~/.cache/marjax/downloads/FILE     or below $MARJAX_DOWNLOADS
"""

import dataclasses
import hashlib
import importlib.util
import os
import urllib.parse
from pathlib import Path

from marjax import outputs
from marjax.convert import download, hub, published, run
from marjax.convert.published import PUBLISHED, Published
from marjax.release import directory
from marjax.release.card import MANIFEST
from marjax.schema import check

AUTOENCODER = "kl16"


def models_dir() -> Path:
  """Where converted published models lie."""
  return _folder("MARJAX_MODELS", "models")


def downloads_dir() -> Path:
  """Where downloaded files lie; they are not needed after conversion."""
  return _folder("MARJAX_DOWNLOADS", "downloads")


def is_name(source: str | os.PathLike) -> bool:
  """Whether it is a published name and no path that exists."""
  return str(source) in PUBLISHED and not outputs.path_of(source).exists()


def find(name_or_dir: str | os.PathLike) -> outputs.AnyPath:
  """The path to load from; a published name is fetched on first use.

  Raises:
    ValueError: neither a path that exists nor a published name.
    ModuleNotFoundError: what reads published files is not installed.
  """
  if hub.is_address(name_or_dir):
    return hub.fetched(name_or_dir)
  path = outputs.path_of(name_or_dir)
  if outputs.is_remote(path) or path.exists():
    return path
  if len(path.parts) > 1 or path.suffix:
    raise FileNotFoundError(
      f"{path} does not exist; expected a released checkpoint, a work"
      f" directory, or one of the names {', '.join(PUBLISHED)}."
    )
  if str(name_or_dir) not in PUBLISHED:  # perhaps converted as NAME-raw
    if (models_dir() / path).exists():
      return models_dir() / path
    published.find(str(name_or_dir))
  for name in dict.fromkeys((AUTOENCODER, str(name_or_dir))):
    _provide(PUBLISHED[name])
  return models_dir() / str(name_or_dir)


def _provide(row: Published) -> None:
  """Fetches and converts a published file, unless that was done before."""
  folder = models_dir() / row.name
  if folder.exists():
    return
  try:
    print(_convert_published(row, folder, run.Choices(), progress=True))
  except OSError:
    # Another process may have been quicker.
    if not (folder / MANIFEST).exists():
      raise


def convert(
  source: str | os.PathLike,
  out: str | os.PathLike | None = None,
  choices: run.Choices | None = None,
  progress: bool = True,
) -> run.Report:
  """`run.convert`, for names and addresses too.

  Args:
    source: a published name, an http(s) address, or a path.
    out: the release's folder; None, for a name, is its place among the models.
    choices: what the file does not say. progress: show bars.

  Raises:
    ValueError, OSError: see `run.convert`, `download.fetch`.
  """
  choices = choices or run.Choices()
  row = PUBLISHED[str(source)] if is_name(source) else None
  if row is not None and out is None:
    suffix = "-raw" if choices.weights == "raw" else ""
    out = models_dir() / f"{row.name}{suffix}"
  check(out is not None, f"{source} is no published name; say where with out.")
  directory.check_free(outputs.local(out).absolute())
  if choices.autoencoder is not None and is_name(choices.autoencoder):
    name = str(choices.autoencoder)
    there = models_dir() / name
    path = there if there.exists() else fetched(name, progress)[0]
    choices = dataclasses.replace(choices, autoencoder=path)
  if row is not None:
    return _convert_published(row, out, choices, progress)
  path, url = fetched(source, progress)
  return run.convert(path, out, choices, url=url, progress=progress)


def _convert_published(
  row: Published, out: str | os.PathLike, choices: run.Choices, progress: bool
) -> run.Report:
  choices = dataclasses.replace(
    choices,
    name=choices.name or row.name,
    licence=choices.licence or row.licence,
  )
  path, url = _fetch_published(row, progress)
  return run.convert(path, out, choices, url=url, progress=progress)


def fetched(
  source: str | os.PathLike, progress: bool = True
) -> tuple[Path, str]:
  """The file of a source, and the address it was fetched from, if it was.

  Raises:
    FileNotFoundError: neither a path that exists, nor a name, nor an address.
    OSError: see `download.fetch`; also a file of quite another size.
  """
  if is_name(source):
    return _fetch_published(PUBLISHED[str(source)], progress)
  if str(source).startswith(("http://", "https://")):
    parts = urllib.parse.urlsplit(str(source))
    name = Path(parts.path).name or "weights"
    digest = hashlib.sha256(str(source).encode()).hexdigest()[:12]
    path = downloads_dir() / f"{digest}-{name}"
    # The record is handed on: no passwords, no signed tokens.
    public = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")
    path = download.fetch(str(source), path, progress=progress)
    return path, urllib.parse.urlunsplit(public)
  path = outputs.local(source)
  if not path.exists():
    raise FileNotFoundError(
      f"{source} does not exist; expected a file, a work directory, an http"
      f" address, or one of the names {', '.join(PUBLISHED)}."
    )
  return path, ""


def _fetch_published(row: Published, progress: bool) -> tuple[Path, str]:
  needed = ("torch", "requests")
  missing = [name for name in needed if not importlib.util.find_spec(name)]
  if missing:  # told before gigabytes are fetched
    raise ModuleNotFoundError(
      f"{' and '.join(missing)} cannot be imported, and published files are"
      ' fetched and read with it: pip install "marjax[convert]".'
    )
  place = downloads_dir() / row.file_name
  path = download.fetch(row.url, place, progress=progress)
  size = path.stat().st_size
  if abs(size / row.approximate_bytes - 1) > 0.1:
    raise OSError(
      f"{path} has {size:,} bytes; {row.name} has about"
      f" {row.approximate_bytes:,}: delete it and fetch it again, or convert a"
      " file that you have."
    )
  return path, row.url


def _folder(variable: str, name: str) -> Path:
  chosen = os.environ.get(variable, "") or f"~/.cache/marjax/{name}"
  return outputs.local(chosen)
