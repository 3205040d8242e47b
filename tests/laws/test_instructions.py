"""Kernels as GPUs get them: lowered, which needs no GPU, but not run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.layers.add_norm import Branch, Modulation, Norm
from marjax.layers.gpu import add_norm as add_norm_kernel
from marjax.layers.gpu import attention as attention_kernel
from marjax.layers.gpu import instructions
from marjax.layers.gpu.attention import Inputs, Sequences

SHAPE = (2, 40, 128)
FMA, EXP2 = "fma.rn.ftz", "ex2.approx.ftz"


def zeros(*shape, dtype=jnp.bfloat16):
  return jnp.zeros(shape, dtype)


def attention(*, backward: bool, is_causal: bool = False):
  slots, rows = zeros(2, 70, 2, 64), zeros(2, 2, 70, dtype=jnp.float32)
  counts = zeros(2, 1, dtype=jnp.int32)
  given = Inputs(slots, slots, slots, counts, rows.astype(jnp.uint32))
  sequences = Sequences((70,), (70,), is_causal)
  if not backward:
    return lambda given: attention_kernel.forward(sequences, 0.1, given), given
  return lambda given: attention_kernel.backward(
    sequences, 0.1, given, slots, rows, slots
  ), given


def add_norm(*, backward: bool):
  width, vector = SHAPE[-1], zeros(SHAPE[-1], dtype=jnp.float32)
  row = zeros(*SHAPE[:-1], dtype=jnp.float32)
  gate = Modulation(zeros(*SHAPE), zeros(width))
  modulation = Modulation(zeros(*SHAPE[:-1], 2 * width), zeros(2 * width))
  given = (
    zeros(*SHAPE),
    Branch(zeros(*SHAPE), zeros(width), gate, zeros(2, dtype=jnp.uint32)),
    Norm(vector, vector, modulation),
  )
  if not backward:
    dtype = jnp.dtype(jnp.bfloat16)
    return lambda given: add_norm_kernel.forward(
      dtype, 0.1, *given, None
    ), given
  return lambda given: add_norm_kernel.backward(
    0.1, (given[0],) * 2, (given[0], row, row), *given[1:]
  ), given


@pytest.mark.parametrize(
  ("kernel", "asks_for"),
  [
    (attention, (FMA, EXP2)),
    (functools.partial(attention, is_causal=True), (FMA, EXP2)),
    (add_norm, (FMA,)),
  ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_kernels_ask_for_instructions_by_name(
  monkeypatch, kernel, asks_for, backward
):
  monkeypatch.setattr(instructions, "platform", lambda: "gpu")
  function, given = kernel(backward=backward)
  lowered = jax.jit(function).trace(given).lower(lowering_platforms=("cuda",))
  text = lowered.as_text()
  assert all(name in text for name in asks_for)


def test_elsewhere_they_are_jax_s_own():
  x = jnp.linspace(-3.0, 3.0, 64)
  np.testing.assert_array_equal(instructions.fma(x, 2.0, 1.0), x * 2.0 + 1.0)
  np.testing.assert_array_equal(instructions.exp2(x), jnp.exp2(x))
