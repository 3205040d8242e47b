"""Every implementation of each protocol, small, by its kind."""

from marjax import schema
from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.masked import MaskedConfig
from marjax.latents.kl import KLConfig
from marjax.latents.pixels import PixelsConfig
from marjax.protocols import BackboneConfig, Codec, Condition, HeadConfig
from marjax.tokens.masking import MaskConfig

SMALL = {
  Codec: {
    "pixels": PixelsConfig(image_size=8, channels=1, patch=2, std=0.5),
    "kl": KLConfig(
      image_size=8,
      base_width=32,
      multipliers=(1, 1),
      num_blocks=1,
      latent_channels=4,
      latent_scale=0.5,
      has_level_attention=False,
    ),
  },
  Condition: {"classes": ClassesConfig(num_classes=5)},
  BackboneConfig: {
    "masked": MaskedConfig(
      num_tokens=16,
      token_dim=4,
      width=32,
      encoder_depth=1,
      decoder_depth=1,
      num_heads=4,
      num_buffer=4,
      condition=ClassesConfig(num_classes=5, dropout=0.5),
      masking=MaskConfig(num_strata=2, lowest=0.1, std=0.5),
    )
  },
}


def kinds(protocol: type) -> dict:
  """Kind → a small configuration, of all that are registered.

  Heads need nothing but a size; a kind of another protocol that stands in no
  row of SMALL is an error, which asks for a row.
  """
  configs = {config.kind: config for config in schema.options(protocol)}
  if protocol is HeadConfig:
    return {
      kind: config(token_dim=3, width=32, depth=2)
      for kind, config in configs.items()
    }
  return {kind: SMALL[protocol][kind] for kind in configs}


def noisy(params, scale=0.1):
  """Parameters that are neither zero nor tame, so that all paths count."""
  import jax

  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  return tree.unflatten(
    leaf + scale * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  )
