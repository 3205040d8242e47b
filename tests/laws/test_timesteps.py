"""Embeddings of many timesteps: looked up, they are those of each row."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.head import denoiser
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.timesteps import NUM_TIMESTEPS, rows_at
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import RULES


def test_rows_and_their_gradient_are_those_of_indexing():
  table = jax.random.normal(jax.random.key(0), (NUM_TIMESTEPS, 3))
  t = jnp.array([[0, 999, 7], [7, 7, 0]])
  along = jax.random.normal(jax.random.key(1), (2, 3, 3))

  def run(lookup):
    rows, pull = jax.vjp(lambda table: lookup(table, t), table)
    return rows, pull(along)[0]

  found, wanted = run(rows_at), run(lambda table, t: table[t])
  np.testing.assert_array_equal(found[0], wanted[0])
  np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [None, (8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_the_loss_on_gpus_is_that_of_others(sizes, monkeypatch):
  head = DiffusionHeadConfig(4, width=16, depth=1, repeats=4).build()
  z, target = (
    jax.random.normal(jax.random.key(n), (304, 1, 4)) for n in range(2)
  )
  params = head.init(jax.random.key(2), z, target, key=jax.random.key(3))
  params = jax.tree.map(
    lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(4), leaf.shape),
    params,
  )

  def loss(params):
    return head.apply(params, z, target, key=jax.random.key(5))["loss"]

  plain = jax.value_and_grad(loss)(params)
  looked_up = []
  monkeypatch.setattr(denoiser, "platform", lambda: "gpu")
  monkeypatch.setattr(
    denoiser.timesteps,
    "rows_at",
    lambda *args: looked_up.append(args) or rows_at(*args),
  )
  with contextlib.ExitStack() as stack:
    if sizes:
      mesh = make_mesh(*sizes)
      stack.enter_context(jax.set_mesh(mesh))
      stack.enter_context(nn.logical_axis_rules(RULES))
    found = jax.jit(jax.value_and_grad(loss))(params)
  assert looked_up
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
