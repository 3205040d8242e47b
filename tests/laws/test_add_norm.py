"""The kernels that add a branch and normalise, against plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.reverse import ReverseSettings
from marjax.layers import add_norm as module
from marjax.layers.add_norm import Branch, Modulation, Norm, add_norm
from marjax.layers.dropout import entry_seeds, is_kept
from marjax.layers.gpu import add_norm as add_norm_kernel

SHAPE, STEPS = (3, 30, 384), 4  # three parts of 128; more rows than a program's
WIDTH = SHAPE[-1]
RATE = 0.3


def draw(number, shape, dtype=jnp.bfloat16):
  key = jax.random.fold_in(jax.random.key(0), number)
  return jax.random.normal(key, shape).astype(dtype)


def arrays(kind="all", steps=()):
  """x, branch and norm of one kind of neighbours."""
  width = WIDTH

  def modulation(number, parts):
    bias = draw(7, (3 * width,))
    bias = bias[2 * width :] if parts == 1 else bias[: 2 * width]
    # A step's are read from where all three stand.
    values = draw(
      number, (*steps, *SHAPE[:-1], 3 * width if steps else bias.size)
    )
    return Modulation(values, bias)

  vectors = [draw(number, (width,), jnp.float32) for number in (10, 11)]
  seeds = entry_seeds(jnp.array([3, 9], jnp.uint32), SHAPE[0])
  branch, norm = {
    "nothing to add": (None, Norm(*vectors)),
    "first of the head": (None, Norm(*vectors, modulation(4, 2))),
    "of the head": (
      Branch(draw(1, SHAPE), draw(8, (width,)), modulation(2, 1)),
      Norm(*vectors, modulation(4, 2)),
    ),
    "last of the head": (
      Branch(draw(1, SHAPE), draw(8, (width,)), modulation(2, 1)),
      Norm(None, None, modulation(4, 2)),
    ),
    "transformer": (Branch(draw(1, SHAPE), draw(8, (width,))), Norm(*vectors)),
    "dropout": (
      Branch(draw(1, SHAPE), draw(8, (width,)), seeds=seeds),
      Norm(*vectors),
    ),
    "all": (
      Branch(draw(1, SHAPE), draw(8, (width,)), modulation(2, 1), seeds),
      Norm(*vectors, modulation(4, 2)),
    ),
  }[kind]
  return draw(0, SHAPE), branch, norm


KINDS = (
  "nothing to add",
  "first of the head",
  "of the head",
  "last of the head",
  "transformer",
  "dropout",
  "all",
)


def defined(x, branch, norm, step=None):
  """The definition, in float32 but for the rounding of x."""
  x, branch, norm = jax.tree.map(
    lambda a: a if a.dtype == jnp.uint32 else a.astype(jnp.float32),
    (x, branch, norm),
  )

  def of(modulation, first, last):
    values = modulation.values if step is None else modulation.values[step]
    if step is not None:
      values = values[..., first * WIDTH : last * WIDTH]
    return values + modulation.bias

  if branch is not None:
    h = branch.h + branch.bias
    if branch.seeds is not None:
      h = jnp.where(is_kept(branch.seeds, h.shape, RATE), h / (1 - RATE), 0.0)
    if branch.gate is not None:
      h = h * of(branch.gate, 2, 3)
    x = x + h
    rounded = jax.lax.stop_gradient(x.astype(jnp.bfloat16) - x)
    x = x + rounded
  centred = x - jnp.mean(x, -1, keepdims=True)
  u = centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)
  if norm.scale is not None:
    u = u * norm.scale + norm.bias
  if norm.modulation is not None:
    shift, gain = jnp.split(of(norm.modulation, 0, 2), 2, axis=-1)
    u = u * (1 + gain) + shift
  return x, u


def assert_close(found, wanted, rounding=2**-8):
  """Up to one rounding, and to what float32 sums leave of large numbers."""
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
  ):
    if one.dtype == jax.dtypes.float0:
      continue
    other = np.asarray(other, np.float32)
    tolerance = rounding if one.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
      np.asarray(one, np.float32),
      other,
      rtol=tolerance,
      atol=1e-5 * max(1.0, np.abs(other).max()),
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_the_definition(kernels, kind, dtype):
  given = arrays(kind)
  found = add_norm(*given, dtype, RATE)
  assert [array.dtype for array in found] == [jnp.bfloat16, dtype]
  assert_close(found, defined(*given))


@pytest.mark.parametrize("kind", ["first of the head", "of the head"])
def test_the_kernel_takes_a_step_of_several(kernels, kind):
  given = arrays(kind, steps=(STEPS,))
  found = add_norm(*given, jnp.bfloat16, index=jnp.int32(2))
  assert_close(found, defined(*given, step=2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_definition(kernels, kind, dtype):
  given = arrays(kind)
  gradients = draw(20, SHAPE), draw(21, SHAPE, dtype)

  def pulled(function):
    made, pull = jax.vjp(function, *given)
    return pull(
      tuple(
        one.astype(two.dtype) for one, two in zip(gradients, made, strict=True)
      )
    )

  found = pulled(lambda *given: add_norm(*given, dtype, RATE))
  assert_close(found, pulled(defined), rounding=2**-7)  # both are rounded


@pytest.mark.parametrize("kind", ["of the head", "all"])
def test_few_programs_share_all_rows(kernels, monkeypatch, kind):
  """As for batches of many more rows; but for the order of sums."""
  given = arrays(kind)

  def pulled():
    add_norm_kernel.backward.clear_cache()
    made, pull = jax.vjp(lambda *a: add_norm(*a, jnp.bfloat16, RATE), *given)
    return pull((draw(20, SHAPE), draw(21, SHAPE))), made

  by_default = pulled()
  monkeypatch.setattr(add_norm_kernel, "_PROGRAMS", 2)  # of 45 rows, not 32
  found = pulled()
  assert_close(found, by_default, rounding=0.0)


def test_what_is_added_without_a_norm_is_the_definition():
  for kind in KINDS:
    x, branch, norm = arrays(kind)
    given = jax.tree.map(
      lambda a: a if a.dtype == jnp.uint32 else a.astype(jnp.float32),
      (x, branch),
    )
    made = module.added(*given, RATE).astype(jnp.bfloat16)
    assert_close(made, defined(x, branch, norm)[0])


@pytest.mark.parametrize("steps", [(), (STEPS,)])
def test_a_platform_without_kernels_computes_the_same(request, steps):
  x, branch, norm = arrays(steps=steps)
  index = jnp.int32(1) if steps else None

  def total(x, h):
    branch_of_h = branch._replace(h=h)
    made = add_norm(x, branch_of_h, norm, jnp.bfloat16, RATE, index)
    return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in made)

  plain = jax.value_and_grad(total, argnums=(0, 1))(x, branch.h)
  request.getfixturevalue("traced_for_gpus")
  assert "pallas_call" in str(jax.make_jaxpr(total)(x, branch.h))
  fused = jax.value_and_grad(total, argnums=(0, 1))(x, branch.h)
  for one, other in zip(
    jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_array_equal(one, other)


def perturbed_head(z, target):
  """A head whose zero weights are not zero, and its parameters."""
  config, key = (
    DiffusionHeadConfig(4, 128, 2, dtype="bfloat16"),
    jax.random.key(3),
  )
  head = config.build()
  return head, jax.tree.map(
    lambda leaf: leaf + 0.05 * jax.random.normal(key, leaf.shape),
    jax.jit(head.init)(key, z, target, key=key),
  )


@pytest.mark.slow
def test_tokens_and_gradients_with_kernels_are_those_without(request):
  """Up to rounding to bfloat16 at other places."""
  z, target = (
    draw(20, (2, 3, 16), jnp.float32),
    draw(21, (2, 3, 4), jnp.float32),
  )
  head, params = perturbed_head(z, target)
  key = jax.random.key(4)

  def made():
    settings = ReverseSettings(4, start=700)
    tokens = head.apply(params, z, settings, key=key, method="sample")

    def loss(params, z):
      return head.apply(params, z, target, key=key)["loss"]

    return tokens, jax.grad(loss, argnums=(0, 1))(params, z)

  # Functions of their own: jax remembers what it traced.
  plain = jax.jit(lambda: made())()
  request.getfixturevalue("kernels")
  found = jax.jit(lambda: made())()
  assert not np.array_equal(found[0], plain[0])  # the kernel was used
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(plain), strict=True
  ):
    error = np.sqrt(np.mean(np.square(one - other)))
    assert error < 0.02 * np.sqrt(np.mean(np.square(other)))
