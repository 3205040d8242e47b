"""The FID network against the networks of pytorch-fid and torch-fidelity.

Weights are random and go the whole way: a .pth file as published, `marjax
convert`, the file that it makes. Measured: stages 2e-6 of their largest value,
features 1.3e-5 where they are 3.1 in the mean, logits 1.4e-5, FID of two sets
3e-8 relative; resizing to the bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer

from marjax.evaluate.networks import inception, kinds, layers, resize, weights
from marjax.evaluate.networks.conversion import convert
from parity.random_weights import inception_state, pictures

NETWORK = kinds.network("inception")
SIZES = [(8, 32, 48, 3), (2, 320, 301, 3)]


@pytest.fixture(scope="module")
def state():
  return inception_state()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
  torch = pytest.importorskip("torch")
  path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
  torch.save({n: torch.from_numpy(a) for n, a in state.items()}, path)
  return path


@pytest.fixture(scope="module")
def params(file):
  out = file.with_name("inception.safetensors")
  report = convert("inception", file, out, progress=False)
  assert (report.num_arrays, report.num_parameters) == (472, 23_833_744)
  return weights.read(out, NETWORK)[0]


@pytest.fixture(scope="module")
def ours(params):
  function = jax.jit(NETWORK.__call__)
  return [function(params, pictures(size)) for size in SIZES]


@pytest.fixture(scope="module")
def theirs(file):
  """Features of torch-fidelity: its resizing, network and logits."""
  torch = pytest.importorskip("torch")
  module = peer("torch_fidelity.feature_extractor_inceptionv3")
  network = module.FeatureExtractorInceptionV3(
    "theirs", ["2048", "logits_unbiased"], str(file)
  )
  batches = [pictures(size).transpose(0, 3, 1, 2).copy() for size in SIZES]
  return [
    [array.numpy() for array in network(torch.from_numpy(batch))]
    for batch in batches
  ]


@pytest.fixture(scope="module")
def stages(state):
  """Pixels [2, 299, 299, 3] and every map of pytorch-fid's network of them."""
  torch = pytest.importorskip("torch")
  module = peer("pytorch_fid.inception")
  tensors = {n: torch.from_numpy(a) for n, a in state.items()}
  patch = pytest.MonkeyPatch()
  patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: tensors)
  network = module.fid_inception_v3().eval()
  patch.undo()
  maps = {}

  def keep(name):
    def hook(module, inputs, output):
      maps[name] = output.numpy().transpose(0, 2, 3, 1)

    return hook

  named = {"stem": network.maxpool2, "1x1": network.Mixed_6d.branch1x1}
  named |= {"6e": network.Mixed_6e.branch1x1}
  named |= {name: getattr(network, name) for name in inception.BLOCKS}
  for name, part in named.items():
    part.register_forward_hook(keep(name))
  pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, 299, 299))
  pixels = pixels.astype(np.float32)
  with torch.no_grad():
    maps["logits"] = network(torch.from_numpy(pixels)).numpy()
  return pixels.transpose(0, 2, 3, 1), maps


def test_every_stage(params, stages):
  pixels, theirs = stages
  ours = jax.jit(inception.stages)(params, pixels)
  assert set(ours) - {"pooled"} == set(theirs) - {"1x1", "6e", "logits"}
  for name in ours.keys() - {"pooled"}:
    scale = np.abs(theirs[name]).max()
    assert np.abs(ours[name] - theirs[name]).max() <= 1e-5 * scale, name
  pooled = theirs["Mixed_7c"].mean((1, 2))
  assert np.abs(ours["pooled"] - pooled).max() <= 1e-4
  logits = ours["pooled"] @ params["fc"]["kernel"] + params["fc"]["bias"]
  assert np.abs(logits - theirs["logits"]).max() <= 1e-4


@pytest.mark.parametrize("i", range(len(SIZES)))
def test_features_and_logits(ours, theirs, i):
  pooled, logits = theirs[i]
  assert np.abs(pooled).mean() > 0.5
  assert np.abs(ours[i].pooled - pooled).max() <= 1e-4
  assert np.abs(ours[i].logits - logits).max() <= 1e-4


def test_the_distance_of_two_sets(ours, theirs):
  """Of four pictures each, by the nuclear norm."""

  def distance(features):
    halves = np.split(np.asarray(features, np.float64), 2)
    means = [half.mean(0) for half in halves]
    rests = [half - half.mean(0) for half in halves]
    traces = sum((rest**2).sum() for rest in rests)
    root = np.linalg.norm(rests[0] @ rests[1].T, "nuc")
    shift = ((means[0] - means[1]) ** 2).sum()
    return shift + (traces - 2 * root) / (len(halves[0]) - 1)

  expected = distance(theirs[0][0])
  assert expected > 1
  assert distance(ours[0].pooled) == pytest.approx(expected, rel=1e-6)


def test_sfid_sees_the_right_places(params, stages):
  """Seven channels of 6d's 1 × 1 branch, rows, columns, channels."""
  pixels, theirs = stages
  maps = jax.jit(inception.stages)(params, pixels)
  right = theirs["1x1"][..., :7].reshape(2, 2023)
  assert np.abs(inception.spatial(maps) - right).max() <= 1e-4
  for wrong in (theirs["6e"], theirs["Mixed_6e"], theirs["1x1"][..., 7:]):
    places = wrong[..., :7].reshape(2, 2023)
    assert np.abs(places - right).max() > 0.1
  by_channel = theirs["1x1"][..., :7].transpose(0, 3, 1, 2).reshape(2, 2023)
  assert np.abs(by_channel - right).max() > 0.1


def with_borders(x):
  """The mean of 3 × 3 cells with black around the map."""
  window, strides = (1, 3, 3, 1), (1, 1, 1, 1)
  total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, "SAME")
  return total / 9


def half_pixel(images, size):
  shape = (len(images), size, size, 3)
  return jax.image.resize(images.astype(jnp.float32), shape, "bilinear")


def mean_in_the_last_block(x, stride=2, padding=0):
  return layers.mean_pool(x) if padding else MAX_POOL(x, stride)


MAX_POOL = layers.max_pool

VARIANTS = {
  "borders": (layers, "mean_pool", with_borders),
  "mean in 7c": (layers, "max_pool", mean_in_the_last_block),
  "half pixel": (resize, "tf1", half_pixel),
  "BGR": (resize, "rgb", lambda images: images[..., ::-1]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_variant_is_seen(params, theirs, monkeypatch, variant):
  """What other programs do otherwise is far above the tolerance."""
  place, name, wrong = VARIANTS[variant]
  monkeypatch.setattr(place, name, wrong)
  images = pictures(SIZES[0])[:2]
  pooled = jax.jit(lambda p, x: NETWORK(p, x).pooled)(params, images)
  assert np.abs(pooled - theirs[0][0][:2]).max() > 1e-3


def test_the_scale_and_the_bias_are_seen(params, ours):
  """2 x / 255 - 1 is another scale, and the bias no part of the logits."""
  images = pictures(SIZES[0])[:2]
  pixels = 2 * resize.tf1(jnp.asarray(images), 299) / 255 - 1
  maps = jax.jit(inception.stages)(params, pixels)
  assert np.abs(maps["pooled"] - ours[0].pooled[:2]).max() > 1e-3
  biased = ours[0].logits + params["fc"]["bias"]
  assert np.abs(biased - ours[0].logits).max() > 1e-2
