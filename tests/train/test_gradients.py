"""Microbatches change neither loss nor gradient; moments become tokens."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax import keys
from marjax.model import draw, init_params
from marjax.parallel.mesh import mesh_for
from marjax.parallel.rules import batch_sharding
from marjax.tokens.patches import patchify
from marjax.train import flops
from marjax.train.gradients import (
  batch_shapes,
  draw_for,
  loss_and_gradient,
)
from marjax.train.step import make_train_program

EXPERIMENT = dataclasses.replace(
  small.EXPERIMENT,
  model=dataclasses.replace(
    small.MODEL,
    backbone=dataclasses.replace(
      small.MODEL.backbone, attention_dropout=0.0, projection_dropout=0.0
    ),
  ),
)


def of_batch(experiment, params, batch, step):
  """Losses and gradient of a batch by its own draws."""
  drawn = draw_for(experiment, batch, step)
  return loss_and_gradient(experiment, params, *drawn, step)


def in_parts(count):
  training = dataclasses.replace(EXPERIMENT.training, num_microbatches=count)
  return dataclasses.replace(EXPERIMENT, training=training)


@pytest.mark.slow
def test_microbatches_add_up_to_the_batch():
  def run(experiment):
    compute = jax.jit(of_batch, static_argnums=0)
    return compute(experiment, small.params(), small.images(16), 3)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    run(in_parts(4)),
    run(in_parts(1)),
  )


def with_remat(remat, dropout=0.0):
  backbone = dataclasses.replace(
    EXPERIMENT.model.backbone,
    remat=remat,
    encoder_depth=2,
    attention_dropout=dropout,
    projection_dropout=dropout,
  )
  model = dataclasses.replace(EXPERIMENT.model, backbone=backbone)
  return dataclasses.replace(EXPERIMENT, model=model)


@pytest.mark.slow
def test_what_is_recomputed_changes_no_gradient():
  params = small.params(model=with_remat("none").model)
  compute = jax.jit(of_batch, static_argnums=0)
  plain, *others = (
    compute(with_remat(remat, dropout=0.3), params, small.images(16), 3)
    for remat in ("none", "save_matmuls", "full")
  )
  for other in others:
    assert_gradients_close(other, plain)


@pytest.mark.slow
def test_training_at_rate_0_is_the_loss_without_dropout():
  """Which is the one that is held against the published program."""
  keys_of_images = keys.at(keys.root(1), 0, jnp.arange(16))
  tokens = jax.random.normal(jax.random.key(2), (16, 16, 4))

  def gradients(remat, deterministic):
    config = with_remat(remat).model
    draws = draw(config, keys_of_images, small.images(16)["label"])

    def loss(params):
      made = config.build().apply(
        {"params": params},
        tokens,
        draws,
        deterministic=deterministic,
        method="loss",
        rngs={"dropout": jax.random.key(3)},
      )
      return made["loss"]

    return jax.jit(jax.value_and_grad(loss))(small.params(model=config))

  without = gradients("full", deterministic=True)
  for remat in ("none", "full"):
    assert_gradients_close(gradients(remat, deterministic=False), without)


def assert_gradients_close(found, wanted):
  """And none of them is zero."""
  for path, one in jax.tree.leaves_with_path(found):
    assert np.any(one), jax.tree_util.keystr(path)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    found,
    wanted,
  )


def test_saving_matmuls_recomputes_fewer_of_them():
  def products(remat):
    experiment = with_remat(remat)
    params = jax.eval_shape(
      lambda: nn.unbox(init_params(experiment.model, keys.root(0)))
    )
    step = functools.partial(of_batch, experiment)
    return flops.count(step, params, small.images(16), 3)

  assert products("full") > products("save_matmuls") > products("none")


@pytest.mark.slow
def test_microbatches_on_a_mesh_keep_their_images():
  experiment = in_parts(2)
  losses = []
  for devices in (jax.devices()[:1], jax.devices()[:4]):
    mesh = mesh_for(experiment, devices)
    program = make_train_program(experiment, mesh, num_examples=64)
    batch = jax.device_put(small.images(16), batch_sharding(mesh))
    losses.append(float(program.step(program.init(), batch)[1]["loss"]))
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def cached():
  """The small experiment, but from moments of the small autoencoder."""
  return dataclasses.replace(
    EXPERIMENT,
    codec=small.CODEC,
    data=dataclasses.replace(EXPERIMENT.data, source="latents", channels=3),
    model=dataclasses.replace(
      small.MODEL,
      backbone=dataclasses.replace(
        small.MODEL.backbone, num_tokens=16, token_dim=4
      ),
    ),
  )


def test_each_step_draws_latents_anew_from_the_moments():
  experiment = cached()
  shape = (4, *small.CODEC.latent_shape)
  mean = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  std = 0.5
  moments = np.concatenate([mean, np.full(shape, 2 * np.log(std))], -1)

  def draws(step):
    none = jnp.zeros(4, jnp.int32)
    batch = {"moments": moments, "id": jnp.arange(4), "label": none}
    return draw_for(experiment, batch, step)[0]

  expected = patchify(
    jnp.asarray(mean) * small.CODEC.latent_scale, small.CODEC.patch
  )
  noise = np.stack([draws(step) - expected for step in range(200)])
  spread = std * small.CODEC.latent_scale
  assert noise.std() == pytest.approx(spread, rel=0.02)
  assert abs(noise.mean()) < 0.02 * spread
  assert not np.array_equal(draws(0), draws(1))
  np.testing.assert_array_equal(draws(0), draws(0))


def test_shapes_of_batches():
  images, moments = batch_shapes(EXPERIMENT), batch_shapes(cached())
  assert images["image"].shape == (16, 8, 8, 1)
  rows, columns, channels = small.CODEC.latent_shape
  assert moments["moments"].shape == (16, rows, columns, 2 * channels)
  assert moments["moments"].dtype == jnp.float16
