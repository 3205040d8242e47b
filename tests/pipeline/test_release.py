"""Released checkpoints: whole, checked, loadable by themselves."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import small

import marjax
from marjax.convert import run
from marjax.parallel.mesh import make_mesh
from marjax.release import directory, json_files, loading
from marjax.release.card import MANIFEST, Card

SETTINGS = marjax.Settings(
  num_ar_steps=3,
  num_buckets=1,
  head=marjax.ReverseSettings(num_steps=4, start=900),
)


@pytest.fixture(scope="module")
def pipe(release):
  return marjax.load(release, small.one_device())


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_everything_comes_back(release, pipe):
  assert pipe.card == small.card(autoencoder="autoencoder")
  assert_equal(pipe.params, small.params())
  assert_equal(pipe.codec_params, small.codec_params())
  manifest = directory.read_manifest(release)
  count = sum(leaf.size for leaf in jax.tree.leaves(small.params()))
  assert manifest.num_parameters == count
  names = {
    path.relative_to(release).as_posix()
    for path in release.rglob("*")
    if path.is_file() and path != release / MANIFEST
  }
  assert set(manifest.files) == names


def test_weights_in_bfloat16_are_half_and_read_as_float32(release, tmp_path):
  whole = directory.read_manifest(release)
  half = loading.export(release, tmp_path / "half", "bfloat16")
  read = marjax.load(tmp_path / "half", small.one_device())
  assert_equal(
    read.params,
    jax.tree.map(
      lambda leaf: np.asarray(leaf.astype("bfloat16").astype("float32")),
      small.params(),
    ),
  )
  assert_equal(read.codec_params, small.codec_params())

  def num_bytes(manifest, part):
    files = manifest.files.items()
    return sum(r.num_bytes for name, r in files if name.startswith(part))

  assert num_bytes(half, "weights") < 0.6 * num_bytes(whole, "weights")
  with pytest.raises(ValueError, match="weights_dtype is 'float16'; expected"):
    loading.export(release, tmp_path / "other", "float16")


def test_images_names_and_presets(pipe):
  images = pipe.generate(["thing 3", "Object-4", 5], settings=SETTINGS)
  assert images.shape == (3, 8, 8, 3)
  assert images.dtype == np.uint8
  numbers = pipe.generate([3, 4, 5], settings=SETTINGS)
  np.testing.assert_array_equal(images, numbers)
  assert pipe.settings("quick").num_ar_steps == 2
  assert pipe.generate([1], settings="quick").shape == (1, 8, 8, 3)
  with pytest.raises(ValueError, match="no preset 'slow'; small has: quick"):
    pipe.generate([1], settings="slow")
  with pytest.raises(ValueError, match="thing 1"):
    pipe.generate(["thing1"], settings=SETTINGS)


def test_latents_are_what_images_are_decoded_from(pipe):
  latents = pipe.latents([1, 2], settings=SETTINGS)
  assert latents.shape == (2, 4, 4, 4)
  images = pipe.generate([1, 2], settings=SETTINGS)
  np.testing.assert_array_equal(pipe.decode(latents), images)
  one_by_one = pipe.decode(latents, batch_size=1)
  assert np.abs(one_by_one.astype(int) - images).max() <= 1


def test_encode_and_reconstruct(pipe):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
  latents = pipe.encode(images)
  assert latents.shape == (3, 4, 4, 4)
  as_floats = pipe.encode(images / np.float32(127.5) - 1, batch_size=2)
  np.testing.assert_allclose(as_floats, latents, atol=1e-5)
  np.testing.assert_array_equal(pipe.reconstruct(images), pipe.decode(latents))
  with pytest.raises(ValueError, match=r"H = W = 8: crop or resize"):
    pipe.encode(images[:, :4])


def test_edits_keep_latents_of_an_autoencoder(pipe):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (8, 8, 3), np.uint8)
  mask = marjax.regions.box(8, 0, 0, 3, 3)
  edited = pipe.edit(image, mask, "thing 1", settings=SETTINGS)
  before = pipe.encode(image)
  is_drawn = np.zeros((4, 4), bool)
  is_drawn[:2, :2] = True
  np.testing.assert_array_equal(edited.mask[0, ::2, ::2], is_drawn)
  np.testing.assert_array_equal(
    edited.latents[0][~is_drawn], before[0][~is_drawn]
  )
  assert (edited.latents[0][is_drawn] != before[0][is_drawn]).all()
  kept = pipe.edit(image, mask, "thing 1", settings=SETTINGS, keep_pixels=True)
  np.testing.assert_array_equal(kept.images[~kept.mask], image[~kept.mask[0]])


def test_a_trajectory_of_an_autoencoder(pipe):
  made = pipe.reveal([1, 2], settings=SETTINGS)
  assert made.frames.shape == (3, 2, 8, 8, 3)
  np.testing.assert_array_equal(made.frames[-1], made.images)
  assert (made.is_known.mean((2, 3)) * 16).T[0].tolist() == [
    *map(float, made.num_known)
  ]


def test_dtypes_are_options(release):
  loaded = marjax.load(release, small.one_device(), dtype="bfloat16")
  assert loaded.card.model.backbone.dtype == "bfloat16"
  assert loaded.card.model.head.dtype == "bfloat16"
  assert loaded.card.codec.dtype == "float32"
  other = marjax.load(release, small.one_device(), codec_dtype="bfloat16")
  assert other.card.codec.dtype == "bfloat16"
  with pytest.raises(ValueError, match="dtype is 'half'; expected"):
    marjax.load(release, small.one_device(), dtype="half")


@pytest.mark.slow
def test_shards_go_where_the_table_says(release):
  mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:8])
  loaded = marjax.load(release, mesh)
  wanted = jax.tree.leaves(loading.abstract_weights(loaded.card.model, mesh))
  for leaf, where in zip(jax.tree.leaves(loaded.params), wanted, strict=True):
    assert leaf.sharding == where.sharding
  assert_equal(loaded.params, small.params())
  images = loaded.generate([1, 2, 3], settings=SETTINGS).astype(int)
  alone = marjax.load(release, small.one_device())
  expected = alone.generate([1, 2, 3], settings=SETTINGS)
  assert np.abs(images - expected).max() <= 1


@pytest.mark.slow
def test_a_sibling_autoencoder(tmp_path):
  directory.save(
    tmp_path / "model", small.card(autoencoder="../kl"), small.params()
  )
  pipe = marjax.load(tmp_path / "model", small.one_device())
  latents = pipe.latents([1], settings=SETTINGS)
  for use in (
    lambda: pipe.generate([1], settings=SETTINGS),
    lambda: pipe.decode(latents),
    lambda: pipe.encode(np.zeros((8, 8, 3), np.uint8)),
  ):
    with pytest.raises(FileNotFoundError, match="kl is not there, and small"):
      use()
  directory.save(tmp_path / "kl", Card("KL", small.CODEC), small.codec_params())
  pipe = marjax.load(tmp_path / "model", small.one_device())
  assert pipe.decode(latents).shape == (1, 8, 8, 3)
  alone = marjax.load(tmp_path / "kl", small.one_device())
  assert alone.reconstruct(np.zeros((6, 4, 3), np.uint8)).shape == (1, 6, 4, 3)
  with pytest.raises(
    ValueError, match=r"expected floats \[N, rows, columns, 4"
  ):
    alone.decode(latents[..., :2])
  with pytest.raises(ValueError, match="KL is an autoencoder without a model"):
    alone.generate([1])


def test_siblings_of_links(tmp_path):
  models, links = tmp_path / "models", tmp_path / "links"
  links.mkdir()
  card = small.card(autoencoder="../kl")
  directory.save(models / "model", card, small.params())
  (links / "model").symlink_to(models / "model")
  with pytest.raises(FileNotFoundError, match="links/kl is not there"):
    marjax.load(links / "model", small.one_device()).decode(np.zeros(1))
  directory.save(models / "kl", Card("KL", small.CODEC), small.codec_params())
  pipe = marjax.load(links / "model", small.one_device())
  assert pipe.decode(np.zeros((1, 4, 4, 4))).shape == (1, 8, 8, 3)


@pytest.mark.slow
def test_another_autoencoder_is_refused(tmp_path):
  directory.save(
    tmp_path / "model", small.card(autoencoder="../kl"), small.params()
  )
  other = dataclasses.replace(small.CODEC, latent_scale=0.4)
  directory.save(tmp_path / "kl", Card("KL", other), small.codec_params())
  with pytest.raises(ValueError, match="expected the autoencoder of the model"):
    marjax.load(tmp_path / "model", small.one_device())
  shutil.rmtree(tmp_path / "kl")
  small.save_release(tmp_path / "kl")
  with pytest.raises(ValueError, match="kl is a model; expected the autoenc"):
    marjax.load(tmp_path / "model", small.one_device())


def test_an_export_is_the_same_release(release, pipe, tmp_path):
  out = tmp_path / "copy"
  loading.export(release, out)
  names = sorted(path.name for path in out.iterdir())
  assert names == sorted(path.name for path in release.iterdir())
  for name in names:
    assert (out / name).read_bytes() == (release / name).read_bytes()
  with pytest.raises(FileExistsError, match="expected a new folder"):
    loading.export(release, out)


def test_an_export_takes_the_sibling_along(tmp_path, pipe):
  card = small.card(autoencoder="../kl")
  directory.save(tmp_path / "model", card, small.params())
  directory.save(tmp_path / "kl", Card("KL", small.CODEC), small.codec_params())
  loading.export(tmp_path / "model", tmp_path / "elsewhere/both")
  both = marjax.load(tmp_path / "elsewhere/both", small.one_device())
  assert both.card == pipe.card
  assert_equal(both.params, pipe.params)
  assert_equal(both.codec_params, pipe.codec_params)


def test_others_read_a_release(release):
  from safetensors.numpy import load_file

  arrays = load_file(release / "weights-00001-of-00001.safetensors")
  expected = small.params()["backbone"]["mask_token"]
  np.testing.assert_array_equal(arrays["backbone/mask_token"], expected)
  arrays = load_file(release / "autoencoder-00001-of-00001.safetensors")
  assert len(arrays) == len(jax.tree.leaves(small.codec_params()))


def test_shards_are_bounded(tmp_path, pipe, monkeypatch):
  limit = 20_000
  monkeypatch.setattr(directory, "SHARD_BYTES", limit)
  directory.save(tmp_path / "a", small.card(), small.params())
  paths = sorted(tmp_path.glob("a/*.safetensors"))
  count = len(paths)
  assert count > 5
  assert [path.name for path in paths] == [
    f"weights-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
  ]
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(small.params()))
  header = 4000
  assert all(
    path.stat().st_size < max(limit, largest) + header for path in paths
  )
  mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:8])
  assert_equal(marjax.load(tmp_path / "a", mesh).params, pipe.params)


def test_each_device_reads_its_slice(release, monkeypatch):
  seen = []
  make = jax.make_array_from_callback

  def counting(shape, sharding, callback):
    def read(index):
      seen.append(callback(index).size)
      return callback(index)

    return make(shape, sharding, read)

  monkeypatch.setattr(directory.jax, "make_array_from_callback", counting)
  mesh = make_mesh(fsdp=4, devices=jax.devices()[:4])
  manifest = directory.read_manifest(release)
  abstract = loading.abstract_weights(small.MODEL, mesh)
  arrays = directory.stored(release, manifest, directory.WEIGHTS)
  weights = directory.read_weights(release, arrays, abstract)
  split = sum(
    shard.data.size
    for leaf in jax.tree.leaves(weights)
    for shard in leaf.addressable_shards
    if shard.replica_id == 0 or not leaf.is_fully_replicated
  )
  assert sum(seen) == split
  assert sum(seen) < 2 * manifest.num_parameters


def test_a_file_of_others_is_refused(tmp_path):
  from safetensors.numpy import save_file

  file = tmp_path / "other.safetensors"
  save_file({"a": np.zeros(3, np.float32)}, file)
  with pytest.raises(ValueError, match=r"is a file; expected .*marjax convert"):
    marjax.load(file, small.one_device())


def test_older_formats_are_refused(release, tmp_path):
  from safetensors.numpy import save_file

  file = tmp_path / "exported.safetensors"
  save_file({"a": np.zeros(3, np.float32)}, file, {"marjax": "{}"})
  with pytest.raises(ValueError, match=r"older marjax.*with marjax convert"):
    run.convert(file, tmp_path / "out")
  older = shutil.copytree(release, tmp_path / "older")
  mapping = json.loads((older / MANIFEST).read_text())
  del mapping[json_files.HASH]
  mapping["format_version"] = 1
  (older / MANIFEST).write_text(json.dumps(mapping))
  with pytest.raises(ValueError, match=r"older marjax.*with marjax convert"):
    marjax.load(older, small.one_device())


def test_an_existing_folder_is_kept(release):
  with pytest.raises(FileExistsError, match="already exists; expected a new"):
    directory.save(release, small.card(), small.params())


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(directory.files, "sha256", fail)
  with pytest.raises(OSError, match="disk full"):
    directory.save(tmp_path / "a", small.card(), small.params())
  assert list(tmp_path.iterdir()) == []


PEAK = """
import resource, sys
import jax
import safetensors
from marjax.parallel.mesh import host_mesh
from marjax.parallel.rules import replicated
from marjax.release import directory

def peak():
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

folder, count = sys.argv[1], int(sys.argv[2])
where = replicated(host_mesh())
leaf = jax.ShapeDtypeStruct((16, 2**20), "float32", sharding=where)
abstract = {f"a{i}": {"kernel": leaf} for i in range(count)}
manifest = directory.read_manifest(folder)
before = peak()
arrays = directory.stored(folder, manifest, directory.WEIGHTS)
weights = directory.read_weights(folder, arrays, abstract)
print(peak() - before)
"""


@pytest.mark.slow
def test_loading_holds_little_more_than_the_weights(tmp_path):
  count, each = 16, 4 * 16 * 2**20
  array = np.ones((16, 2**20), np.float32)
  weights = {f"a{i}": {"kernel": array} for i in range(count)}
  directory.save(tmp_path / "big", Card("big", small.CODEC), weights)
  command = [sys.executable, "-c", PEAK, str(tmp_path / "big"), str(count)]
  shown = subprocess.run(command, check=True, capture_output=True, text=True)
  # The array that is read: in the file's pages, and on its way to the device.
  assert int(shown.stdout) < (count + 3) * each
