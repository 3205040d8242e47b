"""Low-rank updates: nothing at the start, then what a merged kernel does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marjax.layers import lora
from marjax.layers.lora import LoraConfig

CONFIG = LoraConfig(rank=2, alpha=6.0)
EINSUMS = {
  "backbone/encoder/layers/block/attention/qkv": (
    "lbw,lwcnh->lbcnh",
    "lbw,lwr,lrcnh->lbcnh",
    ((3, 8, 3, 2, 4), (3, 3, 2, 4)),
    ("layers", "embed", None, "heads", "head_dim"),
  ),
  "backbone/encoder/layers/block/attention/projection": (
    "lbnh,lnhw->lbw",
    "lbnh,lnhr,lrw->lbw",
    ((3, 2, 4, 8), (3, 8)),
    ("layers", "heads", "head_dim", "embed"),
  ),
  "backbone/to_keys/attention/x": (
    "bw,wnh->bnh",
    "bw,wr,rnh->bnh",
    ((8, 2, 4), (2, 4)),
    ("embed", "heads", "head_dim"),
  ),
  "head/net/linear_in": (
    "bi,io->bo",
    "bi,ir,ro->bo",
    ((8, 6), (6,)),
    ("embed", "mlp"),
  ),
}
"""Layer → its product, that of its factors, shapes, names of axes."""


def layers():
  """A tree of such layers, with random numbers, in their boxes."""
  random, tree = np.random.default_rng(0), {}
  for name, (_, _, (kernel, bias), axes) in EINSUMS.items():
    node = tree
    for part in name.split("/"):
      node = node.setdefault(part, {})
    lead = int(axes[0] == "layers")
    own = axes[:lead] + axes[len(axes) - len(bias) + lead :]
    for leaf, shape, names in (("kernel", kernel, axes), ("bias", bias, own)):
      numbers = jnp.asarray(random.normal(size=shape), jnp.float32)
      node[leaf] = nn.LogicallyPartitioned(numbers, names)
  return tree


def at(tree, name):
  for part in name.split("/"):
    tree = tree[part]
  return tree


@pytest.fixture(scope="module")
def boxed():
  return lora.added(layers(), CONFIG, jax.random.key(1))


def test_at_the_start_nothing_is_changed_to_the_bit(boxed):
  merged = lora.merged(nn.unbox(boxed), CONFIG)
  jax.tree.map(np.testing.assert_array_equal, merged, nn.unbox(layers()))


@pytest.mark.parametrize("name", EINSUMS)
def test_a_merged_kernel_does_what_kernel_and_factors_do(boxed, name):
  params = nn.unbox(boxed)
  ups = jax.tree.map(lambda leaf: leaf + 0.1, params["lora"])
  merged = lora.merged({**params, "lora": ups}, CONFIG)
  assert "lora" not in merged
  plain, low, (shape, _), axes = EINSUMS[name]
  lead = int(axes[0] == "layers")
  inputs = len(plain.partition(",")[0]) - 1 - lead
  size = (*shape[:lead], 5, *shape[lead : lead + inputs])
  x = np.random.default_rng(1).normal(size=size)
  layer = at(ups, name)
  expected = np.einsum(plain, x, at(params, name)["kernel"])
  expected += 6 / 2 * np.einsum(low, x, layer["down"], layer["up"])
  made_whole = np.einsum(plain, x, at(merged, name)["kernel"])
  np.testing.assert_allclose(made_whole, expected, rtol=1e-4, atol=1e-4)
  assert np.abs(layer["down"]).std() > 0.05


def test_factors_lie_where_their_kernels_do(boxed):
  for name, (*_, axes) in EINSUMS.items():
    layer, lead = at(boxed["lora"], name), int(axes[0] == "layers")
    *before, rank = layer["down"].names
    assert rank is None
    assert layer["up"].names[: lead + 1] == (*axes[:lead], None)
    assert (*before, *layer["up"].names[lead + 1 :]) == axes


def test_without_a_rank_there_are_none():
  tree = layers()
  assert lora.added(tree, LoraConfig(), jax.random.key(0)) is tree
  assert lora.merged(tree, LoraConfig()) is tree


@pytest.mark.parametrize(
  ("patterns", "reason"),
  [
    (("*/atention/*",), "lora.patterns has '.*', which matches no such par"),
    (("head/*/bias",), "expected a pattern of names such as head/net"),
    ((), "lora.patterns is empty; expected"),
  ],
)
def test_patterns_without_kernels_are_one_sentence(patterns, reason):
  config = LoraConfig(rank=2, patterns=patterns)
  with pytest.raises(ValueError, match=reason) as caught:
    lora.added(layers(), config, jax.random.key(0))
  assert str(caught.value).endswith(".")
