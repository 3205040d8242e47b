"""Every implementation of each protocol, small, by its kind."""

import dataclasses

import small

from marjax import schema
from marjax.backbone.causal import CausalConfig
from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.guided import GuidedConfig
from marjax.latents.codebook import CodebookConfig
from marjax.latents.vq import VQConfig
from marjax.protocols import BackboneConfig, Codec, Condition, HeadConfig

CLASSES = ClassesConfig(num_classes=5)
DROPPED = dataclasses.replace(CLASSES, dropout=0.5)
SHAPE = {
  "num_tokens": 16,
  "token_dim": 4,
  "width": 32,
  "num_heads": 4,
  "condition": DROPPED,
}

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
    "masked": dataclasses.replace(small.MODEL.backbone, condition=DROPPED),
    "causal": CausalConfig(**SHAPE, depth=2, num_prefix=2, order="random"),
    "guided": GuidedConfig(**SHAPE, memory_depth=1, query_depth=2),
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

  Heads need nothing but their sizes; a kind of another protocol that stands in
  no row of SMALL is an error, which asks for a row.
  """
  configs = {config.kind: config for config in schema.options(protocol)}
  if protocol is HeadConfig:
    return {kind: _small_head(config) for kind, config in configs.items()}
  return {kind: SMALL[protocol][kind] for kind in configs}


def _small_head(config):
  is_coded = "num_codes" in schema.hints(config)
  sizes = {"token_dim": 3, "width": 32, "depth": 2}
  return config(**{"num_codes": 7} if is_coded else sizes)


def tokens(part, *batch):
  """Random tokens [*batch, *token_shape], floats or codes as the part says."""
  import jax

  key, shape = jax.random.key(1), (*batch, *part.token_shape)
  if part.num_codes:
    return jax.random.randint(key, shape, 0, part.num_codes)
  return jax.random.normal(key, shape)


def noisy(params, scale=0.1):
  """Parameters that are neither zero nor tame, so that all paths count."""
  import jax

  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  return tree.unflatten(
    leaf + scale * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  )
