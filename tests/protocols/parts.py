"""Every implementation of each protocol, small, by its kind."""

import dataclasses

import small

from marjax import schema
from marjax.backbone.conditions import ClassesConfig
from marjax.latents.codebook import CodebookConfig
from marjax.latents.vq import VQConfig
from marjax.protocols import BackboneConfig, Codec, Condition, HeadConfig

CLASSES = ClassesConfig(num_classes=5)

VQ = VQConfig(
  image_size=8,
  base_width=32,
  multipliers=(1, 1),
  num_blocks=1,
  z_channels=6,
  latent_channels=4,
  codebook_size=24,
)

SMALL = {
  Codec: {
    "pixels": dataclasses.replace(small.EXPERIMENT.codec, std=0.5),
    "kl": small.CODEC,
    "vq": VQ,
    "codebook": CodebookConfig(8, channels=1, patch=2, num_codes=16, std=0.5),
  },
  Condition: {"classes": CLASSES},
  BackboneConfig: {
    "masked": dataclasses.replace(
      small.MODEL.backbone, condition=dataclasses.replace(CLASSES, dropout=0.5)
    )
  },
}


VARIANTS = {
  Codec: {
    "vq normalised": dataclasses.replace(VQ, is_normalised=True),
    "vq continuous": dataclasses.replace(
      VQ, continuous=True, latent_scale=0.5, patch=2
    ),
  }
}
"""Further ones, which a test of every codec should see, too."""


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
