"""A damaged release is found before it is used, in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small

import marjax
from marjax.convert import run
from marjax.release import directory, json_files, loading
from marjax.release.card import MANIFEST, Card

TESTS = Path(__file__).parents[1]


def change(folder, **changes):
  """Changes top-level entries of the manifest, and takes its hash away."""
  path = folder / MANIFEST
  mapping = {**json.loads(path.read_text()), **changes}
  del mapping[json_files.HASH]
  path.write_text(json.dumps(mapping))


def shard(folder, part="weights"):
  return folder / f"{part}-00001-of-00001.safetensors"


def test_a_flipped_bit_is_found(copy):
  path = shard(copy)
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)
  with pytest.raises(
    ValueError, match=r"has another content than release\.json"
  ):
    marjax.load(copy, small.one_device())
  marjax.load(copy, small.one_device(), verify=False)


def test_a_damaged_autoencoder_is_found(copy):
  path = shard(copy, "autoencoder")
  path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(
    ValueError, match=r"has another content than release\.json"
  ):
    marjax.load(copy, small.one_device())


def test_a_damaged_autoencoder_is_not_copied(tmp_path):
  kl = tmp_path / "kl"
  directory.save(kl, Card("KL", small.CODEC), small.codec_params())
  shard(kl).write_bytes(bytes(shard(kl).stat().st_size))
  for use in (
    lambda: run.convert(
      tmp_path / "absent", tmp_path / "out", run.Choices(autoencoder=kl)
    ),
    lambda: loading.export(kl, tmp_path / "out"),
  ):
    with pytest.raises(
      ValueError, match=r"has another content than release\.json"
    ):
      use()
  assert not (tmp_path / "out").exists()


FULL = """
import resource, sys
from pathlib import Path
import small
from marjax.release import directory

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
  directory.save(Path(sys.argv[1]) / "a", small.card(), small.params())
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
  (line,) = [x for x in done.stdout.splitlines() if "sentence:" in x]
  assert "nothing is left of them: make room" in line
  assert list(tmp_path.iterdir()) == []


def test_a_truncated_or_missing_file_is_found(copy):
  path = shard(copy)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"bytes long; release\.json says"):
    marjax.load(copy, small.one_device())
  path.unlink()
  with pytest.raises(ValueError, match=r"is missing; release\.json says"):
    marjax.load(copy, small.one_device(), verify=False)


def test_no_safetensors_file_is_one_sentence(copy):
  path = shard(copy)
  path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(ValueError, match=r"00001\.safetensors cannot be read"):
    marjax.load(copy, small.one_device(), verify=False)


def test_a_half_written_release_is_one_sentence(copy):
  (copy / MANIFEST).unlink()
  with pytest.raises(FileNotFoundError, match="is a half-written release"):
    marjax.load(copy, small.one_device())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"format_version": 3}, "format version 3, written by .*: upgrade marjax"),
    ({"format_version": "2"}, "format version '2'"),
    ({"format": "other"}, "is no manifest of a released checkpoint"),
    ({"colour": "red"}, "colour is not a known key"),
    ({"card": {"name": "x"}}, r"codec is missing"),
  ],
)
def test_a_wrong_manifest_is_one_sentence(copy, changes, message):
  change(copy, **changes)
  with pytest.raises(ValueError, match=message):
    marjax.load(copy, small.one_device())


def test_a_manifest_that_is_no_json_is_one_sentence(copy):
  (copy / MANIFEST).write_text("{")
  with pytest.raises(ValueError, match=r"release\.json is no JSON text"):
    marjax.load(copy, small.one_device())


def test_weights_of_another_model_are_found(copy):
  card = json.loads((copy / MANIFEST).read_text())["card"]
  card["model"]["head"]["width"] = 16
  change(copy, card=card)
  with pytest.raises(ValueError, match="weights and configuration are of two"):
    marjax.load(copy, small.one_device())


def test_what_is_not_there_is_one_sentence(tmp_path):
  with pytest.raises(FileNotFoundError, match="does not exist; expected"):
    marjax.load(tmp_path / "absent")
  with pytest.raises(ValueError, match=r"'mar-lrage'.*did you mean mar-large"):
    marjax.load("mar-lrage")
