"""A damaged release is found before it is used, in one sentence."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import small

import marjax
from marjax import schema
from marjax.parallel.mesh import make_mesh
from marjax.release.card import MANIFEST

TESTS = Path(__file__).parents[1]


def one_device():
  return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  return small.save_release(tmp_path_factory.mktemp("release") / "small")


@pytest.fixture
def copy(release, tmp_path):
  return shutil.copytree(release, tmp_path / "copy")


def change(folder, **changes):
  """Changes top-level entries of the manifest, and takes its hash away."""
  path = folder / MANIFEST
  mapping = {**json.loads(path.read_text()), **changes}
  del mapping[schema.HASH]
  path.write_text(json.dumps(mapping))


def largest_file(folder):
  return max(
    (path for path in (folder / "weights").rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )


def test_a_flipped_bit_is_found(copy):
  path = largest_file(copy)
  content = bytearray(path.read_bytes())
  content[7] ^= 1
  path.write_bytes(content)
  with pytest.raises(
    ValueError, match=r"has another content than release\.json"
  ):
    marjax.load(copy, one_device())
  marjax.load(copy, one_device(), verify=False)


def test_a_damaged_autoencoder_is_found(copy):
  path = largest_file(copy / "autoencoder")
  path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(
    ValueError, match=r"has another content than release\.json"
  ):
    marjax.load(copy, one_device())


def test_a_damaged_autoencoder_is_not_copied(copy, tmp_path):
  from marjax.convert import run

  path = largest_file(copy / "autoencoder")
  path.write_bytes(bytes(path.stat().st_size))
  choices = run.Choices(autoencoder=copy / "autoencoder")
  with pytest.raises(
    ValueError, match=r"has another content than release\.json"
  ):
    run.convert(tmp_path / "absent", tmp_path / "out", choices)


FULL = """
import resource, sys
from pathlib import Path
import small
from marjax.release import directory, single_file

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = Path(sys.argv[1])
for save in (
  lambda: directory.save(folder / "a", small.card(), small.params()),
  lambda: single_file.write(folder / "a.safetensors", small.card(),
                            small.params()),
):
  try:
    save()
  except OSError as error:
    print("sentence:", error)
"""


def test_a_full_disk_is_one_sentence(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", FULL, str(tmp_path)],
    check=True,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
  )
  lines = [x for x in done.stdout.splitlines() if x.startswith("sentence:")]
  assert len(lines) == 2
  assert "nothing is left of them: make room" in lines[0]
  assert "a.safetensors cannot be written" in lines[1]
  assert list(tmp_path.iterdir()) == []


def test_a_truncated_or_missing_file_is_found(copy):
  path = largest_file(copy)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"bytes long; release\.json says"):
    marjax.load(copy, one_device())
  path.unlink()
  with pytest.raises(ValueError, match=r"is missing; release\.json says"):
    marjax.load(copy, one_device(), verify=False)


def test_a_half_written_release_is_one_sentence(copy):
  (copy / MANIFEST).unlink()
  with pytest.raises(FileNotFoundError, match="is a half-written release"):
    marjax.load(copy, one_device())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"format_version": 2}, "format version 2, written by .*: upgrade marjax"),
    ({"format_version": "1"}, "format version '1'"),
    ({"format": "other"}, "is no manifest of a released checkpoint"),
    ({"colour": "red"}, "colour is not a known key"),
    ({"card": {"name": "x"}}, r"codec is missing"),
  ],
)
def test_a_wrong_manifest_is_one_sentence(copy, changes, message):
  change(copy, **changes)
  with pytest.raises(ValueError, match=message):
    marjax.load(copy, one_device())


def test_a_manifest_that_is_no_json_is_one_sentence(copy):
  (copy / MANIFEST).write_text("{")
  with pytest.raises(ValueError, match=r"release\.json is no JSON text"):
    marjax.load(copy, one_device())


def test_weights_of_another_model_are_found(copy):
  card = json.loads((copy / MANIFEST).read_text())["card"]
  card["model"]["head"]["width"] = 16
  change(copy, card=card)
  with pytest.raises(ValueError, match="weights and configuration are of two"):
    marjax.load(copy, one_device())


def test_what_is_not_there_is_one_sentence(tmp_path):
  with pytest.raises(FileNotFoundError, match="does not exist; expected"):
    marjax.load(tmp_path / "absent")
  with pytest.raises(ValueError, match=r"'mar-lrage'.*did you mean mar-large"):
    marjax.load("mar-lrage")
