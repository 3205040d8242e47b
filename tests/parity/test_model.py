"""Backbone and loss against the published program's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.backbone.masked import MaskedDraws
from marjax.head.noise import LossDraws
from marjax.model import TrainingDraws
from marjax.tokens.order import to_order_space, to_raster
from parity.published import (
  TINY,
  assert_close,
  params_of,
  reveal_order,
  rows_of,
  tokens_of,
)


def draws_of(theirs: dict) -> TrainingDraws:
  order = reveal_order(theirs["orders"])
  batch, length = order.shape
  labels = theirs["labels"].astype(np.int32)
  if "drop_mask" in theirs:
    labels = np.where(theirs["drop_mask"], -1, labels)

  def in_order(rows):
    return to_order_space(jnp.asarray(rows_of(rows, batch, length)), order)

  num_known = jnp.full((batch,), length - int(theirs["num_masked"]))
  return TrainingDraws(
    backbone=MaskedDraws(order, num_known),
    condition=jnp.asarray(labels, jnp.int32),
    head=LossDraws(
      in_order(theirs["t"].astype(np.int32)), in_order(theirs["noise"])
    ),
  )


@pytest.fixture(params=["forward_train.npz", "forward_eval.npz"])
def theirs(request, golden):
  return golden(request.param)


def test_patches(theirs):
  tokens = tokens_of(theirs["imgs"])
  np.testing.assert_array_equal(tokens, theirs["patchified"])


def test_encoder_z_and_loss(theirs, model_params):
  draws, tokens = draws_of(theirs), tokens_of(theirs["imgs"])
  x = to_order_space(tokens, draws.backbone.order)
  model = TINY.build()
  longest = TINY.backbone.masking.known_bounds(16)[0][1]
  args = (
    x[:, :longest],
    draws.backbone.num_known,
    draws.backbone.order,
    draws.condition,
  )

  encoded = model.apply(
    {"params": model_params},
    *args,
    method=lambda model, *args: model.backbone.encode(*args),
  )
  known = int(draws.backbone.num_known[0])
  is_known = 1 - theirs["mask"].astype(int)
  by_raster = jnp.argsort(draws.backbone.order[:, :known], axis=1)
  tokens_out = to_order_space(encoded[:, 8 : 8 + known], by_raster)
  encoded = jnp.concatenate([encoded[:, :8], tokens_out], axis=1)
  assert (is_known.sum(1) == known).all()
  assert_close(encoded, theirs["encoder_out"], 2e-6)

  z = model.apply({"params": model_params}, *args, method="z")
  assert_close(to_raster(z, draws.backbone.order), theirs["z"], 2e-6)

  losses = model.apply({"params": model_params}, tokens, draws)
  weight = np.tile(theirs["mask"].reshape(-1), 4)
  for name, rows in (("loss", "loss_rows"), ("mse", "mse"), ("vlb", "vb")):
    expected = (theirs[rows] * weight).sum() / weight.sum()
    assert_close(losses[name], np.float32(expected), 2e-6)
  assert_close(losses["loss"], theirs["loss"], 2e-6)


def test_every_block(golden, model_params):
  theirs = golden("forward_train.npz")
  draws = draws_of(theirs)
  x = to_order_space(tokens_of(theirs["imgs"]), draws.backbone.order)
  known = int(draws.backbone.num_known[0])
  for depth in (1, 2):
    shallow = dataclasses.replace(
      TINY.backbone, encoder_depth=depth, decoder_depth=depth
    )
    config = dataclasses.replace(TINY, backbone=shallow)
    params = jax.tree_util.tree_map_with_path(
      lambda path, leaf, depth=depth: (
        leaf[:depth] if "layers" in jax.tree_util.keystr(path) else leaf
      ),
      model_params,
    )
    _check_stack(config, params, x, draws, known, theirs, depth)


def _check_stack(config, params, x, draws, known, theirs, depth):
  """Output of the last block of each stack, caught before its norm."""
  caught = {}

  def catch(next_method, args, kwargs, context):
    out = next_method(*args, **kwargs)
    name = context.module.name
    if name in ("encoder", "decoder") and context.method_name == "__call__":
      caught[name] = out
    if name == "embed_norm":
      caught["z_proj_ln"] = out
    return out

  import flax.linen as nn

  with nn.intercept_methods(catch):
    config.build().apply(
      {"params": params},
      x[:, :known],
      draws.backbone.num_known,
      draws.backbone.order,
      draws.condition,
      method="z",
    )
  to_slots = jnp.argsort(draws.backbone.order[:, :known], axis=1)
  encoder = jnp.concatenate(
    [
      caught["encoder"][:, :8],
      to_order_space(caught["encoder"][:, 8:], to_slots),
    ],
    axis=1,
  )
  assert_close(encoder, theirs[f"block/enc{depth - 1}"], 2e-6)
  if depth == config.backbone.decoder_depth == 2:
    decoder = jnp.concatenate(
      [
        caught["decoder"][:, :8],
        to_raster(caught["decoder"][:, 8:], draws.backbone.order),
      ],
      axis=1,
    )
    assert_close(decoder, theirs["block/dec1"], 2e-6)


def test_gradients(golden, model_params):
  theirs = golden("forward_train.npz")
  draws, tokens = draws_of(theirs), tokens_of(theirs["imgs"])

  def loss(params):
    return TINY.build().apply({"params": params}, tokens, draws)["loss"]

  ours = jax.jit(jax.grad(loss))(model_params)
  norm = jnp.sqrt(
    sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(ours))
  )
  assert_close(norm, theirs["grad_norm"], 2e-5)
  # The table turns the published gradients into our layout as well.
  names = [name for name in theirs if name.startswith("grad/")]
  assert len(names) == 5
  published = {
    name: np.zeros_like(array)
    for name, array in golden("weights_model.npz").items()
  }
  published.update({name[5:]: theirs[name] for name in names})
  expected = params_of(published)
  marks = params_of(
    {
      name: np.full_like(array, f"grad/{name}" in names)
      for name, array in published.items()
    }
  )
  compared = 0
  for mine, other, mark in zip(
    *map(jax.tree.leaves, (ours, expected, marks)), strict=True
  ):
    if mark.any():
      assert_close(mine * mark, other, 2e-5)
      compared += 1
  assert compared == 5
