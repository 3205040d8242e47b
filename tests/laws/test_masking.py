"""Training masks: distribution, strata, and what the loss looks at."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from marjax.model import draw
from marjax.tokens.masking import MaskConfig


@pytest.mark.parametrize("num_strata", [1, 4])
def test_mean_number_of_known_tokens_is_that_of_the_distribution(num_strata):
  config = MaskConfig(num_strata=num_strata)
  keys = jax.random.split(jax.random.key(0), 20_000)
  known = np.asarray(config.draw_num_known(keys, 256))
  # Mean ratio 0.867; ceil adds half a token.
  assert abs(known.mean() - (256 * (1 - 0.86702) - 0.5)) < 0.5
  assert known.min() == 0
  assert known.max() == 76


def test_strata_bound_their_images():
  config = MaskConfig(num_strata=4)
  keys = jax.random.split(jax.random.key(0), 4_000)
  known = np.asarray(config.draw_num_known(keys, 256)).reshape(-1, 4)
  for g, (fewest, most) in enumerate(config.known_bounds(256)):
    assert known[:, g].min() >= fewest
    assert known[:, g].max() <= most


def test_one_ratio_per_batch_by_option():
  keys = jax.random.split(jax.random.key(0), 64)
  per_batch = MaskConfig(per="batch").draw_num_known(keys, 256)
  assert len(set(per_batch.tolist())) == 1
  per_image = MaskConfig().draw_num_known(keys, 256)
  assert len(set(per_image.tolist())) > 10


def test_strata_do_not_change_the_loss_of_given_draws():
  params, batch = small.params(), 8
  tokens = jax.random.normal(jax.random.key(5), (batch, 16, 4))
  keys = jax.random.split(jax.random.key(6), batch)
  draws = jax.jit(functools.partial(draw, small.MODEL))(keys, jnp.arange(batch))

  def loss(config):
    apply = jax.jit(config.build().apply)
    return apply({"params": params}, tokens, draws)["loss"]

  wide = MaskConfig(num_strata=1, lowest=0.1, std=0.5)
  backbone = dataclasses.replace(small.MODEL.backbone, masking=wide)
  plain = dataclasses.replace(small.MODEL, backbone=backbone)
  np.testing.assert_allclose(loss(small.MODEL), loss(plain), rtol=1e-5)


def test_known_tokens_do_not_contribute_as_targets():
  params, batch = small.params(), 4
  tokens = jax.random.normal(jax.random.key(5), (batch, 16, 4))
  keys = jax.random.split(jax.random.key(6), batch)
  draws = jax.jit(functools.partial(draw, small.MODEL))(keys, jnp.arange(batch))
  model = small.MODEL.build()

  @jax.jit
  def loss(targets):
    from marjax.tokens.order import to_order_space

    x = to_order_space(tokens, draws.backbone.order)
    z = model.apply(
      {"params": params},
      x,
      draws.backbone.num_known,
      draws.backbone.order,
      draws.condition,
      method="z",
    )
    is_unknown = jnp.arange(16) >= draws.backbone.num_known[:, None]
    head = small.MODEL.head.build()
    return head.apply(
      {"params": params["head"]},
      z,
      to_order_space(targets, draws.backbone.order),
      is_unknown.astype(jnp.float32),
      key=draws.head,
    )["loss"]

  whole = jax.jit(model.apply)({"params": params}, tokens, draws)["loss"]
  np.testing.assert_allclose(loss(tokens), whole, rtol=1e-5)


def test_a_batch_that_the_strata_do_not_divide_is_refused():
  keys = jax.random.split(jax.random.key(0), 6)
  with pytest.raises(ValueError, match="expected a multiple of"):
    MaskConfig(num_strata=4).draw_num_known(keys, 256)
