"""Kernels on a mesh: each device computes its own images, heads, features."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from marjax.head import calls
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.layers import add_norm, attention, gelu
from marjax.layers.add_norm import Branch, Modulation, Norm
from marjax.layers.dropout import entry_seeds
from marjax.layers.gpu.attention import Sequences
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import RULES, batch_sharding

BATCH = ("data", "fsdp")


pytestmark = pytest.mark.usefixtures("kernels")


def draw(number, *shape):
  key = jax.random.key(number)
  return jax.random.normal(key, shape).astype(jnp.bfloat16)


def seeds_of(*pair):
  return entry_seeds(jnp.array(pair, jnp.uint32), 4)


def on_mesh(function, arrays, specs):
  """Value and gradients on eight devices, and the program's text."""
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = [
    jax.device_put(array, NamedSharding(mesh, spec))
    for array, spec in zip(arrays, specs, strict=True)
  ]
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    compiled = jax.jit(run(function)).lower(*placed).compile()
    return compiled(*placed), compiled.as_text()


def run(function):
  def total(*arrays):
    return jnp.sum(jnp.sin(function(*arrays).astype(jnp.float32)))

  def both(*arrays):
    argnums = tuple(range(len(arrays)))
    return jax.value_and_grad(total, argnums=argnums)(*arrays)

  return both


def agree(function, arrays, specs):
  """A mesh computes what one device does, and gathers nothing for it."""
  found, text = on_mesh(function, arrays, specs)
  wanted = jax.jit(run(function))(*arrays)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(
      np.asarray(one, np.float32),
      np.asarray(other, np.float32),
      rtol=2**-8,  # one rounding: sums over devices have another order
      atol=1e-6,
    )
  assert "all-gather" not in text


@pytest.mark.parametrize(
  "sequences",
  [
    Sequences((30, 40), (30, 40)),
    Sequences((30, 25), (30, 40), is_causal=True),
  ],
)
def test_attention_with_dropout(sequences):
  slots = P(BATCH, None, "tensor", None)
  num_valid = [jnp.array([30, 1, 12, 20]), jnp.array([40, 3, 40, 17])]
  seeds = jnp.stack([seeds_of(n, 7) for n in range(2)])

  def attend(query, key, value, bias):
    return attention.attend(
      query, key, value, bias, num_valid, sequences, seeds, 0.3
    )

  lengths = (sequences.queries, sequences.keys, sequences.keys)
  arrays = [draw(n, 4, sum(each), 4, 16) for n, each in enumerate(lengths)]
  arrays.append(draw(3, 3, 4, 16))
  agree(attend, arrays, [slots] * 3 + [P(None, "tensor", None)])


def test_gelu_with_dropout():
  def activate(product, bias):
    return gelu.gelu(product, bias, seeds_of(3, 9), 0.3)

  specs = [P(BATCH, None, "tensor"), P("tensor")]
  agree(activate, [draw(0, 4, 10, 256), draw(1, 256)], specs)


def norm_of(width, modulation=None):
  return Norm(*(draw(n, width).astype(jnp.float32) for n in (3, 4)), modulation)


def test_adding_and_normalising_with_modulations():
  width, batch = 128, (4, 2)

  def both(x, h, gate, modulation):
    bias = draw(5, 3 * width)
    gated = Modulation(gate, bias[2 * width :])
    branch = Branch(h, draw(8, width), gated)
    norm = norm_of(width, Modulation(modulation, bias[: 2 * width]))
    made = add_norm.add_norm(x, branch, norm, jnp.bfloat16)
    return made[0] + made[1]

  arrays = [draw(n, *batch, width) for n in (0, 1, 6)]
  arrays.append(draw(7, *batch, 2 * width))
  agree(both, arrays, [P(BATCH)] * 4)


def test_adding_and_normalising_with_the_modulations_of_a_step():
  width, steps, batch = 128, 3, (4, 2)

  def both(x, h, gate, modulation):
    bias = draw(5, 3 * width)
    branch = Branch(h, None, Modulation(gate, bias[2 * width :]))
    norm = norm_of(width, Modulation(modulation, bias[: 2 * width]))
    made = add_norm.add_norm(x, branch, norm, jnp.bfloat16, index=jnp.int32(1))
    return made[0] + made[1]

  arrays = [draw(n, *batch, width) for n in (0, 1)]
  arrays += [draw(6, steps, *batch, width), draw(7, steps, *batch, 2 * width)]
  agree(both, arrays, [P(BATCH)] * 2 + [P(None, BATCH)] * 2)


def test_adding_with_dropout_and_normalising():
  width = 128

  def both(x, h, bias):
    branch = Branch(h, bias, seeds=seeds_of(3, 9))
    made = add_norm.add_norm(x, branch, norm_of(width), jnp.bfloat16, 0.3)
    return made[0] + made[1]

  arrays = [draw(n, 4, 10, width) for n in (0, 1)] + [draw(2, width)]
  agree(both, arrays, [P(BATCH)] * 2 + [P()])


def test_a_head_is_called_on_a_mesh_of_gpus():
  """What it checks its parameters against is one row, which nobody splits."""
  config = DiffusionHeadConfig(4, width=128, depth=2, dtype="bfloat16")
  head, key = config.build(), jax.random.key(0)
  z, target = draw(0, 8, 4, 32), draw(1, 8, 4, 4)
  params = jax.jit(head.init)(key, z, target, key=key)
  calls._shapes.cache_clear()

  def loss(z, target):
    with nn.logical_axis_rules(RULES):
      return head.apply(params, z, target, key=key)["loss"]

  expected = loss(z, target)
  calls._shapes.cache_clear()
  mesh = make_mesh()
  with jax.set_mesh(mesh):
    arrays = jax.device_put((z, target), batch_sharding(mesh))
    on_mesh = jax.jit(loss)(*arrays)
  np.testing.assert_allclose(on_mesh, expected, rtol=1e-3)
