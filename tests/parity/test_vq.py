"""Converted VQ autoencoders against PyTorch, at base width 32.

Measured, of the largest value: z 2e-6, images 3e-6; ids equal.
"""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from convert import vq_twins

from marjax.convert import layouts, recognise, table
from marjax.latents.vq import VQConfig
from parity.published import assert_close

CASES = {
  "ldm": ("ldm", 4, True),
  "ldm, wide": ("ldm", 16, True),
  "ldm, without attention": ("ldm", 4, False),
  "llamagen": ("llamagen", 16, True),
}


SLOW = ("ldm, wide", "ldm, without attention")


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(case, marks=pytest.mark.slow if case in SLOW else ())
    for case in CASES
  ],
)
def both(request):
  """The twin, our configuration, the converted parameters."""
  twin = vq_twins.Twin(*CASES[request.param])
  arrays, _ = layouts.standard(twin.state_dict(), "a file")
  shapes = {name: array.shape for name, array in arrays.items()}
  config = recognise.autoencoder(shapes)
  target = jax.eval_shape(config.init_params, jax.random.key(0))
  return twin, config, table.convert(recognise.rules(shapes), arrays, target)


def images_of(size):
  random = np.random.default_rng(1)
  return random.uniform(-1, 1, (3, size, size, 3)).astype(np.float32)


def theirs(function, array):
  """NHWC in, NHWC out; ids stay as they are."""
  given = torch.from_numpy(np.array(array))
  with torch.no_grad():
    result = function(given.permute(0, 3, 1, 2) if given.ndim == 4 else given)
  return np.asarray(result.permute(0, 2, 3, 1) if result.ndim == 4 else result)


def test_what_the_shapes_say(both):
  twin, config, _ = both
  assert config == VQConfig(
    base_width=32,
    multipliers=(1, 2),
    z_channels=twin.z_channels,
    latent_channels=4,
    codebook_size=40,
    is_normalised=twin.is_llamagen,
    has_level_attention=twin.has_attention,
  )


def test_z_and_ids(both):
  twin, config, params = both
  images = images_of(24)
  z = theirs(twin.z, images)
  ours = jax.jit(config.features)(params, images)
  assert_close(ours, z, 2e-5)
  ids = theirs(lambda x: twin.ids(twin.z(x)), images)
  np.testing.assert_array_equal(jax.jit(config.encode)(params, images), ids)
  assert len(np.unique(ids)) > 10


def test_images(both):
  twin, config, params = both
  ids = np.random.default_rng(2).integers(0, 40, (2, 12, 12))
  ours = jax.jit(config.decode)(params, np.int32(ids))
  assert_close(ours, theirs(twin.decode, ids), 2e-5)


def test_continuous_latents_decode_as_their_ids(both):
  """Of another size of images than above."""
  twin, config, params = both
  scaled = dataclasses.replace(config, continuous=True, latent_scale=0.3)
  images = images_of(16)
  latents = jax.jit(scaled.encode)(params, images)
  assert_close(latents, 0.3 * theirs(twin.z, images), 2e-5)
  ids = theirs(lambda x: twin.ids(twin.z(x)), images)
  decoded = jax.jit(scaled.decode)(params, latents)
  assert_close(decoded, theirs(twin.decode, ids), 2e-5)
