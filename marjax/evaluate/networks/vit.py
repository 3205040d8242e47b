"""A vision transformer: what DINOv2 and CLIP share, with full products.

    pixels ─ patches of 14² ─▶ [class, 1, 2, ...] + positions ─ blocks ─ norm ─▶

1. A block: x + s₁ · attention(norm₁(x)), then x + s₂ · mlp(norm₂(x)); s₁ and
   s₂ are 1 where the parameters have none.
2. What the two do otherwise is there in their parameters (a bias of the
   patches, a norm before the blocks) or an argument: activation, epsilon of the
   norms.
3. Blocks are stacked along a first axis, and run as one compiled loop.

Source: arXiv 2010.11929.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from marjax.evaluate.networks.layers import HIGHEST, dense, float32

Rows = Float32[Array, "B L W"]


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a transformer.

  Attributes:
    patch: pixels of a patch's side. width, depth, num_heads: of its blocks.
    num_positions: of the table, the class token's included.
    epsilon: of the norms. activation: between the two layers of an mlp.
  """

  patch: int
  width: int
  depth: int
  num_heads: int
  num_positions: int
  epsilon: float
  activation: Callable[[Any], Any]


def shapes(
  shape: Shape, has_scales: bool, has_patch_bias: bool, has_first_norm: bool
) -> dict[str, PyTree]:
  """Shapes of the parameters up to the last norm."""
  width, depth, patch = shape.width, shape.depth, shape.patch

  def layer(inputs: int, outputs: int) -> PyTree:
    kernel = float32(depth, inputs, outputs)
    return {"kernel": kernel, "bias": float32(depth, outputs)}

  def norm(*axes: int) -> PyTree:
    return {"scale": float32(*axes, width), "bias": float32(*axes, width)}

  blocks = {
    "norm1": norm(depth),
    "qkv": layer(width, 3 * width),
    "out": layer(width, width),
    "norm2": norm(depth),
    "wide": layer(width, 4 * width),
    "narrow": layer(4 * width, width),
  }
  if has_scales:
    blocks |= dict.fromkeys(("scale1", "scale2"), float32(depth, width))
  patches = {"kernel": float32(patch, patch, 3, width)}
  patches |= {"bias": float32(width)} if has_patch_bias else {}
  tree = {
    "patches": patches,
    "class": float32(width),
    "positions": float32(shape.num_positions, width),
    "blocks": blocks,
    "norm": norm(),
  }
  return tree | ({"first_norm": norm()} if has_first_norm else {})


def class_token(
  params: PyTree,
  pixels: Float32[Array, "B rows columns 3"],
  positions: Float32[Array, "L W"],
  shape: Shape,
) -> Float32[Array, "B W"]:
  """The class token after the last norm.

  Args:
    params: of `shapes`. pixels: as the network was trained on them.
    positions: of the class token, then of each patch, row by row.
  """
  rows = _patches(params["patches"], pixels, shape.patch)
  first = jnp.broadcast_to(params["class"], (len(rows), 1, shape.width))
  x = jnp.concatenate([first, rows], axis=1) + positions
  if "first_norm" in params:
    x = _norm(params["first_norm"], x, shape.epsilon)

  def through(x, layer):
    return _block(shape, layer, x), None

  x, _ = jax.lax.scan(through, x, params["blocks"])
  return _norm(params["norm"], x[:, 0], shape.epsilon)


def _patches(
  layer: PyTree, pixels: Float32[Array, "B rows columns 3"], patch: int
) -> Rows:
  batch, height, width, _ = pixels.shape
  rows, columns = height // patch, width // patch
  cut = pixels.reshape(batch, rows, patch, columns, patch, 3)
  flat = cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
  kernel = layer["kernel"]
  return dense(kernel.reshape(-1, kernel.shape[-1]), flat) + layer.get(
    "bias", 0
  )


def _block(shape: Shape, layer: PyTree, x: Rows) -> Rows:
  h = _norm(layer["norm1"], x, shape.epsilon)
  x = x + layer.get("scale1", 1) * _attention(layer, h, shape.num_heads)
  h = _norm(layer["norm2"], x, shape.epsilon)
  h = shape.activation(_dense(layer["wide"], h))
  return x + layer.get("scale2", 1) * _dense(layer["narrow"], h)


def _attention(layer: PyTree, x: Rows, num_heads: int) -> Rows:
  batch, length, width = x.shape
  qkv = _dense(layer["qkv"], x).reshape(batch, length, 3, num_heads, -1)
  query, key, value = (qkv[:, :, i] for i in range(3))
  logits = jnp.einsum("bqnh,bknh->bnqk", query, key, precision=HIGHEST)
  weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)
  mixed = jnp.einsum("bnqk,bknh->bqnh", weights, value, precision=HIGHEST)
  return _dense(layer["out"], mixed.reshape(batch, length, width))


def _dense(
  layer: PyTree, x: Float32[Array, "... C"]
) -> Float32[Array, "... D"]:
  return dense(layer["kernel"], x) + layer["bias"]


def _norm(
  layer: PyTree, x: Float32[Array, "... W"], epsilon: float
) -> Float32[Array, "... W"]:
  centred = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  normed = centred / jnp.sqrt(variance + epsilon)
  return normed * layer["scale"] + layer["bias"]
