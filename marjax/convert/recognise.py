"""Shapes of a published state dict → the card of what it belongs to.

1. `kind_of` tells a MAR model from an autoencoder by a name of each, and
   `marjax.convert.vq` one with codes from one without.
2. Widths, depths and counts are read off the shapes. Two things no shape says:
   how many attention heads there are, which the published widths settle, and an
   autoencoder's latent scale, which is known for KL-16.
3. What is left to choose is an argument, and asked for in one sentence.
"""

import dataclasses
import math
import re
from typing import Literal

from marjax.backbone import classes
from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.masked import MaskedConfig
from marjax.convert import kl, mar, vq
from marjax.convert.shapes import Shapes, count_of, shape_of
from marjax.convert.table import Rule
from marjax.generate.settings import Settings
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.reverse import ReverseSettings
from marjax.latents.kl import KLConfig
from marjax.latents.trunk import CHANNELS
from marjax.latents.vq import VQConfig
from marjax.model import ModelConfig
from marjax.protocols import Codec
from marjax.release.card import Card
from marjax.schema import check

SIBLING = "../kl16"
"""Where a release looks for its autoencoder unless it carries one."""

# Width → name, blocks of each half, heads, guidance (spec sections 3 and 5).
SIZES = {
  768: ("MAR-B", 12, 12, 2.9),
  1024: ("MAR-L", 16, 16, 3.0),
  1280: ("MAR-H", 20, 16, 3.2),
}

KL16_SCALE = 0.2325


def kind_of(shapes: Shapes) -> Literal["model", "autoencoder"]:
  """What the names belong to.

  Raises:
    ValueError: neither.
  """
  if "encoder_pos_embed_learned" in shapes and "mask_token" in shapes:
    return "model"
  if "encoder.conv_in.weight" in shapes:
    return "autoencoder"
  some = ", ".join(list(shapes)[:3])
  raise ValueError(
    f"the weights are named {some[:200]} ...; expected those of a published MAR"
    " model or KL autoencoder: convert a file of one of them; a network of"
    " scores is named before its file (marjax convert inception FILE)."
  )


def rules(shapes: Shapes) -> tuple[Rule, ...]:
  """The table for what the names belong to; errors as in `kind_of`."""
  if kind_of(shapes) == "model":
    return mar.RULES
  return vq.rules(shapes) if vq.is_vq(shapes) else kl.RULES


def card(
  shapes: Shapes,
  codec: Codec,
  num_heads: int | None = None,
  latent_scale: float | None = None,
) -> Card:
  """The card of a model or an autoencoder; 1000 classes are ImageNet's.

  Args:
    shapes: of its weights. codec: of a model's autoencoder.
    num_heads, latent_scale: None is known for published ones only.

  Raises:
    ValueError: see `kind_of`, `model`, `codec_of`, `autoencoder`.
  """
  if kind_of(shapes) == "autoencoder":
    codec = autoencoder(shapes, latent_scale)
    return Card(name=f"{codec.kind.upper()}-{codec.stride}", codec=codec)
  config, names = model(shapes, num_heads), classes.imagenet()
  sampling, presets = settings_of(config)
  is_imagenet = config.backbone.condition.num_classes == len(names)
  return Card(
    name=name_of(config),
    codec=codec_of(config, codec),
    model=config,
    sampling=sampling,
    presets=presets,
    class_names=names if is_imagenet else (),
    autoencoder=SIBLING,
  )


def autoencoder(
  shapes: Shapes, latent_scale: float | None = None
) -> KLConfig | VQConfig:
  """The autoencoder with these shapes, for images of 256².

  Args:
    shapes: name → shape.
    latent_scale: None is known for KL-16 only; of a VQ autoencoder None makes
      tokens of ids, and a number tokens of what comes before the codes.

  Raises:
    ValueError: a shape is missing; the scale is neither given nor known.
  """
  if vq.is_vq(shapes):
    return vq.autoencoder(shapes, latent_scale)
  base, channels, *_ = shape_of(shapes, "encoder.conv_in.weight")
  levels = count_of(shapes, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
  check(
    levels >= 1,
    "the autoencoder's weights have no encoder.down.0; expected a whole"
    " checkpoint: convert one.",
  )
  _check_network(shapes, channels, levels)
  multipliers = tuple(
    shape_of(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] // base
    for i in range(levels)
  )
  latent_channels = shape_of(shapes, "post_quant_conv.weight")[0]
  is_kl16 = (latent_channels, levels) == (16, 5)
  check(
    latent_scale is not None or is_kl16,
    f"the autoencoder has {latent_channels} latent channels at stride"
    f" {2 ** (levels - 1)}, and its latent scale is not in the file; pass"
    " latent_scale (--latent_scale), 1 / standard deviation of its latents.",
  )
  return KLConfig(
    base_width=base,
    multipliers=multipliers,
    num_blocks=count_of(
      shapes, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight"
    ),
    latent_channels=latent_channels,
    latent_scale=KL16_SCALE if latent_scale is None else latent_scale,
    has_level_attention=f"encoder.down.{levels - 1}.attn.0.q.weight" in shapes,
  )


def _check_network(shapes: Shapes, channels: int, levels: int) -> None:
  """Says in a sentence which other network it is, if it is one."""
  others = {
    "attention in the decoder's levels": r"decoder\.up\.\d+\.attn\..*",
    "attention in a level of the encoder that is not its last": (
      rf"encoder\.down\.(?!{levels - 1}\.)\d+\.attn\..*"
    ),
  }
  ours = "the network of the KL autoencoders that MAR was published with"
  for what, pattern in others.items():
    name = next((n for n in shapes if re.fullmatch(pattern, n)), None)
    check(
      name is None,
      f"the autoencoder has {what} ({name}); expected {ours}: convert one of"
      " that kind.",
    )
  check(
    channels == CHANNELS,
    f"the autoencoder is of images with {channels} channel"
    f"{'s' * (channels != 1)} (encoder.conv_in.weight); expected RGB,"
    f" {CHANNELS}: convert one of that kind.",
  )
  for name in ("quant_conv", "post_quant_conv"):
    check(
      f"{name}.weight" in shapes,
      f"the autoencoder has no {name}, a 1 × 1 convolution at its latents;"
      f" expected {ours}: convert one of that kind, whole.",
    )


def model(shapes: Shapes, num_heads: int | None = None) -> ModelConfig:
  """The model with these shapes.

  Args:
    shapes: name → shape. num_heads: None is known for published widths only.

  Raises:
    ValueError: a shape is missing; the heads are neither given nor known.
  """
  width, token_dim = shape_of(shapes, "z_proj.weight")
  slots = shape_of(shapes, "encoder_pos_embed_learned")[1]
  num_tokens = shape_of(shapes, "diffusion_pos_embed_learned")[1]
  if num_heads is None:
    check(
      width in SIZES,
      f"the model has width {width}, none of the published {list(SIZES)}, and"
      " its number of attention heads is not in the file; pass"
      " num_heads (--num_heads).",
    )
    num_heads = SIZES[width][2]
  backbone = MaskedConfig(
    num_tokens=num_tokens,
    token_dim=token_dim,
    width=width,
    encoder_depth=count_of(shapes, r"encoder_blocks\.(\d+)\.norm1\.weight"),
    decoder_depth=count_of(shapes, r"decoder_blocks\.(\d+)\.norm1\.weight"),
    num_heads=num_heads,
    mlp_ratio=shape_of(shapes, "encoder_blocks.0.mlp.fc1.weight")[0] // width,
    num_buffer=slots - num_tokens,
    condition=ClassesConfig(shape_of(shapes, "class_emb.weight")[0]),
  )
  head = DiffusionHeadConfig(
    token_dim=token_dim,
    width=shape_of(shapes, "diffloss.net.input_proj.weight")[0],
    depth=count_of(shapes, r"diffloss\.net\.res_blocks\.(\d+)\.in_ln\.weight"),
  )
  return ModelConfig(backbone, head)


def codec_of(config: ModelConfig, codec: Codec) -> Codec:
  """The codec for the model's image size: latents cut into the model's tokens.

  Raises:
    ValueError: the autoencoder cannot give tokens of that many numbers.
  """
  backbone = config.backbone
  check(
    codec.num_codes == 0,
    f"the autoencoder, of kind {codec.kind!r}, makes codes, and the model has"
    " tokens of floats; expected the autoencoder that it was trained with: name"
    " that one.",
  )
  patch = math.isqrt(backbone.token_dim // codec.latent_channels)
  side = math.isqrt(backbone.num_tokens)
  check(
    side**2 == backbone.num_tokens,
    f"the model has {backbone.num_tokens} tokens, which are no square; expected"
    " a model of square images: convert one.",
  )
  check(
    patch >= 1 and patch**2 * codec.latent_channels == backbone.token_dim,
    f"the model has {backbone.num_tokens} tokens of {backbone.token_dim}"
    f" numbers, which patches of {codec.latent_channels} latent channels cannot"
    " make; name the autoencoder that it was trained with.",
  )
  return dataclasses.replace(
    codec, image_size=side * patch * codec.stride, patch=patch
  )


def name_of(config: ModelConfig) -> str:
  """ "MAR-B", "MAR-L", "MAR-H" at 256², else "MAR"."""
  backbone = config.backbone
  name, depth, heads, _ = SIZES.get(backbone.width, ("MAR", 0, 0, 0))
  found = (backbone.encoder_depth, backbone.decoder_depth, backbone.num_heads)
  is_published = (*found, backbone.num_tokens) == (depth, depth, heads, 256)
  return name if is_published else "MAR"


def settings_of(config: ModelConfig) -> tuple[Settings, dict[str, Settings]]:
  """Sampling settings to use, and presets by name (spec section 5).

    published  256 steps, linear guidance: gave the paper's scores
    unguided   256 steps, no guidance, temperature 0.95
    fast       64 steps, linear guidance; FID 0.01 to 0.04 worse: the default
    notebook   64 steps, constant guidance 4: what the authors' notebook draws

  A model that is not one of the published sizes has no presets.
  """
  num_tokens = config.backbone.num_tokens
  many, fewer = min(256, num_tokens), min(64, num_tokens)
  if name_of(config) == "MAR":
    return Settings(num_ar_steps=fewer), {}
  scale = SIZES[config.backbone.width][3]
  head = ReverseSettings(num_steps=100)
  presets = {
    "published": Settings(many, guidance_scale=scale, head=head),
    "unguided": Settings(many, temperature=0.95, head=head),
    "fast": Settings(fewer, guidance_scale=scale, head=head),
    "notebook": Settings(
      fewer, guidance_scale=4.0, guidance_schedule="constant", head=head
    ),
  }
  return presets["fast"], presets
