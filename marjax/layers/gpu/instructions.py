"""Instructions of NVIDIA GPUs that a kernel must ask for by name.

jax compiles kernels without contracting a · b + c, and with subnormal numbers
kept: an exponential is then several instructions, and what should wait for
memory waits for arithmetic. Here it is one, in float32, with subnormal numbers
taken as 0.

`fma` rounds once. `exp2` is the chip's approximation, off by a few units in the
last place.

Where kernels are interpreted, on other platforms, they are jax's own.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from marjax.layers.placed import platform


def is_interpreted() -> bool:
  """Whether kernels traced now are interpreted: there is no GPU for them."""
  return platform() != "gpu"


def fma(a, b, c):
  """a · b + c."""
  if is_interpreted():
    return a * b + c
  return _call("fma.rn.ftz.f32 $0, $1, $2, $3;", a, b, c)


def exp2(x):
  """2 to the x."""
  return jnp.exp2(x) if is_interpreted() else _call(_EXP2, x)


_EXP2 = "ex2.approx.ftz.f32 $0, $1;"


def _call(instruction: str, *args):
  args = jnp.broadcast_arrays(*(jnp.asarray(a, jnp.float32) for a in args))
  (made,) = plgpu.elementwise_inline_asm(
    instruction,
    args=args,
    constraints=",".join(["=f", *("f" for _ in args)]),
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, jnp.float32)],
  )
  return made
