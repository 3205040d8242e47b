"""Shapes → the card of a release, and the parameters that it describes."""

import flax.linen as nn
import jax
from jaxtyping import PyTree

from marjax.convert import recognise
from marjax.latents.kl import KLConfig
from marjax.model import init_params
from marjax.release import classes
from marjax.release.card import Card

SIBLING = "../kl16"
"""Where a release looks for its autoencoder unless it carries one."""


def model(
  shapes: recognise.Shapes,
  codec: KLConfig,
  num_heads: int | None = None,
) -> Card:
  """The card of a model; 1000 classes are called what ImageNet's are.

  Args:
    shapes: of its weights. codec: of its autoencoder.
    num_heads: None is known for published widths only.

  Raises:
    ValueError: see `recognise.model`, `recognise.codec_of`.
  """
  config = recognise.model(shapes, num_heads)
  sampling, presets = recognise.settings_of(config)
  is_imagenet = config.backbone.num_classes == len(classes.imagenet())
  return Card(
    name=recognise.name_of(config),
    codec=recognise.codec_of(config, codec),
    model=config,
    sampling=sampling,
    presets=presets,
    class_names=classes.imagenet() if is_imagenet else (),
    autoencoder=SIBLING,
  )


def autoencoder(
  shapes: recognise.Shapes, latent_scale: float | None = None
) -> Card:
  """The card of an autoencoder; see `recognise.autoencoder`."""
  codec = recognise.autoencoder(shapes, latent_scale)
  return Card(name=f"KL-{codec.stride}", codec=codec)


def target(card: Card) -> PyTree:
  """Shapes of the parameters that a card describes, without their memory."""
  config, codec = card.model, card.codec
  if config is None:
    return jax.eval_shape(lambda: codec.init_params(jax.random.key(0)))
  return jax.eval_shape(
    lambda: nn.unbox(init_params(config, jax.random.key(0)))
  )
