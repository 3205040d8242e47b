"""VQ autoencoders as a user converts them: every key has its place."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from convert import vq_twins

import marjax
from marjax.convert import layouts, recognise, run, table
from marjax.latents.vq import VQConfig
from marjax.parallel.mesh import host_mesh
from marjax.release import loading

NAMES = ("ldm", "llamagen")
KEYS = {
  "ldm": ("decoder.up.1.attn.2.q.bias", "decoder/levels_1/attentions_2"),
  "llamagen": (
    "decoder.conv_blocks.0.attn.2.q.bias",
    "decoder/levels_1/attentions_2",
  ),
}


def saved(path, arrays, names):
  """As the authors' files hold them."""
  inner = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}
  outer = "state_dict" if names == "ldm" else "model"
  torch.save({outer: inner}, path)
  return path


@pytest.fixture(scope="module", params=NAMES)
def twin(request):
  return request.param, vq_twins.Twin(request.param, 8)


def test_a_file_becomes_a_release_that_encodes_and_decodes(twin, tmp_path):
  names, network = twin
  source = saved(tmp_path / "vq.ckpt", network.state_dict(), names)
  report = run.convert(source, tmp_path / "vq")
  left_out = "loss.*" if names == "ldm" else "quantize.codebook_used*"
  assert f"1 array of {left_out} left out" in str(report)
  assert "codes        40\n" in str(report)
  assert report.card.name == "VQ-2"
  assert report.num_arrays == len(network.weights)
  pipe = marjax.load(tmp_path / "vq", host_mesh())
  images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
  ids = pipe.encode(images)
  pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
  with torch.no_grad():
    theirs = network.ids(network.z(pixels))
    decoded = network.decode(theirs).permute(0, 2, 3, 1).numpy()
  np.testing.assert_array_equal(ids, theirs)
  ours = pipe.decode(ids, as_float=True)
  np.testing.assert_allclose(ours, decoded, atol=1e-4 * np.abs(decoded).max())


def test_a_scale_makes_its_tokens_floats(twin, tmp_path):
  names, network = twin
  source = saved(tmp_path / "vq.ckpt", network.state_dict(), names)
  report = run.convert(source, tmp_path / "vq", run.Choices(latent_scale=0.5))
  codec = report.card.codec
  assert (codec.continuous, codec.latent_scale) == (True, 0.5)
  assert codec.token_shape == (4,)
  assert "latent scale 0.5" in str(report)


def test_a_key_that_is_missing_or_too_many_is_named(twin, tmp_path):
  names, network = twin
  key, place = KEYS[names]
  whole = network.state_dict()
  half = {name: array for name, array in whole.items() if name != key}
  with pytest.raises(table.ConversionError, match=rf"{place}\S* is not filled"):
    run.convert(saved(tmp_path / "a", half, names), tmp_path / "out")
  more = whole | {"quantize.stranger": np.zeros(3, np.float32)}
  with pytest.raises(table.ConversionError, match="stranger is matched by 0"):
    run.convert(saved(tmp_path / "b", more, names), tmp_path / "out")
  shallow = key.replace("up.1", "up.0").replace("blocks.0", "blocks.1")
  more = whole | {shallow: whole[key]}
  with pytest.raises(table.ConversionError, match="the model does not have"):
    run.convert(saved(tmp_path / "c", more, names), tmp_path / "out")
  wide = whole | {"quant_conv.weight": np.zeros((4, 9, 1, 1), np.float32)}
  with pytest.raises(table.ConversionError, match="does not become"):
    run.convert(saved(tmp_path / "d", wide, names), tmp_path / "out")
  codeless = {n: a for n, a in whole.items() if not n.endswith("ing.weight")}
  codeless |= {"quantize.other": np.zeros(3, np.float32)}
  with pytest.raises(ValueError, match=r"embedding\.weight is not among the w"):
    run.convert(saved(tmp_path / "e", codeless, names), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_codes_are_no_tokens_of_a_published_model(
  twin, save_sets, golden, tmp_path
):
  names, network = twin
  codec = saved(tmp_path / "vq", network.state_dict(), names)
  model = save_sets("a.pth", model=golden("weights_model.npz"))
  choices = run.Choices(autoencoder=codec, num_heads=4)
  with pytest.raises(ValueError, match="'vq', makes codes, and the model has"):
    run.convert(model, tmp_path / "out", choices)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("names", "expected", "count"),
  [
    ("ldm", VQConfig(), 69_593_371),
    ("llamagen", VQConfig(z_channels=256, is_normalised=True), 71_883_403),
  ],
)
def test_the_published_sizes_are_recognised(names, expected, count):
  widths = tuple(128 * times for times in (1, 1, 2, 2, 4))
  network = vq_twins.Twin(names, expected.z_channels, True, widths, 16384, 8)
  arrays, _ = layouts.standard(network.state_dict(), "file")
  shapes = {name: array.shape for name, array in arrays.items()}
  card = recognise.card(shapes, expected)
  assert card.codec == expected
  assert card.name == "VQ-16"
  target = loading.abstract_weights(card.codec, host_mesh())
  places = table.assign(recognise.rules(shapes), shapes, target)
  assert len(places) == len(shapes)
  assert sum(leaf.size for leaf in jax.tree.leaves(target)) == count
