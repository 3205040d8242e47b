"""The same network under other names: read as it is, or named as what it is."""

import re

import jax
import numpy as np
import pytest
from convert.listings import listing
from safetensors.numpy import save_file

from marjax.convert import layouts, recognise, run
from marjax.convert.read import read
from marjax.parallel.mesh import host_mesh
from marjax.release import loading

BASE, MULTIPLIERS, SCALE = 32, (1, 2), 0.5


def autoencoder(decoder_attention=False, channels=3):
  """Random weights under published names; attention in the last level."""
  rng, arrays = np.random.default_rng(0), {}
  widths = [BASE * multiplier for multiplier in MULTIPLIERS]

  def norm(name, width):
    arrays[f"{name}.weight"] = np.ones(width, np.float32)
    arrays[f"{name}.bias"] = np.zeros(width, np.float32)

  def conv(name, ins, outs, size=3):
    bound = (ins * size * size) ** -0.5
    kernel = rng.uniform(-bound, bound, (outs, ins, size, size))
    arrays[f"{name}.weight"] = kernel.astype(np.float32)
    arrays[f"{name}.bias"] = rng.uniform(-1, 1, outs).astype(np.float32)

  def block(name, ins, outs):
    norm(f"{name}.norm1", ins)
    conv(f"{name}.conv1", ins, outs)
    norm(f"{name}.norm2", outs)
    conv(f"{name}.conv2", outs, outs)
    if ins != outs:
      conv(f"{name}.nin_shortcut", ins, outs, 1)

  def attention(name, width):
    norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
      conv(f"{name}.{part}", width, width, 1)

  def middle(half):
    block(f"{half}.mid.block_1", widths[-1], widths[-1])
    attention(f"{half}.mid.attn_1", widths[-1])
    block(f"{half}.mid.block_2", widths[-1], widths[-1])

  conv("encoder.conv_in", channels, BASE)
  block("encoder.down.0.block.0", BASE, widths[0])
  conv("encoder.down.0.downsample.conv", widths[0], widths[0])
  block("encoder.down.1.block.0", widths[0], widths[1])
  attention("encoder.down.1.attn.0", widths[1])
  middle("encoder")
  norm("encoder.norm_out", widths[1])
  conv("encoder.conv_out", widths[1], 8)
  conv("quant_conv", 8, 8, 1)
  conv("post_quant_conv", 4, 4, 1)
  conv("decoder.conv_in", 4, widths[1])
  middle("decoder")
  for i in range(2):
    block(f"decoder.up.1.block.{i}", widths[1], widths[1])
    if decoder_attention:
      attention(f"decoder.up.1.attn.{i}", widths[1])
  conv("decoder.up.1.upsample.conv", widths[1], widths[1])
  block("decoder.up.0.block.0", widths[1], widths[0])
  block("decoder.up.0.block.1", widths[0], widths[0])
  norm("decoder.norm_out", widths[0])
  conv("decoder.conv_out", widths[0], channels)
  return arrays


DIFFUSERS = (
  (r"^encoder\.down\.(\d)\.block\.", r"encoder.down_blocks.\1.resnets."),
  (r"^encoder\.down\.(\d)\.attn\.", r"encoder.down_blocks.\1.attentions."),
  (
    r"^encoder\.down\.(\d)\.downsample\.",
    r"encoder.down_blocks.\1.downsamplers.0.",
  ),
  (r"^decoder\.up\.0\.block\.", "decoder.up_blocks.1.resnets."),
  (r"^decoder\.up\.1\.block\.", "decoder.up_blocks.0.resnets."),
  (r"^decoder\.up\.1\.upsample\.", "decoder.up_blocks.0.upsamplers.0."),
  (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
  (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
  (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
  (r"\.nin_shortcut\.", ".conv_shortcut."),
  (r"\.norm_out\.", ".conv_norm_out."),
)
NEW = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v"}
OLD = {"norm": "group_norm", "q": "query", "k": "key", "v": "value"}
NEW["proj_out"], OLD["proj_out"] = "to_out.0", "proj_attn"


def as_diffusers(arrays, parts):
  """The same arrays as diffusers names them, now or some years ago."""
  named = {}
  for name, array in arrays.items():
    for pattern, replacement in DIFFUSERS:
      name = re.sub(pattern, replacement, name)
    if ".attentions." in name:
      *start, part, kind = name.split(".")
      name = ".".join([*start, parts[part], kind])
      array = array.reshape(array.shape[:2])
    named[name] = array
  return named


def converted(save, arrays, out, **choices):
  """Parameters of the released autoencoder, and the report."""
  source = save(arrays)
  report = run.convert(source, out, run.Choices(latent_scale=SCALE, **choices))
  return loading.load(out, host_mesh()).codec_params, str(report)


def assert_same_numbers(one, other):
  assert list(one) == list(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def save_torch(save, torch):
  def write(arrays):
    return save({n: torch.from_numpy(array) for n, array in arrays.items()})

  return write


@pytest.fixture
def save_safetensors(tmp_path):
  def write(arrays):
    save_file(arrays, tmp_path / "file.safetensors")
    return tmp_path / "file.safetensors"

  return write


def test_diffusers_layout_becomes_the_same_parameters(
  save_torch, save_safetensors, tmp_path
):
  arrays = autoencoder()
  plain, report = converted(save_torch, arrays, tmp_path / "plain")
  assert "\nnote " not in report
  for name, save, parts in (
    ("new", save_safetensors, NEW),
    ("old", save_torch, OLD),
  ):
    other = as_diffusers(arrays, parts)
    assert len(other.keys() & arrays.keys()) < 20
    params, report = converted(save, other, tmp_path / name)
    assert "parts named by diffusers" in report
    assert_same_numbers(params, plain)


def test_a_training_file_without_what_only_training_needs():
  arrays = autoencoder()
  extra = {
    "loss.logvar": np.zeros((), np.float32),
    "loss.discriminator.main.0.weight": np.zeros((2, 3, 4, 4), np.float32),
    "model_ema.decay": np.zeros((), np.float32),
  }
  named, notes = layouts.standard(arrays | extra, "file")
  assert_same_numbers(named, arrays)
  assert notes == (
    "2 arrays of loss.* left out",
    "1 array of model_ema.* left out",
  )


def test_averages_beside_the_weights(save_torch, tmp_path):
  arrays, averages = autoencoder(), autoencoder()
  averages["post_quant_conv.bias"] = averages["post_quant_conv.bias"] + 1
  both = arrays | {
    f"model_ema.{name.replace('.', '')}": array
    for name, array in averages.items()
  }
  wanted = converted(save_torch, averages, tmp_path / "wanted")[0]
  averaged, report = converted(save_torch, both, tmp_path / "ema")
  assert "ema weights" in report
  assert_same_numbers(averaged, wanted)
  raw = converted(save_torch, both, tmp_path / "raw", weights="raw")[0]
  biases = raw["from_latents"]["bias"], wanted["from_latents"]["bias"]
  np.testing.assert_allclose(biases[0] + 1, biases[1], rtol=1e-6)


def test_an_autoencoder_inside_a_larger_model():
  inner = autoencoder()
  arrays = {f"first_stage_model.{n}": a for n, a in inner.items()}
  arrays["model.diffusion_model.x"] = np.zeros(1, np.float32)
  arrays["cond_stage_model.encoder.conv_in.weight"] = np.zeros(1, np.float32)
  named, notes = layouts.standard(arrays, "file")
  assert_same_numbers(named, inner)
  assert notes == (
    "read what is below first_stage_model., 2 other arrays left out",
  )


@pytest.mark.parametrize(
  ("before", "after"),
  [
    ("module.", "module."),
    ("_orig_mod.", "_orig_mod."),
    ("module._orig_mod.", "module. and _orig_mod."),
    ("vae.module.", "module. taken out of the names\nread what is below vae."),
  ],
)
def test_wrappers_are_taken_out(before, after):
  inner = autoencoder()
  arrays = {before + name: array for name, array in inner.items()}
  named, notes = layouts.standard(arrays, "file")
  assert_same_numbers(named, inner)
  assert "\n".join(notes).startswith(after)


def test_wrappers_of_a_model_and_inside_its_names():
  arrays = dict.fromkeys(listing("base"), 0)
  wrapped = {
    "module._orig_mod." + n.replace("diffloss.", "diffloss.module."): a
    for n, a in arrays.items()
  }
  named, notes = layouts.standard(wrapped, "file")
  assert named == arrays
  assert notes == ("module. and _orig_mod. taken out of the names",)
  with pytest.raises(ValueError, match="holds mask_token twice, the second"):
    layouts.standard(arrays | {"module.mask_token": 1}, "file")


def test_several_networks_are_not_guessed_between():
  arrays = {f"{side}.encoder.conv_in.weight": 0 for side in "ab"}
  with pytest.raises(
    ValueError, match=r"several networks, below a\., b\.; exp"
  ):
    layouts.standard(arrays, "file")


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    (autoencoder(decoder_attention=True), "attention in the decoder's levels"),
    (autoencoder(channels=1), r"images with 1 channel .*expected RGB"),
    (
      {n: a for n, a in autoencoder().items() if "quant_conv" not in n},
      "has no quant_conv, a 1 × 1",
    ),
    (
      autoencoder() | {"encoder.down.0.attn.0.q.weight": np.zeros((2, 2))},
      "attention in a level of the encoder that is not its last",
    ),
  ],
)
def test_another_network_is_named(arrays, message):
  shapes = {name: array.shape for name, array in arrays.items()}
  with pytest.raises(ValueError, match=message):
    recognise.autoencoder(shapes, SCALE)


def test_names_with_control_characters_are_not_shown(save_torch):
  arrays = {"a\x1b[31mb": np.zeros(1)}
  with pytest.raises(ValueError, match="with control characters") as caught:
    read(save_torch(arrays))
  assert str(caught.value).isprintable()
