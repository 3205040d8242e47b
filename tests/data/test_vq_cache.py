"""Caches of codes, and of what comes before them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.conftest import image_config
from protocols.parts import VARIANTS, VQ, noisy

from marjax.data import (
  latent_cache,
  latent_index,
  latent_statistics,
  latent_writer,
  sources,
)
from marjax.data.latent_index import CacheSettings, Choices
from marjax.latents.images import to_float
from marjax.parallel.mesh import make_mesh
from marjax.protocols import Codec
from marjax.release import directory, loading
from marjax.release.card import Card
from marjax.release.digest import digest
from marjax.train import autoencoder

CODECS = {"vq": VQ, **VARIANTS[Codec]}


@pytest.fixture(params=CODECS)
def cached(request, tmp_path, latents_config):
  """The codec, its parameters, the cache opened."""
  codec, folder = CODECS[request.param], tmp_path / "vq"
  params = noisy(jax.jit(codec.init_params)(jax.random.key(0)), 0.02)
  directory.save(folder, Card(name="vq", codec=codec), params)
  mesh = make_mesh(devices=jax.devices()[:1])
  release = loading.load(folder, mesh)
  source = sources.open_source(image_config(), "train")
  settings = CacheSettings(
    source=source.description,
    split="train",
    num_source=len(source),
    codec=codec,
    digest=digest(release.codec_params),
    shard_size=5,
  )
  choices = Choices(batch_size=2, num_threads=2)
  latent_writer.write(
    tmp_path / "cache", source, release, folder, mesh, settings, choices
  )
  config = latents_config(tmp_path / "cache")
  return codec, params, latent_cache.CachedLatents(config)


def test_records_are_what_the_codec_gives(cached):
  codec, params, latents = cached
  source = sources.open_source(image_config(), "train")
  images = np.stack([source[i]["image"] for i in range(23)])
  for is_mirrored in (False, True):
    record, *_ = latents.gather(np.arange(23), np.full(23, is_mirrored))
    pixels = to_float(images[:, :, ::-1] if is_mirrored else images)
    expected = jax.jit(codec.encode)(params, jnp.asarray(pixels))
    keys = jax.random.split(jax.random.key(1), 23)
    drawn = codec.draw({}, jax.tree.map(jnp.asarray, record), keys)
    if codec.num_codes:
      assert record["ids"].dtype == np.uint8
      np.testing.assert_array_equal(drawn, expected)
      assert len(np.unique(drawn)) > 4
    else:
      assert record["latents"].dtype == np.float16
      np.testing.assert_allclose(drawn, expected, rtol=2e-3, atol=2e-3)
  index = latent_index.read_index(latents.path)
  errors = {
    error.max_error
    for shard in index.shards.values()
    for error in shard.errors.values()
  }
  assert (errors == {0.0}) == bool(codec.num_codes)


def test_floats_have_statistics_and_codes_none(cached):
  codec, _, latents = cached
  if codec.num_codes:
    with pytest.raises(ValueError, match="holds codes, 0 to 23; expected lat"):
      latent_statistics.measure(latents)
    return
  found = latent_statistics.measure(latents)
  both = np.concatenate(
    [
      latents.gather(np.arange(23), np.full(23, coin))[0]["latents"]
      for coin in (False, True)
    ]
  ).astype(np.float64)
  assert found.all.std == pytest.approx(both.std(), rel=1e-9)
  assert found.channels[2].mean == pytest.approx(both[..., 2].mean(), rel=1e-9)


def test_a_run_of_other_latents_is_refused(cached, tmp_path):
  codec, _, latents = cached
  ours = autoencoder.of_run(codec, "", latents, tmp_path)
  assert (ours.digest, ours.params) == (latents.digest, {})
  changes = {
    "continuous": not codec.continuous,
    "patch": 1,
    "latent_scale": 1.0,
  }
  other = dataclasses.replace(codec, **changes)
  with pytest.raises(ValueError, match=r"holds .* of each image, and the"):
    autoencoder.of_run(other, "", latents, tmp_path)


@pytest.mark.parametrize(
  ("size", "dtype"),
  [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16")],
)
def test_ids_are_stored_in_the_smallest_type(size, dtype):
  codec = dataclasses.replace(VQ, codebook_size=size)
  assert codec.record_shapes()["ids"].dtype == dtype
  assert np.iinfo(dtype).max >= size - 1
