"""What every kind of condition must hold to."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax import schema
from marjax.parallel.mesh import make_mesh
from marjax.parallel.rules import RULES, batch_sharding
from marjax.protocols import Condition
from protocols.parts import kinds, noisy

CONDITIONS = kinds(Condition)
ASKED = {"classes": jnp.array([0, 4, 2, -1, 1, 0, 3, -1])}


@pytest.fixture(scope="module", params=CONDITIONS)
def condition(request):
  config, asked = CONDITIONS[request.param], ASKED[request.param]
  module = config.build(32)
  params = jax.jit(module.init)(jax.random.key(0), asked)
  return config, module, noisy(nn.unbox(params)), asked


def test_its_config_is_complete(condition):
  config = condition[0]
  assert isinstance(config, Condition)
  assert schema.from_dict(type(config), schema.to_dict(config)) == config
  assert 0 <= config.dropout < 1


def test_slots_of_each_and_of_nothing(condition):
  config, module, params, asked = condition
  slots = module.apply(params, asked)
  assert slots.shape == (8, config.num_slots, 32)
  assert slots.dtype == jnp.float32
  nothing = config.nothing(8)
  assert jax.tree.structure(nothing) == jax.tree.structure(asked)
  empty = module.apply(params, nothing)
  assert np.all(empty == empty[:1])
  assert np.abs(empty[0] - slots[0]).max() > 1e-3


def test_what_people_ask_for_is_understood_or_refused(condition):
  config, module, params, asked = condition
  parsed = config.parse(np.asarray(asked), None, ())
  np.testing.assert_array_equal(parsed, asked)
  nothing = config.parse(None, 3, ())
  np.testing.assert_array_equal(nothing, config.nothing(3))
  with pytest.raises(ValueError, match="; expected") as caught:
    config.parse(object(), None, ())
  assert "\n" not in str(caught.value)
  slots = module.apply(params, jnp.asarray(parsed))
  np.testing.assert_array_equal(slots, module.apply(params, asked))


def test_it_depends_on_what_is_asked_alone(condition):
  _, module, params, asked = condition
  slots = module.apply(params, asked)
  np.testing.assert_array_equal(module.apply(params, asked[2:4]), slots[2:4])
  mesh = make_mesh(devices=jax.devices()[:8])

  def apply(params, asked):
    with nn.logical_axis_rules(RULES):
      return module.apply(params, asked)

  with jax.set_mesh(mesh):
    placed = jax.device_put(asked, batch_sharding(mesh))
    on_mesh = jax.jit(apply)(params, placed)
  np.testing.assert_allclose(on_mesh, slots, atol=1e-6)


def test_the_gradient_reaches_every_parameter(condition):
  _, module, params, asked = condition
  gradients = jax.grad(lambda p: jnp.sum(jnp.sin(module.apply(p, asked))))(
    params
  )
  for path, leaf in jax.tree.leaves_with_path(gradients):
    assert np.any(np.asarray(leaf)), jax.tree_util.keystr(path)
