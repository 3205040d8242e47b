"""Releases on the Hugging Face Hub, by `huggingface_hub`.

    hf://USER/NAME[@REVISION]     a branch, a tag or a commit; main if left out

1. `fetched` brings the files of a release into the Hub's own cache; what is
   there and has not changed is not fetched again. Without a network what was
   fetched before is taken.
2. `push` makes one commit of a release, its page and a picture. Files of a
   release that was there before are in the repository's history.

The token is the one that `hf auth login` keeps, or $HF_TOKEN.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from marjax import outputs
from marjax.release import directory, loading, model_card
from marjax.release.card import MANIFEST
from marjax.schema import check

SCHEME = "hf://"
FILES = (MANIFEST, "*.safetensors")
PICTURE, REPORT = "samples.png", "report.json"


class Address(NamedTuple):
  """A repository of the Hub; revision None is its main branch."""

  repo: str
  revision: str | None = None

  def __str__(self) -> str:
    at = f"@{self.revision}" if self.revision else ""
    return f"{SCHEME}{self.repo}{at}"


def is_address(name: Any) -> bool:
  """Whether a name is one of the Hub."""
  return str(name).startswith(SCHEME)


def parse(name: str | os.PathLike) -> Address:
  """USER/NAME[@REVISION], with hf:// before it or not.

  Raises:
    ValueError: it is none.
  """
  text = str(name).removeprefix(SCHEME)
  repo, at, revision = text.partition("@")
  parts = repo.split("/")
  check(
    len(parts) == 2 and all(parts) and bool(revision) == bool(at),
    f"{name} is no name of the Hub; expected {SCHEME}USER/NAME, perhaps with"
    " @REVISION after it.",
  )
  return Address(repo, revision or None)


def fetched(name: str | os.PathLike) -> Path:
  """The folder of a release of the Hub, fetched if it is not there.

  Raises:
    ValueError: no such name. FileNotFoundError: no such repository or revision,
      or no release in it. OSError: the Hub cannot be reached.
    ModuleNotFoundError: huggingface_hub is not installed.
  """
  address = parse(name)
  hub = _library()
  with _explained(address):
    folder = hub.snapshot_download(
      address.repo, revision=address.revision, allow_patterns=list(FILES)
    )
  if not (Path(folder) / MANIFEST).exists():
    raise FileNotFoundError(
      f"{address} has no {MANIFEST}; expected a release that marjax push made."
    )
  return Path(folder)


def push(
  checkpoint: str | os.PathLike,
  name: str,
  *,
  is_private: bool = False,
  picture: str | os.PathLike | None = None,
  report: str | os.PathLike | None = None,
) -> str:
  """Shares a release or a work directory; returns the page's address.

  Args:
    checkpoint: what `marjax.load` takes. name: USER/NAME[@BRANCH].
    is_private: whether a new repository is for its owner alone.
    picture: a PNG for the page; None for samples.png of the checkpoint, or the
      last samples of its training, if there are any.
    report: JSON of `marjax evaluate`; None for that of the checkpoint.

  Raises:
    ValueError, OSError: see `marjax.load`; a picture or report that is none; or
      the Hub refused.
  """
  address, hub = parse(name), _library()
  source = outputs.absolute(checkpoint)
  picture = _named(picture, "picture") or _picture(source)
  report = _named(report, "report") or _present(source / REPORT)
  scores = _scores(report) if report else {}
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "release"
    manifest = loading.export(source, out)
    if picture:
      shutil.copyfile(picture, out / PICTURE)
    page = model_card.text(
      manifest, str(address), scores, PICTURE if picture else ""
    )
    (out / "README.md").write_text(page, encoding="utf-8")
    directory.verify(out, manifest)
    api = hub.HfApi()
    with _explained(address):
      url = api.create_repo(address.repo, private=is_private, exist_ok=True)
      if address.revision:
        api.create_branch(address.repo, branch=address.revision, exist_ok=True)
      api.upload_folder(
        repo_id=address.repo,
        folder_path=out,
        revision=address.revision,
        commit_message=f"{manifest.card.name}, by marjax",
        # Shards of a release that was there and had more of them.
        delete_patterns="*.safetensors",
      )
  return str(url)


def _named(path: str | os.PathLike | None, what: str) -> Path | None:
  """A file that was asked for, which must be there."""
  if path is None:
    return None
  found = outputs.local(path)
  if not found.is_file():
    raise FileNotFoundError(f"the {what} {path} does not exist; name a file.")
  return found


def _present(path) -> Path | None:
  return path if path.is_file() else None


def _picture(source) -> Path | None:
  """The samples that lie in a checkpoint, the last ones of several."""
  drawn = sorted((source / "samples").glob("*.png"))
  return _present(source / PICTURE) or (drawn[-1] if drawn else None)


def _scores(path: Path) -> dict[str, Any]:
  try:
    scores = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, OSError):
    scores = None
  check(
    isinstance(scores, dict),
    f"the report {path} is no JSON object; expected the report.json that marjax"
    " evaluate wrote.",
  )
  return scores


def _library():
  if not importlib.util.find_spec("huggingface_hub"):
    raise ModuleNotFoundError(
      "huggingface_hub is not installed, and names of the Hub need it:"
      ' pip install "marjax[hub]".'
    )
  import huggingface_hub

  return huggingface_hub


@contextlib.contextmanager
def _explained(address: Address) -> Iterator[None]:
  """One sentence of what the Hub says."""
  from huggingface_hub import errors

  try:
    yield
  except errors.HFValidationError as error:
    raise ValueError(
      f"{address} is no name of the Hub ({outputs.reason(error)}); expected"
      f" {SCHEME}USER/NAME."
    ) from error
  except errors.RevisionNotFoundError as error:
    raise FileNotFoundError(
      f"{address.repo} has no revision {address.revision}; expected a branch, a"
      " tag or a commit of it."
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
      f"{address} is not on the Hub, or is private; check the name, or log in"
      " with hf auth login."
    ) from error
  except errors.LocalEntryNotFoundError as error:
    raise OSError(
      f"{address} was never fetched and the Hub cannot be reached; check the"
      " network, or name a folder."
    ) from error
  except errors.HfHubHTTPError as error:
    status = getattr(error.response, "status_code", None)
    cure = (
      "log in with hf auth login, with a token that may write"
      if status in (401, 403)
      else "try again later"
    )
    raise OSError(f"the Hub refused {address} ({status}); {cure}.") from error
