"""All kernels together: a training stack with them is one without."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.backbone.blocks import BlockConfig
from marjax.backbone.stack import Stack

CONFIG = BlockConfig(128, 2, 2, 0.3, 0.3, "bfloat16")
LENGTHS, NUM_VALID = (6, 10), [jnp.array([3, 6]), jnp.array([10, 7])]


@pytest.mark.parametrize(
  "remat", ["full", pytest.param("none", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("how", ["traced_for_gpus", "kernels"])
def test_a_training_stack_has_the_same_gradients(request, how, remat):
  """Up to rounding to bfloat16 at other places."""
  stack = Stack(CONFIG, depth=2, remat=remat)
  x, along = (
    jax.random.normal(jax.random.key(n), (2, 16, 128)) for n in range(2)
  )
  fresh = stack.init(jax.random.key(2), x, LENGTHS, NUM_VALID, True)
  params = jax.tree.map(  # biases that are not zero
    lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(3), leaf.shape),
    nn.unbox(fresh),
  )

  def run():
    def total(params, x):
      rngs = {"dropout": jax.random.key(4)}
      made = stack.apply(
        params, x.astype(jnp.bfloat16), LENGTHS, NUM_VALID, False, rngs=rngs
      )
      return jnp.sum(along * made), made

    differentiated = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    return differentiated(params, x)[::-1]

  plain = run()
  request.getfixturevalue(how)
  found = run()
  assert np.array_equal(found[0], plain[0]) == (how == "traced_for_gpus")
  leaves = zip(parts_of(found), parts_of(plain), strict=True)
  for (name, one), (_, other) in leaves:
    error, size = (np.sqrt(np.mean(np.square(a))) for a in (one - other, other))
    assert error < 0.02 * size, (name, error / size)


@pytest.mark.parametrize(
  ("lengths", "deterministic"), [((16,), False), (LENGTHS, True)]
)
def test_a_window_is_of_one_sequence_without_dropout(lengths, deterministic):
  stack, x = Stack(CONFIG, depth=2), jnp.zeros((2, 16, 128))
  params = stack.init(jax.random.key(2), x, LENGTHS, NUM_VALID, True)
  window, rngs = jnp.arange(3), {"dropout": jax.random.key(4)}
  with pytest.raises(ValueError, match="window is given with dropout, seve"):
    stack.apply(params, x, lengths, NUM_VALID, deterministic, window, rngs=rngs)


def parts_of(tree):
  """Leaves with their names; those of queries, keys and values apart.

  Not the bias of keys, whose gradient is 0 but for rounding.
  """
  for path, leaf in jax.tree.leaves_with_path(tree):
    leaf, name = np.asarray(leaf, np.float32), jax.tree_util.keystr(path)
    if "qkv" not in name:
      yield name, leaf
      continue
    each = zip("qkv", np.moveaxis(leaf, leaf.shape.index(3), 0), strict=True)
    for part, values in each:
      if not ("bias" in name and part == "k"):
        yield f"{name} {part}", values
