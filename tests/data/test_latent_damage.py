"""What is wrong with a cache, or with writing one, is told in one sentence."""

import dataclasses
import json
import re
import shutil

import flips
import jax
import numpy as np
import pytest
import small

from marjax import outputs
from marjax.data import latent_cache, latent_index, latent_writer
from marjax.data.latent_index import read_index, read_settings
from marjax.release import directory, json_files
from marjax.release.card import Card

EVERY = np.arange(23)
FIRST = "latents-00000-of-00005.array_record"
THIRD = "latents-00002-of-00005.array_record"


@pytest.fixture
def cache(write_cache, tmp_path):
  write_cache(tmp_path / "cache")
  return tmp_path / "cache"


@pytest.fixture
def read_all(latents_config):
  """Opens a cache and reads every record of it."""

  def read(cache):
    latents = latent_cache.CachedLatents(latents_config(cache))
    for coins in (np.zeros(23, bool), np.ones(23, bool)):
      latents.gather(EVERY, coins)

  return read


def flip(path, place: int) -> None:
  content = bytearray(path.read_bytes())
  content[place] ^= 4
  path.write_bytes(content)


def test_a_flipped_bit_is_found_while_reading(cache, read_all):
  """At any place of the records; around them is what reading needs not."""
  path = cache / THIRD
  content = path.read_bytes()
  size = read_settings(cache).record_type.itemsize
  records = 10 * size
  places = np.random.default_rng(0).integers(64, records, 40).tolist()
  for place in [64, 70, *places, len(content) - 65536 + 100]:
    flip(path, place)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged"):
      read_all(cache)
    path.write_bytes(content)
  read_all(cache)


def test_a_flipped_bit_in_padding_is_found_by_verify(cache, latents_config):
  """Before the first record and after the last one."""
  for place in (0, 1, 8, 40, 63, -70):
    flip(cache / THIRD, place)
    latents = latent_cache.CachedLatents(latents_config(cache))
    with pytest.raises(
      ValueError, match=rf"{THIRD} is damaged \(another sha256"
    ):
      latents.verify()
    flip(cache / THIRD, place)
  latents.verify()


def test_verify_reads_the_autoencoder_too(cache, latents_config):
  shutil.rmtree(cache / "autoencoder")
  latents = latent_cache.CachedLatents(latents_config(cache))
  with pytest.raises(FileNotFoundError, match=r"autoencoder is missing; expec"):
    latents.verify()
  params = jax.tree.map(lambda leaf: leaf + 1, small.codec_params())
  directory.save(cache / "autoencoder", Card("other", small.CODEC), params)
  with pytest.raises(ValueError, match=r"autoencoder has the digest .* copy"):
    latents.verify()


def test_missing_and_short_shards(cache, read_all):
  path = cache / THIRD
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=rf"{THIRD} is damaged \(\d+ bytes, exp"):
    read_all(cache)
  path.unlink()
  with pytest.raises(
    FileNotFoundError, match=rf"{THIRD} is missing; copy .* or delete it and r"
  ):
    read_all(cache)


def test_a_shard_in_the_place_of_another_is_found_by_verify(
  cache, latents_config
):
  shutil.copy(cache / FIRST, cache / THIRD)
  latents = latent_cache.CachedLatents(latents_config(cache))
  with pytest.raises(ValueError, match=rf"{THIRD} is damaged \(another sha256"):
    latents.verify()


def test_a_shard_with_other_records_than_the_index_says(
  cache, read_all, monkeypatch
):
  index = read_index(cache)
  name = THIRD.removesuffix(".array_record")
  fewer = dataclasses.replace(
    index.shards[name],
    num_examples=4,
    skipped=(latent_index.Skipped(14, "x", "y"),),
  )
  changed = dataclasses.replace(index, shards={**index.shards, name: fewer})
  monkeypatch.setattr(latent_index, "read_index", lambda cache: changed)
  with pytest.raises(ValueError, match=r"damaged \(10 records, expected 8\)"):
    read_all(cache)


def test_a_half_written_cache(cache, read_all):
  (cache / "index.json").unlink()
  (cache / THIRD).unlink()
  with pytest.raises(
    FileNotFoundError,
    match=r"is half-written: 1 of 5 shards are missing, the first latents-00002"
    r"-of-00005; run the marjax cache-latents command that began it again",
  ):
    read_all(cache)


def test_what_is_no_cache(cache, read_all, tmp_path):
  for folder in (tmp_path, tmp_path / "nothing"):
    with pytest.raises(FileNotFoundError, match=r"expected a cache of latents"):
      read_all(folder)
  settings = json.loads((cache / "settings.json").read_text())
  del settings[json_files.HASH]
  for content, message in (
    ("{", "is no JSON text"),
    (json.dumps({**settings, "format": "x"}), "is not of a cache of latents"),
    (
      json.dumps({**settings, "format_version": 1}),
      "version 1;.* make the cache again",
    ),
    (json.dumps({**settings, "format_version": 3}), "version 3;.* upgrade"),
    (json.dumps({**settings, "shard_size": 0}), r"read \(.*shard_size is 0"),
    (json.dumps({**settings, "num_source": 22}), "of two caches"),
  ):
    (cache / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=message):
      read_all(cache)


def test_a_cache_that_does_not_fit_the_config(cache, latents_config, tmp_path):
  def opened(**changes):
    latent_cache.CachedLatents(latents_config(cache, **changes))

  with pytest.raises(ValueError, match=r"8² pixels and 3 .*, and data has 16"):
    opened(image_size=16)
  with pytest.raises(ValueError, match=r"labels up to 6, .* to at least 7"):
    opened(num_classes=6)
  for name, message in (
    ("", "'' is no path; expected the name of a file or folder"),
    ("gs://bucket/cache", "is in a bucket, .*; expected a path on this"),
  ):
    with pytest.raises(ValueError, match=message):
      opened(data_dir=name)
  params = jax.tree.map(lambda leaf: leaf + 1, small.codec_params())
  other = tmp_path / "other"
  directory.save(other, Card("other", small.CODEC), params)
  with pytest.raises(ValueError, match=r"made by another autoencoder \(digest"):
    opened(autoencoder=str(other))
  with pytest.raises(FileNotFoundError, match=r"nowhere/x does not exist"):
    opened(autoencoder="nowhere/x")
  with pytest.raises(ValueError, match=r"^mar-large is a model; expected an a"):
    latent_cache.check_autoencoder(small.card(), "mar-large")


def test_another_command_does_not_touch_a_cache(cache, write_cache, tmp_path):
  codec = dataclasses.replace(small.CODEC, latent_scale=0.4)
  for changes in (
    {"dtype": "float32"},
    {"digest": "0" * 64},
    {"codec": codec},
    {"num_source": 22},
    {"shard_size": 6},
  ):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"was begun with {name} = .* --out"):
      write_cache(cache, **changes)
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "thesis.tex").touch()
  with pytest.raises(FileExistsError, match=r"full is a folder of someth"):
    write_cache(tmp_path / "full")


def test_a_disk_that_is_full(write_cache, tmp_path, monkeypatch):
  """/dev/full fails as a full disk does: when a file is closed, at last."""
  real = outputs._temporary

  def on_full_disk(path):
    temporary = real(path)
    if "00002" in path.name:
      temporary.unlink()
      temporary.symlink_to("/dev/full")
    return temporary

  with monkeypatch.context() as patch:
    patch.setattr(outputs, "_temporary", on_full_disk)
    with pytest.raises(
      OSError, match=rf"{THIRD} cannot be written \(.*no space left .* make roo"
    ):
      write_cache(tmp_path / "cache")
  names = {path.name for path in (tmp_path / "cache").glob("*latents-*")}
  assert "latents-00001-of-00005.json" in names
  assert not any("00002" in name for name in names)
  assert write_cache(tmp_path / "cache").num_examples == 23


def test_a_disk_that_is_too_small(write_cache, tmp_path, monkeypatch):
  usage = shutil._ntuple_diskusage(10**6, 10**6 - 10**3, 10**3)
  monkeypatch.setattr(latent_writer.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(OSError, match=r"needs 1\.\d+e-05 GB for 23 images"):
    write_cache(tmp_path / "cache")


def test_moments_that_are_no_numbers(write_cache, loaded, tmp_path):
  release, _ = loaded
  large = jax.tree.map(lambda leaf: 1e4 * leaf, release.codec_params)
  object.__setattr__(release, "codec_params", large)
  try:
    with pytest.raises(
      ValueError,
      match=r"of image 0 that float16 cannot hold; .*float32",
    ):
      write_cache(tmp_path / "cache", digest="0" * 64)
  finally:
    object.__setattr__(release, "codec_params", small.codec_params())
  assert not list((tmp_path / "cache").glob("*latents-*"))


def test_a_flipped_bit_anywhere_in_a_cache_is_told(cache, latents_config):
  """Or changes nothing, neither for readers nor for who finishes a cache."""

  def use():
    latents = latent_cache.CachedLatents(latents_config(cache))
    joined = latent_index.join(cache, read_settings(cache))
    record, *more = latents.gather(EVERY, np.zeros(23, bool))
    arrays = (record["moments"], *more)
    return latents.index, joined, *(array.tobytes() for array in arrays)

  def verify():
    latent_cache.digest_of.cache_clear()
    latent_cache.CachedLatents(latents_config(cache)).verify()

  files = [path for path in cache.rglob("*") if path.is_file()]
  jsons = cache.glob("*.json")
  for paths, do in ((jsons, use), (files, verify)):
    seen = flips.outcomes(paths, do)
    assert set(seen) <= {"told", "same"}, seen
    assert seen["told"] >= 20


def reordered(index):
  index["shards"] = dict(reversed(index["shards"].items()))


def renamed(index):
  index["shards"]["../latents"] = index["shards"].popitem()[1]


def regrouped(index):
  first, second, *_ = index["shards"].values()
  first["num_examples"] += 1
  second["num_examples"] -= 1


def vast(index):
  index["settings"]["num_source"] = 10**12


def many(index):
  index["settings"] |= {"num_source": 10**9, "shard_size": 1}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (reordered, "the shards are not those of 23 examples"),
    (renamed, "the shards are not those of 23 examples"),
    (regrouped, "the index has 6 images and 0 skipped ones"),
    (vast, "are 200000000000 files; expected at most 100000"),
    (many, "are 1000000000 files; expected at most 100000"),
  ],
)
def test_an_index_that_contradicts_itself(cache, read_all, change, message):
  path = cache / "index.json"
  index = json.loads(path.read_text())
  del index[json_files.HASH]
  change(index)
  path.write_text(json.dumps(index))
  with pytest.raises(ValueError, match=message):
    read_all(cache)
