"""What z may depend on, and what it does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import small

from marjax.head.reverse import ReverseSettings
from marjax.model import in_matmul_dtype
from marjax.tokens.order import random_orders, to_order_space, to_raster


def inputs(batch=3):
  keys = jax.random.split(jax.random.key(4), batch)
  order = random_orders(keys, 16)
  tokens = jax.random.normal(jax.random.key(5), (batch, 16, 4))
  return tokens, order, jnp.array([0, 5, 9]), jnp.array([1, 2, -1])


@jax.jit
def z_of(params, *inputs):
  return small.MODEL.build().apply({"params": params}, *inputs, method="z")


def test_unknown_tokens_have_zero_jacobian():
  params = small.params()
  tokens, order, num_known, labels = inputs()
  jacobian = jax.jit(
    jax.jacobian(lambda x: z_of(params, x, num_known, order, labels).sum(-1))
  )(to_order_space(tokens, order))
  size = jnp.abs(jacobian).max(axis=(1, 4))
  for image, known in enumerate(num_known.tolist()):
    assert (size[image, image, known:] == 0).all()
    assert (size[image, image, :known] > 0).all()


def test_padding_of_the_prefix_changes_nothing():
  params = small.params()
  tokens, order, num_known, labels = inputs()
  x = to_order_space(tokens, order)
  whole = z_of(params, x, num_known, order, labels)
  short = z_of(params, x[:, :9], num_known, order, labels)
  np.testing.assert_allclose(whole, short, atol=1e-5)


def test_z_depends_on_the_set_of_known_tokens_not_on_their_order():
  params = small.params()
  tokens, order, _, labels = inputs()
  num_known = jnp.array([6, 6, 6])
  shuffled = jnp.concatenate([order[:, :6][:, ::-1], order[:, 6:]], axis=1)
  first, second = (
    to_raster(z_of(params, to_order_space(tokens, o), num_known, o, labels), o)
    for o in (order, shuffled)
  )
  np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_label_matters_and_no_label_is_its_own():
  params = small.params()
  tokens, order, num_known, _ = inputs()
  x = to_order_space(tokens, order)
  results = [
    z_of(params, x, num_known, order, jnp.full((3,), label))
    for label in (-1, 0, 1)
  ]
  assert all(
    jnp.abs(a - b).max() > 1e-3
    for i, a in enumerate(results)
    for b in results[:i]
  )


def test_a_window_of_z_is_that_part_of_all_z():
  params = small.params()
  tokens, order, num_known, labels = inputs()
  x = to_order_space(tokens, order)
  whole = z_of(params, x, num_known, order, labels)
  window = jnp.array([9, 10, 15, 15])
  part = z_of(params, x, num_known, order, labels, window)
  np.testing.assert_allclose(part, whole[:, window], atol=1e-5)


def test_rounding_the_weights_first_changes_nothing():
  config = dataclasses.replace(
    small.MODEL,
    backbone=dataclasses.replace(small.MODEL.backbone, dtype="bfloat16"),
    head=dataclasses.replace(small.MODEL.head, dtype="bfloat16"),
  )
  params, (tokens, order, num_known, labels) = small.params(), inputs()
  x, model = to_order_space(tokens, order), config.build()

  def run(params):
    z = model.apply({"params": params}, x, num_known, order, labels, method="z")
    return z, model.apply(
      {"params": params},
      z,
      ReverseSettings(4, start=900),
      key=jax.random.key(0),
      method="sample",
    )

  rounded = in_matmul_dtype(config, params)
  for first, second in zip(run(params), run(rounded), strict=True):
    assert np.array_equal(first, second)
  kinds = {leaf.dtype.name for leaf in jax.tree.leaves(rounded)}
  assert kinds == {"bfloat16", "float32"}
