"""DINOv2 and CLIP against timm's networks, small ones on random weights.

1. Small networks go the whole way of code: state dict, table, network. Arrays
   have values of order one, LayerScale too.
2. Of the large ones every key of timm's has a place by its shape.
3. DINOv2's positions are interpolated as PyTorch does it when given a scale.

Measured: features 5e-7 where they are about 1, positions 3e-7.
"""

import jax
import numpy as np
import pytest
from peers import peer
from PIL import Image

from marjax.convert import table
from marjax.evaluate.networks import clip, dinov2, kinds, layouts
from marjax.evaluate.networks.clip import Clip
from marjax.evaluate.networks.dinov2 import DinoV2
from parity.random_weights import pictures

SMALL = {"depth": 3, "num_heads": 4}
IMAGES = pictures((2, 90, 90, 3))


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


def randomised(torch, network):
  """Every parameter drawn anew, of order one in what it makes."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, array in network.named_parameters():
      spread = array[0].numel() ** -0.5 if array.ndim > 1 else 0.3
      shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
      draws = torch.randn(array.shape, generator=generator)
      array.copy_(draws * spread + shift)
  return network.eval()


def numpy_state(network):
  return {n: array.numpy() for n, array in network.state_dict().items()}


def as_pixels(torch, size, module):
  """What Pillow and the published means make of the images."""
  small = [
    Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    for image in IMAGES
  ]
  pixels = np.stack([np.asarray(image) for image in small]) / 255
  pixels = (pixels - module.MEAN) / module.DEVIATION
  return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def assert_near(ours, theirs):
  theirs = theirs.detach().numpy()
  assert np.abs(theirs).mean() > 0.1
  assert np.abs(ours - theirs).max() <= 1e-5


def small_dinov2(torch):
  network = peer("timm.models.vision_transformer").VisionTransformer(
    img_size=56,
    patch_size=14,
    embed_dim=32,
    init_values=1e-5,
    num_classes=0,
    **SMALL,
  )
  return randomised(torch, network)


def test_dinov2(torch):
  network = DinoV2(size=56, grid=4, num_features=32, **SMALL)
  theirs = small_dinov2(torch)
  state = numpy_state(theirs) | {"mask_token": np.zeros((1, 32), np.float32)}
  params = layouts.params_of(network, state)
  ours = jax.jit(network.__call__)(params, IMAGES)
  assert_near(ours.pooled, theirs(as_pixels(torch, 56, dinov2)))


def test_clip(torch):
  network = Clip(size=56, num_features=24, width=32, **SMALL)
  theirs = peer("timm.models.vision_transformer").VisionTransformer(
    img_size=56,
    patch_size=14,
    embed_dim=32,
    num_classes=24,
    pre_norm=True,
    norm_layer=lambda width, **_: torch.nn.LayerNorm(width, eps=1e-5),
    act_layer=peer("timm.layers").get_act_layer("quick_gelu"),
    global_pool="token",
    **SMALL,
  )
  theirs = randomised(torch, theirs)
  torch.nn.init.zeros_(theirs.head.bias)
  state = numpy_state(theirs)
  params = layouts.params_of(network, state)
  ours = jax.jit(network.__call__)(params, IMAGES)
  assert_near(ours.pooled, theirs(as_pixels(torch, 56, clip)))
  with pytest.raises(ValueError, match=r"the last layer \(head.bias\) has a"):
    layouts.params_of(network, state | {"head.bias": np.ones(24, np.float32)})


def test_clip_as_openai_names_it(torch):
  network = Clip(size=56, num_features=24, width=32, **SMALL)
  module = peer("torch_fidelity.feature_extractor_clip")
  theirs = module.VisionTransformer(56, 14, 32, 3, 4, 24)
  theirs = randomised(torch, theirs)
  state = {f"visual.{n}": array for n, array in numpy_state(theirs).items()}
  texts = {"token_embedding.weight": np.zeros((3, 4), np.float32)}
  params = layouts.params_of(network, state | texts)
  ours = jax.jit(network.__call__)(params, IMAGES)
  assert_near(ours.pooled, theirs(as_pixels(torch, 56, clip)))


def face_clip(state):
  """OpenAI's names to those of Hugging Face, qkv in three."""
  renamed = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "transformer.resblocks": "encoder.layers",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "conv1": "embeddings.patch_embedding",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
  }
  arrays = {"logit_scale": np.float32(1)}
  for name, array in state.items():
    for old, new in renamed.items():
      name = name.replace(old, new)
    if "in_proj_" in name:
      for part, third in zip("qkv", np.split(array, 3), strict=True):
        kind = f"self_attn.{part}_proj."
        new = name.replace("attn.in_proj_", kind)
        arrays[f"vision_model.{new}"] = third
    elif name == "proj":
      arrays["visual_projection.weight"] = array.T
    else:
      arrays[f"vision_model.{name}"] = array
  return arrays


def face_dinov2(state):
  """timm's names to those of Hugging Face, qkv in three."""
  renamed = {
    "blocks.": "encoder.layer.",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
  }
  arrays = {"embeddings.mask_token": np.zeros((1, 32), np.float32)}
  for name, array in state.items():
    for old, new in renamed.items():
      name = name.replace(old, new)
    name = f"layer{name}" if name.startswith("norm.") else name
    if "attn.qkv" in name:
      for part, third in zip(
        ("query", "key", "value"), np.split(array, 3), strict=True
      ):
        new = name.replace("attn.qkv", f"attention.attention.{part}")
        arrays[new] = third
    else:
      arrays[name] = array
  return arrays


def test_names_of_hugging_face(torch):
  """Are the same numbers at the same places."""
  module = peer("torch_fidelity.feature_extractor_clip")
  state = numpy_state(
    randomised(torch, module.VisionTransformer(56, 14, 32, 3, 4, 24))
  )
  network = Clip(size=56, num_features=24, width=32, **SMALL)
  openai = {f"visual.{name}": array for name, array in state.items()}
  pairs = [(network, openai, face_clip(state))]
  network = DinoV2(size=56, grid=4, num_features=32, **SMALL)
  state = numpy_state(small_dinov2(torch))
  pairs.append((network, state, face_dinov2(state)))
  for network, ours, theirs in pairs:
    first, second = (layouts.params_of(network, x) for x in (ours, theirs))
    same = jax.tree.map(np.array_equal, first, second)
    assert all(jax.tree.leaves(same))
    assert jax.tree.structure(first) == jax.tree.structure(network.shapes())


@pytest.mark.parametrize(
  ("name", "model", "num_classes", "count"),
  [
    ("dinov2", "vit_large_patch14_dinov2", 0, 342),
    ("clip", "vit_large_patch14_clip_quickgelu_336", 768, 297),
  ],
)
def test_every_key_of_the_large_ones_has_a_place(
  torch, name, model, num_classes, count
):
  timm = peer("timm")
  with torch.device("meta"):
    theirs = timm.create_model(model, num_classes=num_classes)
  shapes = {n: tuple(a.shape) for n, a in theirs.state_dict().items()}
  network = kinds.network(name)
  layout = layouts.layout_of(network, shapes)
  target = layout.spread(network.shapes())
  places = table.assign(layout.rules, shapes, target)
  assert len(places) == len(shapes) == count


@pytest.mark.parametrize(("grid", "new"), [(37, 16), (37, 32), (16, 37)])
def test_positions_are_interpolated_as_pytorch_does(torch, grid, new):
  draws = np.random.default_rng(0).normal(size=(1 + grid**2, 8))
  draws = draws.astype(np.float32)
  ours = jax.jit(dinov2.interpolated, static_argnums=1)(draws, new)
  square = torch.from_numpy(draws[1:].reshape(1, grid, grid, 8))
  scale = float(new + 0.1) / grid
  theirs = torch.nn.functional.interpolate(
    square.permute(0, 3, 1, 2), scale_factor=(scale, scale), mode="bicubic"
  )
  rows = theirs.permute(0, 2, 3, 1).reshape(new**2, 8).numpy()
  assert np.array_equal(ours[0], draws[0])
  assert np.abs(ours[1:] - rows).max() <= 1e-5
  plain = torch.nn.functional.interpolate(
    square.permute(0, 3, 1, 2), size=(new, new), mode="bicubic"
  )
  rows = plain.permute(0, 2, 3, 1).reshape(new**2, 8).numpy()
  assert np.abs(ours[1:] - rows).max() > 1e-3
