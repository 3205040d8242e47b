"""The denoiser's modulations on a mesh: products stay with their weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from marjax.head.denoiser import Denoiser
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import RULES, shardings

ROWS, WIDTH = 8, 32


def test_parts_are_gathered_but_never_dealt_out_anew():
  """As weights would be that are put side by side, each split by features."""
  net = Denoiser(4, WIDTH, 2, jnp.dtype("float32"))
  x, z = jnp.zeros((ROWS, 4)), jnp.zeros((ROWS, 16))
  t = jnp.zeros(ROWS, jnp.int32)
  y = jax.random.normal(jax.random.key(0), (ROWS, WIDTH))

  def boxed():
    return net.init(jax.random.key(1), x, t, z)

  def modulations(params, y):
    return net.apply(params, y, method=lambda net, y: net.modulation()(y))

  params = jax.tree.map(lambda leaf: leaf + 1.0, nn.unbox(boxed()))
  wanted = modulations(params, y)
  mesh = make_mesh(data=4, fsdp=1, tensor=2)
  placed = jax.device_put(params, shardings(jax.eval_shape(boxed), mesh))
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    program = jax.jit(modulations).lower(placed, y).compile()
    found = program(placed, y)
  moves = ("all-to-all", "collective-permute", "all-reduce")
  assert not [move for move in moves if move in program.as_text()]
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5),
    found,
    wanted,
  )
