"""The models that are timed, by name.

    tiny     a few thousand parameters: what calling and scanning cost
    digits   that of configs/digits.py
    base, large, huge   MAR-B, L, H at 256²: 256 tokens of 16 numbers
    causal_large        as large, one causal stack of 32 blocks, random order
    guided_large        as large, 16 causal blocks, 16 of queries

Their heads are diffusion's. A flow head has the same network; a categorical one
is one layer, and comes with the codes of VQ-16 in place of KL-16's numbers.

The big ones are timed without the autoencoder: grey 64 × 64 images in patches
of 4 × 4 give the same 256 tokens of 16 numbers as KL-16's latents, at no cost.
Or they train as in earnest, on cached moments of KL-16: data "latents".
"""

import dataclasses

from marjax.backbone.causal import CausalConfig
from marjax.backbone.conditions import ClassesConfig
from marjax.backbone.guided import GuidedConfig
from marjax.backbone.masked import MaskedConfig
from marjax.experiment import DataConfig, Experiment, TrainingConfig
from marjax.generate.settings import Settings
from marjax.head.categorical import CategoricalHeadConfig
from marjax.head.diffusion import DiffusionHeadConfig
from marjax.head.flow import FlowHeadConfig
from marjax.head.reverse import ReverseSettings
from marjax.latents.kl import KLConfig
from marjax.latents.pixels import PixelsConfig
from marjax.latents.vq import VQConfig
from marjax.model import ModelConfig
from marjax.protocols import HeadConfig
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
  model = _model(backbone, head, repeats=2)
  return _experiment(name, codec, model, 64, _SMALL_SAMPLING)


def _masked(width: int, depth: int, num_heads: int) -> MaskedConfig:
  return MaskedConfig(
    width=width,
    encoder_depth=depth,
    decoder_depth=depth,
    num_heads=num_heads,
    masking=MaskConfig(num_strata=4),
  )


def _big(name, backbone, head, guidance) -> Experiment:
  codec = PixelsConfig(image_size=64, channels=1, patch=4)
  model = _model(backbone, head, repeats=4)
  sampling = Settings(guidance_scale=guidance).for_model(model)
  return _experiment(name, codec, model, 32, sampling)


def _model(backbone, head: tuple, repeats: int) -> ModelConfig:
  return ModelConfig(
    backbone, DiffusionHeadConfig(backbone.token_dim, *head, repeats)
  )


def _experiment(name, codec, model, batch_size, sampling) -> Experiment:
  return Experiment(
    name=name,
    codec=codec,
    model=model,
    data=DataConfig(
      source="synthetic",
      image_size=codec.image_size,
      channels=codec.channels,
      num_classes=model.backbone.condition.num_classes,
    ),
    training=TrainingConfig(batch_size=batch_size, num_steps=1000),
    sampling=sampling,
  )


SIZES = {
  "tiny": _small("tiny", 16, 1, (16, 1), MaskConfig(num_strata=2)),
  "digits": _small("digits", 64, 2, (128, 3), _DIGITS_MASKING),
  "base": _big("base", _masked(768, 12, 12), (1024, 6), guidance=2.9),
  "large": _big("large", _masked(1024, 16, 16), (1280, 8), guidance=3.0),
  "huge": _big("huge", _masked(1280, 20, 16), (1536, 12), guidance=3.2),
  "causal_large": _big(
    "causal_large",
    CausalConfig(width=1024, depth=32, num_heads=16, order="random"),
    (1280, 8),
    guidance=3.0,
  ),
  "guided_large": _big(
    "guided_large",
    GuidedConfig(width=1024, memory_depth=16, query_depth=16, num_heads=16),
    (1280, 8),
    guidance=3.0,
  ),
}

HEADS = ("diffusion", "flow", "categorical")


def experiment(
  size: str,
  batch_size: int | None = None,
  dtype: str = "float32",
  remat: str | None = None,
  data: str = "pixels",
  head: str = "diffusion",
) -> Experiment:
  """The experiment of a size, with some of its settings changed.

  Args:
    size: of SIZES. batch_size: None for its own.
    dtype: of the matmuls.
    remat: see `TransformerConfig`; None for its own.
    data: "pixels", or "latents" for cached moments of KL-16.
    head: of HEADS; another than "diffusion" draws by its own default settings.

  Raises:
    ValueError: there is no such size or head, or it has no latents.
  """
  if size not in SIZES:
    raise ValueError(
      f"there is no size {size!r}; expected one of {', '.join(SIZES)}."
    )
  found, replace = SIZES[size], dataclasses.replace
  if data == "latents":
    found = replace(found, **_on_latents(size, found))
  found = _with_head(size, found, head)
  model = found.model.in_dtype(dtype)
  if remat:
    model = replace(model, backbone=replace(model.backbone, remat=remat))
  training = replace(
    found.training, batch_size=batch_size or found.training.batch_size
  )
  return replace(found, model=model, training=training)


def _with_head(size: str, found: Experiment, kind: str) -> Experiment:
  if kind not in HEADS:
    raise ValueError(
      f"there is no head {kind!r}; expected one of {', '.join(HEADS)}."
    )
  model, changes = found.model, {}
  if kind == "diffusion":
    return found
  if kind == "flow":
    model = ModelConfig(model.backbone, _as_flow(model.head))
  else:
    changes = _on_codes(size, found)
    count = changes["codec"].num_codes
    backbone = dataclasses.replace(model.backbone, num_codes=count)
    model = ModelConfig(backbone, CategoricalHeadConfig(count))
  sampling = dataclasses.replace(found.sampling, head=None).for_model(model)
  return dataclasses.replace(found, model=model, sampling=sampling, **changes)


def _as_flow(head: HeadConfig) -> FlowHeadConfig:
  return FlowHeadConfig(head.token_dim, head.width, head.depth, head.repeats)


def _on_codes(size: str, found: Experiment) -> dict:
  codec, length = VQConfig(), found.model.backbone.num_tokens
  if length != codec.num_tokens:
    raise ValueError(
      f"size {size!r} has {length} tokens, VQ-16's images {codec.num_tokens};"
      f" expected one of {_BIG} with head 'categorical'."
    )
  return _on_records(found, codec)


def _on_latents(size: str, found: Experiment) -> dict:
  codec, backbone = KLConfig(), found.model.backbone
  tokens = (backbone.num_tokens, backbone.token_dim)
  if tokens != (codec.num_tokens, codec.token_dim):
    raise ValueError(
      f"size {size!r} has {tokens[0]} tokens of {tokens[1]} numbers, KL-16's"
      f" latents 256 of 16; expected one of {_BIG} with data 'latents'."
    )
  return _on_records(found, codec)


_BIG = ", ".join(name for name in SIZES if name not in ("tiny", "digits"))


def _on_records(found: Experiment, codec: KLConfig | VQConfig) -> dict:
  """What changes to train on what a cache keeps of the codec's latents."""
  data = dataclasses.replace(
    found.data,
    source="latents",
    image_size=codec.image_size,
    channels=codec.channels,
  )
  return {"codec": codec, "data": data}
