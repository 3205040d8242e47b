"""Released checkpoints: whole, checked, loadable by themselves."""

import dataclasses
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import small

import marjax
from marjax.parallel.mesh import make_mesh
from marjax.release import directory, exporting, loading
from marjax.release.card import MANIFEST, Card

SETTINGS = marjax.Settings(num_ar_steps=3, num_diffusion_steps=4, num_buckets=1)


def one_device():
  return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  return small.save_release(tmp_path_factory.mktemp("release") / "small")


@pytest.fixture(scope="module")
def pipe(release):
  return marjax.load(release, one_device())


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
  latents = pipe.generate([1, 2], settings=SETTINGS, return_latents=True)
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
  made = pipe.generate([1, 2], settings=SETTINGS, return_trajectory=True)
  assert made.frames.shape == (3, 2, 8, 8, 3)
  np.testing.assert_array_equal(made.frames[-1], made.images)
  assert (made.is_known.mean((2, 3)) * 16).T[0].tolist() == [
    *map(float, made.num_known)
  ]


def test_dtypes_are_options(release):
  loaded = marjax.load(release, one_device(), dtype="bfloat16")
  assert loaded.card.model.backbone.dtype == "bfloat16"
  assert loaded.card.model.head.dtype == "bfloat16"
  assert loaded.card.codec.dtype == "float32"
  other = marjax.load(release, one_device(), codec_dtype="bfloat16")
  assert other.card.codec.dtype == "bfloat16"
  with pytest.raises(ValueError, match="dtype is 'half'; expected"):
    marjax.load(release, one_device(), dtype="half")


def test_shards_go_where_the_table_says(release):
  mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:8])
  loaded = marjax.load(release, mesh)
  wanted = jax.tree.leaves(loading.abstract_weights(loaded.card, mesh))
  for leaf, where in zip(jax.tree.leaves(loaded.params), wanted, strict=True):
    assert leaf.sharding == where.sharding
  assert_equal(loaded.params, small.params())
  images = loaded.generate([1, 2, 3], settings=SETTINGS).astype(int)
  alone = marjax.load(release, one_device())
  expected = alone.generate([1, 2, 3], settings=SETTINGS)
  assert np.abs(images - expected).max() <= 1


def test_a_sibling_autoencoder(tmp_path):
  directory.save(
    tmp_path / "model", small.card(autoencoder="../kl"), small.params()
  )
  pipe = marjax.load(tmp_path / "model", one_device())
  latents = pipe.generate([1], settings=SETTINGS, return_latents=True)
  for use in (
    lambda: pipe.generate([1], settings=SETTINGS),
    lambda: pipe.decode(latents),
    lambda: pipe.encode(np.zeros((8, 8, 3), np.uint8)),
  ):
    with pytest.raises(FileNotFoundError, match="kl is not there, and small"):
      use()
  directory.save(tmp_path / "kl", Card("KL", small.CODEC), small.codec_params())
  pipe = marjax.load(tmp_path / "model", one_device())
  assert pipe.decode(latents).shape == (1, 8, 8, 3)
  alone = marjax.load(tmp_path / "kl", one_device())
  assert alone.reconstruct(np.zeros((6, 4, 3), np.uint8)).shape == (1, 6, 4, 3)
  with pytest.raises(ValueError, match="KL is an autoencoder without a model"):
    alone.generate([1])


def test_siblings_of_files_and_links(tmp_path):
  models, links = tmp_path / "models", tmp_path / "links"
  links.mkdir()
  card = small.card(autoencoder="../kl")
  directory.save(models / "model", card, small.params())
  exporting.export(models / "model", models / "one.safetensors")
  with pytest.raises(FileNotFoundError, match="models/kl is not there"):
    marjax.load(models / "one.safetensors", one_device()).decode(np.zeros(1))
  directory.save(models / "kl", Card("KL", small.CODEC), small.codec_params())
  (links / "model").symlink_to(models / "model")
  for path in (models / "one.safetensors", links / "model"):
    pipe = marjax.load(path, one_device())
    assert pipe.decode(np.zeros((1, 4, 4, 4))).shape == (1, 8, 8, 3)


def test_another_autoencoder_is_refused(tmp_path):
  directory.save(
    tmp_path / "model", small.card(autoencoder="../kl"), small.params()
  )
  other = dataclasses.replace(small.CODEC, latent_scale=0.4)
  directory.save(tmp_path / "kl", Card("KL", other), small.codec_params())
  with pytest.raises(ValueError, match="expected the autoencoder of the model"):
    marjax.load(tmp_path / "model", one_device())
  shutil.rmtree(tmp_path / "kl")
  small.save_release(tmp_path / "kl")
  with pytest.raises(ValueError, match="kl is a model; expected the autoenc"):
    marjax.load(tmp_path / "model", one_device())


def test_one_file_is_the_same_release(release, pipe, tmp_path):
  file = tmp_path / "small.safetensors"
  exporting.export(release, file)
  loaded = marjax.load(file, one_device())
  assert loaded.card == pipe.card
  assert_equal(loaded.params, pipe.params)
  assert_equal(loaded.codec_params, pipe.codec_params)
  with pytest.raises(FileExistsError, match="--overwrite"):
    exporting.export(release, file)
  with pytest.raises(ValueError, match=r"does not end in \.safetensors"):
    exporting.export(release, tmp_path / "small.pth")
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)
  with pytest.raises(ValueError, match="has another content in "):
    marjax.load(file, one_device())
  file.write_bytes(content[:-5])
  with pytest.raises(ValueError, match=r"cannot be read as a \.safetensors"):
    marjax.load(file, one_device())


def test_a_file_of_others_is_refused(tmp_path):
  from safetensors.numpy import save_file

  file = tmp_path / "other.safetensors"
  save_file({"a": np.zeros(3, np.float32)}, file)
  with pytest.raises(ValueError, match=r"not exported by marjax.*convert"):
    marjax.load(file, one_device())


def test_an_existing_folder_is_kept(release):
  with pytest.raises(FileExistsError, match="already exists; expected a new"):
    directory.save(release, small.card(), small.params())


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(directory.cards, "with_files", fail)
  with pytest.raises(OSError, match="disk full"):
    directory.save(tmp_path / "a", small.card(), small.params())
  assert list(tmp_path.iterdir()) == []


PEAK = """
import resource, sys
import jax
from marjax.parallel.mesh import host_mesh
from marjax.parallel.rules import replicated
from marjax.release import directory

def peak():
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

folder, count = sys.argv[1], int(sys.argv[2])
where = replicated(host_mesh())
leaf = jax.ShapeDtypeStruct((16, 2**20), "float32", sharding=where)
abstract = {f"a{i}": {"kernel": leaf} for i in range(count)}
import orbax.checkpoint
before = peak()
weights = directory.read_weights(folder, abstract)
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
  # One group beyond the weights, and what Orbax's import takes.
  assert int(shown.stdout) < count * each + 1.5 * directory.GROUP_BYTES
