"""The categorical head on a mesh that splits its kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.head.categorical import CategoricalHeadConfig, CategoricalSettings
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import RULES, batch_sharding, shardings

BATCH, TOKENS, WIDTH, CODES = 8, 3, 16, 11
HEAD = CategoricalHeadConfig(CODES, label_smoothing=0.1).build()
KEYS = jax.random.split(jax.random.key(0), (BATCH, TOKENS))
Z = jax.random.normal(jax.random.key(1), (2, BATCH, TOKENS, WIDTH))
TARGET = jax.random.randint(jax.random.key(2), (BATCH, TOKENS), 0, CODES)
SETTINGS = CategoricalSettings(top_k=7, top_p=0.9)


def run(params, z, nothing, target, keys):
  """Loss, gradients, and codes that guidance, top-k and top-p had a hand in."""

  def loss(params, z):
    return HEAD.apply({"params": params}, z, target)["loss"]

  with nn.logical_axis_rules(RULES):
    drawn = HEAD.apply(
      {"params": params},
      z,
      SETTINGS,
      key=keys,
      guidance=(nothing, 2.0),
      method="sample",
    )
    return jax.value_and_grad(loss, argnums=(0, 1))(params, z), drawn


@pytest.mark.parametrize(
  "axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
)
def test_numbers_are_those_of_one_device(axes):
  boxed = HEAD.boxed_init(jax.random.key(3), Z[0], TARGET)["params"]
  params = nn.unbox(boxed)
  expected = jax.jit(run)(params, *Z, TARGET, KEYS)
  mesh = make_mesh(**axes)
  where = shardings(jax.eval_shape(lambda: boxed), mesh)
  placed = jax.device_put(params, where)
  kernel = placed["linear"]["kernel"]
  parts = WIDTH // axes.get("fsdp", 1)
  assert kernel.addressable_shards[0].data.shape == (parts, CODES)
  arrays = jax.device_put((*Z, TARGET, KEYS), batch_sharding(mesh))
  with jax.set_mesh(mesh):
    (loss, gradients), drawn = jax.jit(run)(placed, *arrays)
  np.testing.assert_array_equal(drawn, expected[1])
  assert len(np.unique(drawn)) > 3
  for one, other in zip(
    jax.tree.leaves((loss, gradients)),
    jax.tree.leaves(expected[0]),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, atol=1e-6)
  assert jnp.isfinite(loss)
