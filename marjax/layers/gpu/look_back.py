"""A look back at a cache of keys and values, as a kernel for NVIDIA GPUs.

    o = softmax(q·kᵀ / √H) · v       of a few new slots, each to all up to it

1. A program has the queries of one head of one image, at most `QUERIES`, and
   goes over keys and values block by block with a running maximum and sum, as
   `marjax.layers.gpu.attention` does; no block after the last query's is read.
2. It reads the layer's part of the whole cache where that lies. XLA would cut
   the layer out, copy it into the order that cuBLAS wants, and keep the whole
   cache in that order, in which a new slot is scattered over it: on an H200
   twelve times the time of one read, for 64 guided images of size L.

Products take bfloat16 and sum in float32; softmax is float32.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from marjax.layers.gpu.attention import BLOCK, plus, products, times
from marjax.layers.gpu.instructions import exp2, fma, is_interpreted

QUERIES = 16
"""The most queries of an image: the fewest rows of a product on such chips."""

LARGEST = 2**31
"""Numbers of a cache that a kernel can tell apart."""

_LOG2_E = math.log2(math.e)


def forward(
  query: Float[Array, "B Q N H"],
  keys: Float[Array, "layers B S N H"],
  values: Float[Array, "layers B S N H"],
  layer: Int[Array, ""],
  first: Int[Array, ""],
) -> Float[Array, "B Q N H"]:
  """Values mixed for slots first .. first + Q - 1 of a layer.

  Args:
    query: bfloat16, at most `QUERIES` of each image.
    keys, values: bfloat16 caches, of all layers.
    layer, first: which layer, and where the queries' own slots begin.
  """
  batch, _, heads, _ = query.shape
  return pl.pallas_call(
    _kernel,
    name="look_back",
    grid=(heads, batch),
    out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=is_interpreted(),
  )(query, keys, values, jnp.stack([layer, first]).astype(jnp.int32))


def _kernel(query, keys, values, at, mixed):
  head, image = pl.program_id(0), pl.program_id(1)
  layer, first = at[0], at[1]
  _, count, _, dim = query.shape
  sizes = [1 << bit for bit in reversed(range(8)) if dim & (1 << bit)]
  ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
  features = [
    pl.ds(end - size, size) for size, end in zip(sizes, ends, strict=True)
  ]
  rows = jnp.arange(QUERIES)
  is_query = (rows < count)[:, None]

  # Not a Python 0: there may be fewer queries than rows.
  own = pl.ds(jnp.int32(0), QUERIES)

  def queries_of(ref):
    return [ref.at[image, own, head, part] for part in features]

  def block_of(ref, start):
    slots, inside = pl.ds(start, BLOCK), start + jnp.arange(BLOCK)
    return [
      plgpu.load(
        ref.at[layer, image, slots, head, part],
        mask=(inside < first + count)[:, None],
        other=0.0,
      )
      for part in features
    ]

  asked = [plgpu.load(at, mask=is_query, other=0.0) for at in queries_of(query)]
  to_log2 = _LOG2_E * dim**-0.5

  def step(index, carry):
    total, highest, weighed = carry
    start = index * BLOCK
    dots = products(asked, block_of(keys, start))
    is_seen = start + jnp.arange(BLOCK)[None, :] <= (first + rows)[:, None]
    dots = jnp.where(is_seen, dots, -1e30)
    new = jnp.maximum(highest, jnp.max(dots, axis=1) * to_log2)
    weights = exp2(fma(dots, to_log2, -new[:, None]))
    shrink = exp2(highest - new)
    total = fma(total, shrink, jnp.sum(weights, axis=1))
    weighed = times(weighed, shrink[:, None])
    block = block_of(values, start)
    return total, new, plus(weighed, weights.astype(values.dtype), block)

  zeros = jnp.zeros((QUERIES,), jnp.float32)
  nothing = [jnp.zeros((QUERIES, size), jnp.float32) for size in sizes]
  start = (zeros, zeros - 1e30, nothing)
  total, _, weighed = jax.lax.fori_loop(
    0, pl.cdiv(first + count, BLOCK), step, start
  )
  parts = times(weighed, (1.0 / total)[:, None])
  for at, part in zip(queries_of(mixed), parts, strict=True):
    plgpu.store(at, part.astype(mixed.dtype), mask=is_query)
