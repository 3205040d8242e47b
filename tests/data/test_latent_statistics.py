"""Statistics are those of latents drawn from the cache."""

import json

import jax
import numpy as np
import pytest
import small

from marjax.data import latent_cache, latent_statistics
from marjax.latents.kl import Moments

NUM_DRAWS = 400


def test_they_are_those_of_many_draws(write_cache, latents_config, tmp_path):
  write_cache(tmp_path)
  latents = latent_cache.CachedLatents(latents_config(tmp_path))
  found = latent_statistics.measure(latents)
  assert found.num_examples == 23
  moments = np.concatenate(
    [
      latents.gather(np.arange(23), np.full(23, coin))[0]["moments"]
      for coin in (False, True)
    ]
  ).astype(np.float32)
  mean, log_variance = np.split(moments, 2, axis=-1)
  noise = np.random.default_rng(0).standard_normal((NUM_DRAWS, *mean.shape))
  drawn = mean + np.exp(log_variance / 2) * noise
  # NUM_DRAWS · 736 numbers a channel: their std is good to 0.002 of itself.
  for channel, spread in enumerate(found.channels):
    values = drawn[..., channel]
    assert spread.mean == pytest.approx(values.mean(), abs=0.01 * spread.std)
    assert spread.std == pytest.approx(values.std(), rel=0.01)
    assert spread.rms == pytest.approx(np.sqrt(np.mean(values**2)), rel=0.01)
  assert found.all.std == pytest.approx(drawn.std(), rel=0.005)
  assert found.all.std**2 == pytest.approx(found.all.rms**2 - found.all.mean**2)
  assert found.latent_scale == 1 / found.all.std
  scaled = small.CODEC.posterior_draw(
    Moments(mean, log_variance), jax.numpy.float32(noise[0])
  )
  std = float(scaled.std()) * found.latent_scale / small.CODEC.latent_scale
  assert std == pytest.approx(1, abs=0.05)


def test_parts_add_up_whatever_their_size(
  write_cache, latents_config, tmp_path, monkeypatch
):
  write_cache(tmp_path)
  latents = latent_cache.CachedLatents(latents_config(tmp_path))
  one = latent_statistics.measure(latents)
  monkeypatch.setattr(latent_statistics, "CHUNK", 4)
  many = latent_statistics.measure(latents, num_threads=3)
  assert many.all.std == pytest.approx(one.all.std, rel=1e-12)
  path = latent_statistics.save(tmp_path, one)
  saved = json.loads(path.read_text())
  assert saved["latent_scale"] == one.latent_scale
  assert saved["channels"][3]["std"] == one.channels[3].std
  assert str(one).endswith(f"latent_scale = 1 / std = {one.latent_scale:.4f}")
  assert len(str(one).splitlines()) == 1 + 1 + 4 + 1
