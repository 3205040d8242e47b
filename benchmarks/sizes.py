"""The models that are timed, by name.

    tiny     a few thousand parameters: what calling and scanning cost
    digits   that of configs/digits.py
    base, large, huge   MAR-B, L, H at 256²: 256 tokens of 16 numbers

The big ones are timed without the autoencoder: grey 64 × 64 images in patches
of 4 × 4 give the same 256 tokens of 16 numbers as KL-16's latents, at no cost.
Or they train as in earnest, on cached moments of KL-16: data "latents".
"""

import dataclasses

from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.masked import MaskedConfig
from marjax.experiment import DataConfig, Experiment, TrainingConfig
from marjax.generate.settings import Settings
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.reverse import ReverseSettings
from marjax.latents.kl import KLConfig
from marjax.latents.pixels import PixelsConfig
from marjax.model import ModelConfig
from marjax.tokens.masking import MaskConfig

_SMALL_SAMPLING = Settings(
  num_ar_steps=16,
  guidance_scale=1.25,
  head=ReverseSettings(num_steps=50, start=950),
)

_DIGITS_MASKING = MaskConfig(num_strata=2, lowest=0.01, std=0.5)


def _small(
  name: str, width: int, depth: int, head: tuple, masking: MaskConfig
) -> Experiment:
  backbone = MaskedConfig(
    num_tokens=16,
    token_dim=4,
    width=width,
    encoder_depth=depth,
    decoder_depth=depth,
    num_heads=4,
    num_buffer=4,
    attention_dropout=0.0,
    projection_dropout=0.0,
    remat="none",
    condition=ClassesConfig(num_classes=10),
    masking=masking,
  )
  codec = PixelsConfig(image_size=8, channels=1, patch=2)
  return _experiment(name, backbone, codec, head, 64, 2)


def _published(name, width, depth, num_heads, head, guidance) -> Experiment:
  backbone = MaskedConfig(
    width=width,
    encoder_depth=depth,
    decoder_depth=depth,
    num_heads=num_heads,
    masking=MaskConfig(num_strata=4),
  )
  codec = PixelsConfig(image_size=64, channels=1, patch=4)
  experiment = _experiment(name, backbone, codec, head, 32, 4)
  sampling = Settings(guidance_scale=guidance).for_model(experiment.model)
  return dataclasses.replace(experiment, sampling=sampling)


def _experiment(name, backbone, codec, head, batch_size, repeats) -> Experiment:
  head_width, head_depth = head
  return Experiment(
    name=name,
    codec=codec,
    model=ModelConfig(
      backbone,
      DiffusionHeadConfig(backbone.token_dim, head_width, head_depth, repeats),
    ),
    data=DataConfig(
      source="synthetic",
      image_size=codec.image_size,
      channels=codec.channels,
      num_classes=backbone.condition.num_classes,
    ),
    training=TrainingConfig(batch_size=batch_size, num_steps=1000),
    sampling=_SMALL_SAMPLING,
  )


SIZES = {
  "tiny": _small("tiny", 16, 1, (16, 1), MaskConfig(num_strata=2)),
  "digits": _small("digits", 64, 2, (128, 3), _DIGITS_MASKING),
  "base": _published("base", 768, 12, 12, (1024, 6), guidance=2.9),
  "large": _published("large", 1024, 16, 16, (1280, 8), guidance=3.0),
  "huge": _published("huge", 1280, 20, 16, (1536, 12), guidance=3.2),
}


def experiment(
  size: str,
  batch_size: int | None = None,
  dtype: str = "float32",
  remat: str | None = None,
  data: str = "pixels",
) -> Experiment:
  """The experiment of a size, with some of its settings changed.

  Args:
    size: of SIZES. batch_size: None for its own.
    dtype: of the matmuls.
    remat: see `MaskedConfig`; None for its own.
    data: "pixels", or "latents" for cached moments of KL-16.

  Raises:
    ValueError: there is no such size, or it has no latents.
  """
  if size not in SIZES:
    raise ValueError(
      f"there is no size {size!r}; expected one of {', '.join(SIZES)}."
    )
  found, replace = SIZES[size], dataclasses.replace
  backbone = found.model.backbone
  model = replace(
    found.model,
    backbone=replace(backbone, dtype=dtype, remat=remat or backbone.remat),
    head=replace(found.model.head, dtype=dtype),
  )
  training = replace(
    found.training, batch_size=batch_size or found.training.batch_size
  )
  found = replace(found, model=model, training=training)
  return _on_latents(size, found) if data == "latents" else found


def _on_latents(size: str, found: Experiment) -> Experiment:
  codec, backbone = KLConfig(), found.model.backbone
  tokens = (backbone.num_tokens, backbone.token_dim)
  if tokens != (codec.num_tokens, codec.token_dim):
    raise ValueError(
      f"size {size!r} has {tokens[0]} tokens of {tokens[1]} numbers, KL-16's"
      " latents 256 of 16; expected base, large or huge with data 'latents'."
    )
  data = dataclasses.replace(
    found.data,
    source="latents",
    image_size=codec.image_size,
    channels=codec.channels,
  )
  return dataclasses.replace(found, codec=codec, data=data)
