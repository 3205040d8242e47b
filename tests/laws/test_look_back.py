"""A look back at a cache equals attention to all slots before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.layers.attention import attend, look_back
from marjax.layers.gpu import instructions
from marjax.layers.gpu import look_back as kernel
from marjax.layers.gpu.attention import Sequences

LAYERS, BATCH, SLOTS, HEADS = 3, 2, 150, 2


def arrays(count, dim, dtype=jnp.bfloat16):
  shapes = [(BATCH, count, HEADS, dim)]
  shapes += 2 * [(LAYERS, BATCH, SLOTS, HEADS, dim)]
  keys = jax.random.split(jax.random.key(dim), 3)
  drawn = [jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True)]
  return [array.astype(dtype) for array in drawn]


@pytest.mark.parametrize("first", [0, 5, 63, 64, 134])
@pytest.mark.parametrize("count", [1, 5, 16])
def test_it_is_causal_attention_of_a_layer(count, first):
  query, keys, values = arrays(count, 16, jnp.float32)
  end = first + count
  for length in (end, SLOTS):
    mixed = look_back(
      query, keys, values, jnp.int32(1), jnp.int32(first), length
    )
    expected = attend(
      query,
      keys[1, :, :end],
      values[1, :, :end],
      jnp.zeros((3, HEADS, 16)),
      [jnp.full(BATCH, end)],
      Sequences((count,), (end,), is_causal=True),
    )
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


@pytest.mark.parametrize("dim", [16, 64, 80])
@pytest.mark.parametrize(("count", "first"), [(1, 0), (5, 61), (16, 134)])
def test_the_kernel_is_the_plain_code(dim, count, first):
  query, keys, values = arrays(count, dim)
  # What is never looked at may be anything.
  end = first + count
  keys, values = (a.at[:, :, end:].set(jnp.nan) for a in (keys, values))
  keys, values = (a.at[0].set(jnp.nan) for a in (keys, values))
  where = (jnp.int32(2), jnp.int32(first))
  made = kernel.forward(query, keys, values, *where)
  plain = look_back(query, keys, values, *where, end)
  np.testing.assert_allclose(
    made.astype(np.float32), plain.astype(np.float32), atol=0.03, rtol=0.02
  )


@pytest.mark.parametrize("dim", [64, 80])
def test_it_is_lowered_for_nvidia_gpus(dim, monkeypatch):
  monkeypatch.setattr(kernel, "is_interpreted", lambda: False)
  monkeypatch.setattr(instructions, "is_interpreted", lambda: False)
  *caches, index = (
    jax.ShapeDtypeStruct(shape, dtype)
    for shape, dtype in (
      ((BATCH, 5, HEADS, dim), "bfloat16"),
      ((LAYERS, BATCH, SLOTS, HEADS, dim), "bfloat16"),
      ((LAYERS, BATCH, SLOTS, HEADS, dim), "bfloat16"),
      ((), "int32"),
    )
  )
  traced = jax.jit(lambda *args: kernel.forward(*args)).trace(
    *caches, index, index
  )
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "look_back" in text
