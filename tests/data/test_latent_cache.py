"""A cache holds the moments of every image and its mirror image, once."""

import hashlib
import json
import logging
import math
import threading

import jax
import numpy as np
import pytest
import small

from marjax.data import batches, latent_cache, sources
from marjax.experiment import DataConfig
from marjax.release import loading
from marjax.release.digest import digest

EVERY = np.arange(23)
PLAIN, MIRRORED = np.zeros(23, bool), np.ones(23, bool)


@pytest.fixture
def images():
  """The images of the cache that `write_cache` writes: uint8, labels."""
  config = DataConfig("synthetic", 8, 7, num_examples=23)
  columns = batches.load_all(config, "train")
  return columns.images, columns.labels


def expected(images: np.ndarray) -> np.ndarray:
  """Moments by the autoencoder itself, all at once."""
  pixels = images.astype(np.float32) / 127.5 - 1
  moments = jax.jit(small.CODEC.moments)(small.codec_params(), pixels)
  return np.concatenate(moments, axis=-1)


@pytest.mark.slow
def test_moments_labels_and_ids(write_cache, latents_config, tmp_path, images):
  index = write_cache(tmp_path, dtype="float32")
  latents = latent_cache.CachedLatents(latents_config(tmp_path))
  assert len(latents) == index.num_examples == 23
  assert [shard.num_examples for shard in index.shards.values()] == [
    *(4 * [5]),
    3,
  ]
  pixels, labels = images
  for coins, seen in ((PLAIN, pixels), (MIRRORED, pixels[:, :, ::-1])):
    record, found, ids = latents.gather(EVERY, coins)
    moments = record.pop("moments")
    assert record == {}
    assert moments.shape == (23, 4, 4, 8)
    assert (moments.dtype, found.dtype, ids.dtype) == (
      np.float32,
      np.int32,
      np.int64,
    )
    np.testing.assert_allclose(moments, expected(seen), atol=2e-5)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(ids, EVERY)
  assert latents.codec == small.CODEC
  assert latents.digest == digest(small.codec_params())
  latents.verify()


def test_examples_come_in_the_order_asked_for(
  write_cache, latents_config, tmp_path
):
  write_cache(tmp_path)
  latents = latent_cache.CachedLatents(latents_config(tmp_path))
  every = np.stack(
    [latents.gather(EVERY, coins)[0]["moments"] for coins in (PLAIN, MIRRORED)]
  )
  rng = np.random.default_rng(0)
  for count in (0, 1, 64):
    indices = rng.integers(0, 23, count)
    coins = rng.integers(0, 2, count).astype(bool)
    record, labels, ids = latents.gather(indices, coins)
    np.testing.assert_array_equal(
      record["moments"], every[coins.astype(int), indices]
    )
    np.testing.assert_array_equal(labels, indices % 7)
    np.testing.assert_array_equal(ids, indices)
  for wrong in ([-1], [23], [0, 40]):
    with pytest.raises(IndexError):
      latents.gather(np.array(wrong), np.zeros(len(wrong), bool))


def test_threads_may_read_at_once(write_cache, latents_config, tmp_path):
  write_cache(tmp_path)
  latents = latent_cache.CachedLatents(latents_config(tmp_path))
  rng = np.random.default_rng(0)
  wrong = []

  def read(indices):
    for _ in range(50):
      if (latents.gather(indices, indices % 2 == 0)[2] != indices).any():
        wrong.append(indices)

  threads = [
    threading.Thread(target=read, args=(rng.integers(0, 23, 32),))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert wrong == []


def test_float16_is_as_far_from_float32_as_the_index_says(
  write_cache, latents_config, tmp_path
):
  exact_index = write_cache(tmp_path / "exact", dtype="float32")
  index = write_cache(tmp_path / "half")
  exact, half = (
    np.stack(
      [
        latent_cache.CachedLatents(latents_config(tmp_path / name))
        .gather(EVERY, coins)[0]["moments"]
        .astype(np.float64)
        for coins in (PLAIN, MIRRORED)
      ]
    )
    for name in ("exact", "half")
  )
  for part, error in (
    (np.s_[..., :4], index.errors["mean"]),
    (np.s_[..., 4:], index.errors["log_variance"]),
  ):
    difference = np.abs(half - exact)[part]
    rms = math.sqrt(np.square(difference).mean())
    assert 0 < error.max_error == pytest.approx(difference.max(), rel=1e-6)
    assert error.rms_error == pytest.approx(rms, rel=1e-6)
    root = math.sqrt(np.square(exact[part]).mean())
    assert error.relative_error == pytest.approx(rms / root, rel=1e-6)
  exact_error = exact_index.errors["mean"]
  assert (exact_error.max_error, exact_error.rms_error) == (0, 0)


def test_several_hosts_write_what_one_does(write_cache, tmp_path):
  one = write_cache(tmp_path / "one")
  two = tmp_path / "two"
  assert write_cache(two, choices={"host": 1, "num_hosts": 2}) is None
  half = sorted(path.name for path in two.glob("*.array_record"))
  assert half == [
    "latents-00001-of-00005.array_record",
    "latents-00003-of-00005.array_record",
  ]
  assert write_cache(two, choices={"num_hosts": 2}) == one
  assert contents(two) == contents(tmp_path / "one")
  three = tmp_path / "three"
  for host in (2, 0, 1):
    last = write_cache(three, choices={"host": host, "num_hosts": 3})
  assert last == one
  assert contents(three) == contents(tmp_path / "one")


def contents(cache) -> dict[str, bytes]:
  return {
    path.relative_to(cache).as_posix(): path.read_bytes()
    for path in cache.rglob("*")
    if path.is_file()
  }


def test_whole_shards_are_kept_and_half_ones_done_again(write_cache, tmp_path):
  write_cache(tmp_path)
  before = contents(tmp_path)
  kept = tmp_path / "latents-00000-of-00005.array_record"
  time = kept.stat().st_mtime_ns
  assert write_cache(tmp_path) is not None
  (tmp_path / "index.json").unlink()
  (tmp_path / "latents-00001-of-00005.array_record").unlink()
  (tmp_path / "latents-00002-of-00005.json").unlink()
  half = tmp_path / "latents-00003-of-00005.array_record"
  half.write_bytes(half.read_bytes()[:-1])
  left = tmp_path / ".latents-00003-of-00005.array_record.abc"
  left.touch()
  write_cache(tmp_path)
  assert contents(tmp_path) == before
  assert kept.stat().st_mtime_ns == time


def spoilt_source(folder, *places: int):
  """The folder's 12 images, of which those at `places` are damaged."""
  config = DataConfig("folder", 8, 3, data_dir=str(folder))
  source = sources.open_source(config, "train")
  for place in places:
    path = folder / source.name(place)
    path.write_bytes(path.read_bytes()[:100])
  return source


def test_unreadable_images_are_skipped_by_name(
  write_cache, latents_config, tmp_path, folder, caplog
):
  source = spoilt_source(folder, 1, 4, 5, 6, 7)
  (folder / source.name(5)).unlink()
  with caplog.at_level(logging.WARNING, "marjax.data"):
    index = write_cache(tmp_path / "cache", source, shard_size=4)
  names = [source.name(i) for i in (1, 4, 5, 6, 7)]
  assert [image.name for image in index.skipped] == names
  assert names[0] == "train/ant/2.png"
  assert "FileNotFoundError" in index.skipped[2].reason
  assert len(caplog.records) == 5
  assert all(name in caplog.text for name in names)
  assert [s.num_examples for s in index.shards.values()] == [3, 0, 4]
  latents = latent_cache.CachedLatents(latents_config(tmp_path / "cache"))
  coins = np.zeros(7, bool)
  _, labels, ids = latents.gather(np.arange(7), coins)
  assert ids.tolist() == [0, 2, 3, 8, 9, 10, 11]
  assert labels.tolist() == [0, 1, 2, 2, 2, 2, 2]


def test_too_many_unreadable_images_stop_the_work(
  write_cache, tmp_path, folder
):
  source = spoilt_source(folder, 1, 5, 11)
  few, cache = {"max_skipped": 2}, tmp_path / "cache"
  for _ in range(2):  # those of whole shards count, too
    with pytest.raises(ValueError, match=r"^3 images .*cat/9\.png; .* = 2: me"):
      write_cache(cache, source, few, shard_size=2)
  assert (cache / "latents-00002-of-00006.json").exists()
  assert not (cache / "index.json").exists()
  assert write_cache(cache, source, {"max_skipped": 3}, shard_size=2)


def test_nothing_readable_is_an_error(write_cache, tmp_path, folder):
  source = spoilt_source(folder, *range(12))
  with pytest.raises(ValueError, match=r"^none of the 12 images could be read"):
    write_cache(tmp_path / "cache", source)


def test_the_autoencoder_comes_along(
  write_cache, latents_config, tmp_path, autoencoder
):
  write_cache(tmp_path / "cache")
  config = latents_config(tmp_path / "cache", autoencoder=str(autoencoder))
  latents = latent_cache.CachedLatents(config)
  assert latents.autoencoder == tmp_path / "cache" / "autoencoder"
  assert contents(latents.autoencoder) == contents(autoencoder)


def test_digests_are_of_names_shapes_and_numbers(autoencoder, tmp_path):
  params = small.codec_params()
  copy = tmp_path / "copy"
  loading.export(autoencoder, copy)
  found = {latent_cache.digest_of(str(path)) for path in (autoencoder, copy)}
  assert found == {digest(params)}
  two = {"b": {"c": np.float32([1, 2])}, "a": np.float32([[3]])}
  assert digest(two) == digest(dict(reversed(two.items())))
  others = [
    {"b": {"c": np.float32([1, 3])}, "a": np.float32([[3]])},
    {"b": {"d": np.float32([1, 2])}, "a": np.float32([[3]])},
    {"b": {"c": np.float32([[1, 2]])}, "a": np.float32([[3]])},
    {"b": {"c": np.int32([1065353216, 2**30])}, "a": np.float32([[3]])},
  ]
  assert len({digest(tree) for tree in [two, *others]}) == 5
  assert digest({"a": np.array([1.5], ">f4")}) == digest(
    {"a": np.array([1.5], "<f4")}
  )


def test_a_digest_is_defined_by_what_is_hashed():
  tree = {"a": {"x": np.float32([1, 2])}, "a-b": np.float32([[3]])}
  text = b"a-b float32 1,1\n" + np.float32(3).tobytes()
  text += b"a/x float32 2\n" + np.float32([1, 2]).tobytes()
  assert digest(tree) == hashlib.sha256(text).hexdigest()


def test_the_index_says_what_was_done(write_cache, tmp_path):
  write_cache(tmp_path)
  index = json.loads((tmp_path / "index.json").read_text())
  assert index["settings"]["format"] == "marjax latents"
  assert index["settings"]["codec"]["latent_scale"] == 0.5
  assert index["settings"]["source"].startswith("synthetic: 23 images")
  assert len(index["shards"]) == 5
