"""The Inception network of 2015-12-05, by which FID is defined.

1. Images are resized to 299² by TensorFlow 1's rule, then (x - 128) / 128.
2. 94 convolutions without bias, each with batch norm (folded into kernel and
   bias at conversion) and ReLU, in a stem and eleven blocks. A block is a list
   of branches, whose maps are concatenated:

       299² ─ stem ─▶ 35², 192 ─ 5b 5c 5d ─▶ 288 ─ 6a ─▶ 17², 768 ─ 6b 6c 6d 6e
            ─ 7a ─▶ 8², 1280 ─ 7b 7c ─▶ 2048 ─ mean ─▶ pooled ─ matrix ─▶ logits
                                            6d ─ first 7 channels ─▶ spatial

3. It differs from the Inception-v3 of today's packages: other weights, 1008
   logits, means of 3 × 3 cells that leave out what is off the map, and a
   maximum instead of the mean in the last block.
4. pooled: 2048 means over the last map (FID). spatial: 17 · 17 · 7 numbers, the
   first 7 channels of 6d's 1 × 1 branch, flattened rows, columns, channels
   (sFID). logits: 1008, without the bias (Inception Score).

Source: arXiv 1512.00567, as the graph classify_image_graph_def.pb has it;
spec section 3. Names are those of the published PyTorch files.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from marjax import schema
from marjax.evaluate.networks import layers, resize
from marjax.evaluate.networks.protocol import Features, Named

SIZE, NUM_FEATURES, NUM_LOGITS = 299, 2048, 1008
SPATIAL_SIDE, SPATIAL_CHANNELS = 17, 7
NUM_PLACES = SPATIAL_SIDE**2 * SPATIAL_CHANNELS


@dataclass(frozen=True)
class Conv:
  """A convolution with ReLU; sizes and channels of its kernel."""

  name: str
  height: int
  width: int
  channels: int
  stride: int = 1
  padding: str = "SAME"


Step = Conv | str | tuple[Conv, ...]
"""A convolution, a pool by name, or convolutions side by side."""

Branch = tuple[Step, ...]

MEAN, MAX, HALVE = "mean", "max", "halve"


def _halving(name: str, channels: int) -> Conv:
  return Conv(name, 3, 3, channels, 2, "VALID")


STEM: Branch = (
  _halving("Conv2d_1a_3x3", 32),
  Conv("Conv2d_2a_3x3", 3, 3, 32, padding="VALID"),
  Conv("Conv2d_2b_3x3", 3, 3, 64),
  HALVE,
  Conv("Conv2d_3b_1x1", 1, 1, 80),
  Conv("Conv2d_4a_3x3", 3, 3, 192, padding="VALID"),
  HALVE,
)


def _block5(pooled: int) -> tuple[Branch, ...]:
  return (
    (Conv("branch1x1", 1, 1, 64),),
    (Conv("branch5x5_1", 1, 1, 48), Conv("branch5x5_2", 5, 5, 64)),
    (
      Conv("branch3x3dbl_1", 1, 1, 64),
      Conv("branch3x3dbl_2", 3, 3, 96),
      Conv("branch3x3dbl_3", 3, 3, 96),
    ),
    (MEAN, Conv("branch_pool", 1, 1, pooled)),
  )


def _block6(narrow: int) -> tuple[Branch, ...]:
  return (
    (Conv("branch1x1", 1, 1, 192),),
    (
      Conv("branch7x7_1", 1, 1, narrow),
      Conv("branch7x7_2", 1, 7, narrow),
      Conv("branch7x7_3", 7, 1, 192),
    ),
    (
      Conv("branch7x7dbl_1", 1, 1, narrow),
      Conv("branch7x7dbl_2", 7, 1, narrow),
      Conv("branch7x7dbl_3", 1, 7, narrow),
      Conv("branch7x7dbl_4", 7, 1, narrow),
      Conv("branch7x7dbl_5", 1, 7, 192),
    ),
    (MEAN, Conv("branch_pool", 1, 1, 192)),
  )


def _block7(pool: str) -> tuple[Branch, ...]:
  return (
    (Conv("branch1x1", 1, 1, 320),),
    (
      Conv("branch3x3_1", 1, 1, 384),
      (Conv("branch3x3_2a", 1, 3, 384), Conv("branch3x3_2b", 3, 1, 384)),
    ),
    (
      Conv("branch3x3dbl_1", 1, 1, 448),
      Conv("branch3x3dbl_2", 3, 3, 384),
      (Conv("branch3x3dbl_3a", 1, 3, 384), Conv("branch3x3dbl_3b", 3, 1, 384)),
    ),
    (pool, Conv("branch_pool", 1, 1, 192)),
  )


BLOCKS: dict[str, tuple[Branch, ...]] = {
  "Mixed_5b": _block5(32),
  "Mixed_5c": _block5(64),
  "Mixed_5d": _block5(64),
  "Mixed_6a": (
    (_halving("branch3x3", 384),),
    (
      Conv("branch3x3dbl_1", 1, 1, 64),
      Conv("branch3x3dbl_2", 3, 3, 96),
      _halving("branch3x3dbl_3", 96),
    ),
    (HALVE,),
  ),
  "Mixed_6b": _block6(128),
  "Mixed_6c": _block6(160),
  "Mixed_6d": _block6(160),
  "Mixed_6e": _block6(192),
  "Mixed_7a": (
    (Conv("branch3x3_1", 1, 1, 192), _halving("branch3x3_2", 320)),
    (
      Conv("branch7x7x3_1", 1, 1, 192),
      Conv("branch7x7x3_2", 1, 7, 192),
      Conv("branch7x7x3_3", 7, 1, 192),
      _halving("branch7x7x3_4", 192),
    ),
    (HALVE,),
  ),
  "Mixed_7b": _block7(MEAN),
  # The published graph takes the maximum here, unlike the paper.
  "Mixed_7c": _block7(MAX),
}


@schema.config
class Inception(Named):
  """Images of any size → 2048 features, 2023 places, 1008 logits."""

  name = "inception"
  distance = "fid"
  class_score = "is"
  num_features = NUM_FEATURES
  num_places = NUM_PLACES
  num_logits = NUM_LOGITS
  source = (
    "pt_inception-2015-12-05-6726825d.pth of"
    " github.com/mseitzer/pytorch-fid/releases/tag/fid_weights, or the same"
    " weights as torch-fidelity (.pth) or jax-fid (.pickle) publish them"
  )

  def shapes(self) -> PyTree:
    """{"Mixed_5b.branch1x1": kernel and bias, ..., "fc": ...}."""
    convs = {
      name: layers.conv_shapes(conv.height, conv.width, inputs, conv.channels)
      for name, conv, inputs in convolutions()
    }
    matrix = layers.float32(NUM_FEATURES, NUM_LOGITS)
    return convs | {
      "fc": {"kernel": matrix, "bias": layers.float32(NUM_LOGITS)}
    }

  def __call__(self, params: PyTree, images: resize.Pictures) -> Features:
    resized = resize.tf1(resize.rgb(images), SIZE)
    maps = stages(params, (resized - 128) / 128)
    pooled = maps["pooled"]
    logits = layers.dense(params["fc"]["kernel"], pooled)
    return Features(pooled, spatial(maps), logits)


def convolutions() -> Iterable[tuple[str, Conv, int]]:
  """Full name, convolution and input channels of all 94."""
  channels = 3
  for step in STEM:
    if isinstance(step, Conv):
      yield step.name, step, channels
      channels = step.channels
  for block, branches in BLOCKS.items():
    total = 0
    for branch in branches:
      inputs = channels
      for step in branch:
        beside = step if isinstance(step, tuple) else (step,)
        convs = [conv for conv in beside if isinstance(conv, Conv)]
        for conv in convs:
          yield f"{block}.{conv.name}", conv, inputs
        inputs = sum(conv.channels for conv in convs) or inputs
      total += inputs
    channels = total


def stages(
  params: PyTree, pixels: Float32[Array, "B H W 3"]
) -> dict[str, Float32[Array, "B ..."]]:
  """The maps after the stem and after each block, and "pooled"."""
  x = _branch(params, "", STEM, pixels)
  maps = {"stem": x}
  for name, branches in BLOCKS.items():
    parts = [_branch(params, f"{name}.", branch, x) for branch in branches]
    maps[name] = x = jnp.concatenate(parts, axis=-1)
  return maps | {"pooled": layers.mean_over_map(x)}


def spatial(maps: dict) -> Float32[Array, "B places"]:
  """What sFID compares, of `stages`: the start of 6d's first branch."""
  places = maps["Mixed_6d"][..., :SPATIAL_CHANNELS]
  return places.reshape(len(places), -1)


def _branch(
  params: PyTree, prefix: str, branch: Branch, x: Float32[Array, "B H W C"]
) -> Float32[Array, "B rows columns D"]:
  """The map at the end of a branch."""
  pools = {
    MEAN: layers.mean_pool,
    MAX: lambda x: layers.max_pool(x, stride=1, padding=1),
    HALVE: layers.max_pool,
  }

  def convolved(conv, x):
    layer = params[prefix + conv.name]
    return jax.nn.relu(layers.conv(layer, x, conv.stride, conv.padding))

  for step in branch:
    if isinstance(step, Conv):
      x = convolved(step, x)
    elif isinstance(step, str):
      x = pools[step](x)
    else:
      x = jnp.concatenate([convolved(conv, x) for conv in step], axis=-1)
  return x
