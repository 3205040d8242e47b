r"""The tables of the published VQ autoencoders, and how each is recognised.

    latent diffusion, taming      LlamaGen
    encoder.down.I.block.J        encoder.conv_blocks.I.res.J
    decoder.up.I.block.J          decoder.conv_blocks.K.res.J, K = last - I
    encoder.mid.block_1           encoder.mid.0
    encoder.mid.attn_1            encoder.mid.1

1. Both keep the code vectors in `quantize.embedding.weight`, [V, d], between
   `quant_conv` and `post_quant_conv`.
2. Those with LlamaGen's names have z and code vectors of length 1, the others
   not: no shape says it.
3. Attention belongs to the deepest level of both halves, if any has it. An
   array elsewhere has no place in our network, and is named as that.

What only training needs is left out before (`marjax.convert.layouts`).
"""

from marjax.convert import kl
from marjax.convert.kl import attention, block, conv_layer, norm_layer
from marjax.convert.shapes import Shapes, count_of, shape_of
from marjax.convert.table import Rule
from marjax.latents.trunk import CHANNELS
from marjax.latents.vq import VQConfig
from marjax.schema import check

CODES = "quantize.embedding.weight"

_HALF = r"(?P<half>encoder|decoder)\."

_BETWEEN: tuple[Rule, ...] = (
  *conv_layer("quant_conv", "to_latents"),
  Rule(r"quantize\.embedding\.weight", "codes"),
  *conv_layer("post_quant_conv", "from_latents"),
)

_ENDS: tuple[Rule, ...] = (
  *conv_layer(_HALF + "conv_in", r"\g<half>/conv_in"),
  *block(_HALF + r"mid\.0", r"\g<half>/middle/block1"),
  *attention(_HALF + r"mid\.1", r"\g<half>/middle/attention"),
  *block(_HALF + r"mid\.2", r"\g<half>/middle/block2"),
  *norm_layer(_HALF + "norm_out", r"\g<half>/norm_out"),
  *conv_layer(_HALF + "conv_out", r"\g<half>/conv_out"),
)


def is_vq(shapes: Shapes) -> bool:
  """Whether an autoencoder's weights have codes."""
  return any(name.startswith("quantize.") for name in shapes)


def rules(shapes: Shapes) -> tuple[Rule, ...]:
  """The table for a VQ autoencoder's names."""
  if not _is_llamagen(shapes):
    return (*kl.TRUNK, *_BETWEEN)
  last = _num_levels(shapes) - 1
  levels: list[Rule] = []
  for i in range(last + 1):
    levels += _level(rf"encoder\.conv_blocks\.{i}\.", f"encoder/levels_{i}/")
    from_below = rf"decoder\.conv_blocks\.{last - i}\."
    levels += _level(from_below, f"decoder/levels_{i}/")
  return (*_ENDS, *levels, *_BETWEEN)


def autoencoder(shapes: Shapes, latent_scale: float | None = None) -> VQConfig:
  """The VQ autoencoder with these shapes, for images of 256².

  Args:
    shapes: name → shape.
    latent_scale: None makes tokens of ids, a number tokens of z, so scaled.

  Raises:
    ValueError: a shape is missing, or the images are not RGB.
  """
  base, channels, *_ = shape_of(shapes, "encoder.conv_in.weight")
  check(
    channels == CHANNELS,
    f"the autoencoder has images of {channels} channels"
    f" (encoder.conv_in.weight); expected {CHANNELS}: convert one of RGB"
    " images.",
  )
  level, part = _names(shapes)
  levels = _num_levels(shapes)
  check(
    levels >= 1,
    f"the autoencoder's weights have no {level}.0; expected a whole checkpoint:"
    " convert one.",
  )
  firsts = [f"{level}.{i}.{part}.0.conv1.weight" for i in range(levels)]
  blocks = rf"{level}.0.{part}.(\d+).conv1.weight".replace(".", r"\.")
  count, latent_channels = shape_of(shapes, CODES)
  return VQConfig(
    base_width=base,
    multipliers=tuple(shape_of(shapes, name)[0] // base for name in firsts),
    num_blocks=count_of(shapes, blocks),
    z_channels=shape_of(shapes, "encoder.conv_out.weight")[0],
    latent_channels=latent_channels,
    codebook_size=count,
    is_normalised=_is_llamagen(shapes),
    has_level_attention=f"{level}.{levels - 1}.attn.0.q.weight" in shapes,
    continuous=latent_scale is not None,
    latent_scale=1.0 if latent_scale is None else latent_scale,
  )


def _is_llamagen(shapes: Shapes) -> bool:
  return any(name.startswith("encoder.conv_blocks.") for name in shapes)


def _names(shapes: Shapes) -> tuple[str, str]:
  """What the encoder's levels are called, and the blocks in one."""
  if _is_llamagen(shapes):
    return "encoder.conv_blocks", "res"
  return "encoder.down", "block"


def _num_levels(shapes: Shapes) -> int:
  level, part = _names(shapes)
  name = rf"{level}.(\d+).{part}.0.conv1.weight"
  return count_of(shapes, name.replace(".", r"\."))


def _level(pattern: str, path: str) -> tuple[Rule, ...]:
  blocks, attentions = path + r"blocks_\g<i>", path + r"attentions_\g<i>"
  return (
    *block(pattern + r"res\.(?P<i>\d+)", blocks),
    *attention(pattern + r"attn\.(?P<i>\d+)", attentions),
    *conv_layer(pattern + r"downsample\.conv", path + "down"),
    *conv_layer(pattern + r"upsample\.conv", path + "up"),
  )
