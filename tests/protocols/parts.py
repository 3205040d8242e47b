"""Every implementation of each protocol, small, by its kind."""

import dataclasses

import small

from marjax import schema
from marjax.backbone.conditions import ClassesConfig
from marjax.protocols import BackboneConfig, Codec, Condition, HeadConfig

CLASSES = ClassesConfig(num_classes=5)

SMALL = {
  Codec: {
    "pixels": dataclasses.replace(small.EXPERIMENT.codec, std=0.5),
    "kl": small.CODEC,
  },
  Condition: {"classes": CLASSES},
  BackboneConfig: {
    "masked": dataclasses.replace(
      small.MODEL.backbone, condition=dataclasses.replace(CLASSES, dropout=0.5)
    )
  },
}


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
