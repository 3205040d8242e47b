"""The matrix product of every linear layer, on all kinds of axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.layers import linear
from marjax.preflight import topology


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
  ("batch", "inputs", "features"),
  [((5,), (4,), (3,)), ((2, 3), (4,), (3,)), ((2, 3), (4, 2), (3,))],
)
def test_one_output_axis(
  monkeypatch, batch, inputs, features, has_bias, on_gpu
):
  check(monkeypatch, batch, inputs, features, has_bias, on_gpu)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("inputs", [(4,), (4, 2)])
def test_several_output_axes(monkeypatch, inputs, on_gpu):
  check(monkeypatch, (2, 3), inputs, (5, 7), True, on_gpu)


def check(monkeypatch, batch, inputs, features, has_bias, on_gpu):
  """The product is that of matrices, whatever adds the bias."""
  monkeypatch.setattr(linear, "platform", lambda: "gpu" if on_gpu else "cpu")
  rng = np.random.default_rng(0)
  x, kernel, bias = (
    rng.normal(size=shape).astype(np.float32)
    for shape in ((*batch, *inputs), (*inputs, *features), features)
  )
  made = linear.product(x, kernel, bias if has_bias else None)
  expected = np.tensordot(x, kernel, len(inputs)) + (bias if has_bias else 0.0)
  np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_the_mesh_tells_what_is_traced_for():
  pytest.importorskip("libtpu")
  chips = np.array(topology.devices_of("v5e:2x2")).reshape(-1)
  with jax.set_mesh(jax.sharding.Mesh(chips, ("data",))):
    assert linear.platform() == "tpu"
  assert linear.platform() == jax.default_backend()


def test_gradients_of_what_is_shared_are_added_product_by_product():
  x, *kernels = jax.random.normal(jax.random.key(0), (5, 8, 8))

  def total(x, share):
    each = zip(share(x, len(kernels)), kernels, strict=True)
    return sum(jnp.sum(jnp.sin(x @ kernel)) for x, kernel in each)

  plain = jax.grad(total)(x, lambda x, count: (x,) * count)
  np.testing.assert_array_equal(jax.grad(total)(x, linear.shared), plain)

  traced = jax.make_jaxpr(jax.grad(lambda x: total(x, linear.shared)))(x)
  equations = traced.eqns
  made_by = {out: eqn for eqn in equations for out in eqn.outvars}
  sums = [
    eqn
    for eqn in equations
    if eqn.primitive.name.startswith("add") and eqn.outvars[0].aval.shape
  ]
  assert len(sums) == len(kernels) - 1
  for eqn in sums:  # XLA then has each product take the sum so far
    assert made_by[eqn.invars[0]].primitive.name == "dot_general"
