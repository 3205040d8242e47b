"""A release, a work directory, a cache and other folders are told apart."""

import os

import pytest
import small

import marjax
from marjax.convert import run
from marjax.data import latent_index
from marjax.data.latent_index import CacheSettings
from marjax.release import directory, kinds, loading

FOLDERS = {
  kinds.EMPTY: [],
  kinds.FOLDER: ["photo.png"],
  kinds.RELEASE: ["release.json", "weights-00001-of-00001.safetensors"],
  kinds.HALF_RELEASE: ["weights-00001-of-00001.safetensors"],
  kinds.WORKDIR: ["config.json", "checkpoints/", "metrics.jsonl"],
  kinds.HALF_WORKDIR: ["checkpoints/"],
  kinds.CACHE: ["settings.json", "index.json", "autoencoder/"],
  kinds.HALF_CACHE: ["settings.json", "autoencoder/"],
  kinds.DIFFUSERS: ["config.json", "diffusion_pytorch_model.safetensors"],
  f"{kinds.RELEASE} and {kinds.WORKDIR} at once": [
    "release.json",
    "config.json",
  ],
}

SETTINGS = CacheSettings(
  source="", split="train", num_source=1, codec=small.CODEC, digest=""
)


def make(folder, names):
  folder.mkdir()
  (folder / ".DS_Store").touch()
  for name in names:
    path = folder / name
    path.mkdir() if name.endswith("/") else path.touch()
  return folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_each_kind_is_told(kind, tmp_path):
  assert kinds.kind_of(make(tmp_path / "a", FOLDERS[kind])) == kind


def test_what_is_no_folder(tmp_path):
  assert kinds.kind_of(tmp_path / "a") == kinds.NOTHING
  (tmp_path / "a").touch()
  assert kinds.kind_of(tmp_path / "a") == kinds.FILE
  os.mkfifo(tmp_path / "pipe")
  assert kinds.kind_of(tmp_path / "pipe") == "a named pipe"


def test_a_begun_cache_is_one(tmp_path):
  assert kinds.kind_of(make(tmp_path / "a", ["settings.json"])) == (
    kinds.HALF_CACHE
  )
  names = ["settings.json", "tasks.json"]  # of an editor
  assert kinds.kind_of(make(tmp_path / "b", names)) == kinds.FOLDER


@pytest.mark.parametrize(
  "kind", sorted(FOLDERS.keys() - {kinds.RELEASE, kinds.WORKDIR})
)
def test_what_cannot_be_loaded_is_named(kind, tmp_path):
  folder = make(tmp_path / "a", FOLDERS[kind])
  for use in (
    lambda: marjax.load(folder),
    lambda: run.convert(folder, tmp_path / "out"),
    lambda: loading.export(folder, tmp_path / "out"),
  ):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
      use()
    assert str(caught.value).startswith(f"{folder} is {kind}; expected ")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("kind", sorted(FOLDERS.keys() - {kinds.CACHE}))
def test_what_is_no_cache_is_named(kind, tmp_path):
  folder = make(tmp_path / "a", FOLDERS[kind])
  message = f"{folder} is {kind}; expected "
  if kind != kinds.HALF_CACHE:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
      latent_index.read_settings(folder)
    assert str(caught.value).startswith(message)
  if kind not in (kinds.EMPTY, kinds.HALF_CACHE):
    with pytest.raises(FileExistsError) as caught:
      latent_index.begin(folder, SETTINGS)
    assert str(caught.value).startswith(message)


def test_a_run_inside_a_release_is_seen(tmp_path):
  release = small.save_release(tmp_path / "small")
  (release / "config.json").write_text("{}")
  mesh = small.one_device()
  with pytest.raises(ValueError, match=r"at once; expected .*move one of them"):
    marjax.load(release, mesh)
  with pytest.raises(ValueError, match="at once; expected"):
    directory.read_manifest(release)
