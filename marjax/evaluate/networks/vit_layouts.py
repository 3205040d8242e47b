"""Published weights of DINOv2 and CLIP, by table.

    ours             DINOv2, timm    Hugging Face              OpenAI
    blocks/qkv       attn.qkv        query, key and value      attn.in_proj
    blocks/out       attn.proj       output.dense, out_proj    attn.out_proj
    blocks/wide      mlp.fc1         mlp.fc1                   mlp.c_fc
    blocks/narrow    mlp.fc2         mlp.fc2                   mlp.c_proj

Matrices are [out, in] there. What belongs to texts, to training, or to sizes is
left out by name.
"""

import numpy as np
from jaxtyping import PyTree

from marjax.convert.kl import conv
from marjax.convert.table import Rule, same, transposed, weight_and_bias
from marjax.evaluate.networks.layers import float32
from marjax.evaluate.networks.layout import Layout
from marjax.schema import check

_PARTS = ("query", "key", "value")


def _norm(pattern: str, path: str) -> tuple[Rule, ...]:
  return weight_and_bias(pattern, path, "scale", same)


def _dense(pattern: str, path: str) -> tuple[Rule, ...]:
  return weight_and_bias(pattern, path, "kernel", transposed)


def _block(before: str, names: dict[str, str]) -> tuple[Rule, ...]:
  """Rules of a block's layers: our name → theirs, after `before`."""
  rules: list[Rule] = []
  for ours, theirs in names.items():
    kind = _norm if ours.startswith("norm") else _dense
    rules += kind(before + theirs, f"blocks/{ours}")
  return tuple(rules)


_LAYER = r"blocks\.(?P<layer>\d+)\."
_TIMM_BLOCK = _block(
  _LAYER,
  {
    "norm1": "norm1",
    "qkv": r"attn\.qkv",
    "out": r"attn\.proj",
    "norm2": "norm2",
    "wide": r"mlp\.fc1",
    "narrow": r"mlp\.fc2",
  },
)

_TIMM = (
  *_TIMM_BLOCK,
  Rule("cls_token", "class"),
  Rule("pos_embed", "positions"),
  *weight_and_bias(r"patch_embed\.proj", "patches", "kernel", conv),
  *_norm("norm", "norm"),
)

_TIMM_DINOV2 = (
  *_TIMM,
  Rule(_LAYER + r"ls(?P<n>[12])\.gamma", r"blocks/scale\g<n>"),
)

_TIMM_CLIP = (
  *_TIMM,
  *_norm("norm_pre", "first_norm"),
  *_dense("head", "projection"),
)

_FACE_LAYER = r"encoder\.layer\.(?P<layer>\d+)\."
_FACE_DINOV2 = (
  *_block(
    _FACE_LAYER,
    {
      "norm1": "norm1",
      **{part: rf"attention\.attention\.{part}" for part in _PARTS},
      "out": r"attention\.output\.dense",
      "norm2": "norm2",
      "wide": r"mlp\.fc1",
      "narrow": r"mlp\.fc2",
    },
  ),
  Rule(_FACE_LAYER + r"layer_scale(?P<n>[12])\.lambda1", r"blocks/scale\g<n>"),
  Rule(r"embeddings\.cls_token", "class"),
  Rule(r"embeddings\.position_embeddings", "positions"),
  *weight_and_bias(
    r"embeddings\.patch_embeddings\.projection", "patches", "kernel", conv
  ),
  *_norm("layernorm", "norm"),
)

_VISION = r"vision_model\."
_FACE_CLIP = (
  *_block(
    _VISION + r"encoder\.layers\.(?P<layer>\d+)\.",
    {
      "norm1": "layer_norm1",
      **{part: rf"self_attn\.{part[0]}_proj" for part in _PARTS},
      "out": r"self_attn\.out_proj",
      "norm2": "layer_norm2",
      "wide": r"mlp\.fc1",
      "narrow": r"mlp\.fc2",
    },
  ),
  Rule(_VISION + r"embeddings\.class_embedding", "class"),
  Rule(_VISION + r"embeddings\.position_embedding\.weight", "positions"),
  Rule(
    _VISION + r"embeddings\.patch_embedding\.weight", "patches/kernel", conv
  ),
  *_norm(_VISION + "pre_layrnorm", "first_norm"),
  *_norm(_VISION + "post_layernorm", "norm"),
  Rule(r"visual_projection\.weight", "projection/kernel", transposed),
)

_VISUAL = r"visual\."
_RESBLOCK = _VISUAL + r"transformer\.resblocks\.(?P<layer>\d+)\."
_OPENAI_CLIP = (
  *_block(
    _RESBLOCK,
    {
      "norm1": "ln_1",
      "out": r"attn\.out_proj",
      "norm2": "ln_2",
      "wide": r"mlp\.c_fc",
      "narrow": r"mlp\.c_proj",
    },
  ),
  Rule(_RESBLOCK + r"attn\.in_proj_weight", "blocks/qkv/kernel", transposed),
  Rule(_RESBLOCK + r"attn\.in_proj_bias", "blocks/qkv/bias"),
  Rule(_VISUAL + "class_embedding", "class"),
  Rule(_VISUAL + "positional_embedding", "positions"),
  Rule(_VISUAL + r"conv1\.weight", "patches/kernel", conv),
  *_norm(_VISUAL + "ln_pre", "first_norm"),
  *_norm(_VISUAL + "ln_post", "norm"),
  Rule(_VISUAL + "proj", "projection/kernel"),
)


def _with_parts(tree: PyTree) -> PyTree:
  """qkv becomes query, key and value."""
  blocks = dict(tree["blocks"])
  qkv = blocks.pop("qkv")
  part = {
    name: float32(*leaf.shape[:-1], leaf.shape[-1] // 3)
    for name, leaf in qkv.items()
  }
  return tree | {"blocks": blocks | dict.fromkeys(_PARTS, part)}


def _without_parts(tree: PyTree) -> PyTree:
  blocks = dict(tree["blocks"])
  parts = [blocks.pop(name) for name in _PARTS]
  qkv = {
    name: np.concatenate([part[name] for part in parts], axis=-1)
    for name in ("kernel", "bias")
  }
  return tree | {"blocks": blocks | {"qkv": qkv}}


def _with_last_bias(tree: PyTree) -> PyTree:
  kernel = tree["projection"]["kernel"]
  bias = float32(kernel.shape[1])
  return tree | {"projection": {"kernel": kernel, "bias": bias}}


def _without_last_bias(tree: PyTree) -> PyTree:
  check(
    not np.any(tree["projection"]["bias"]),
    "the last layer (head.bias) has a bias, which CLIP has not; expected its"
    " published weights: take that file.",
  )
  return tree | {"projection": {"kernel": tree["projection"]["kernel"]}}


DINOV2 = (
  Layout(
    "DINOv2 and timm",
    "blocks.0.ls1.gamma",
    _TIMM_DINOV2,
    ignored="mask_token",
  ),
  Layout(
    "Hugging Face",
    "embeddings.position_embeddings",
    _FACE_DINOV2,
    _with_parts,
    _without_parts,
    ignored=r"embeddings\.mask_token",
  ),
)

CLIP = (
  Layout(
    "Hugging Face",
    "visual_projection.weight",
    _FACE_CLIP,
    _with_parts,
    _without_parts,
    ignored=r"text_model\..*|text_projection\.weight|logit_scale"
    r"|vision_model\.embeddings\.position_ids",
  ),
  Layout(
    "OpenAI",
    "visual.class_embedding",
    _OPENAI_CLIP,
    ignored=r"transformer\..*|token_embedding\.weight|positional_embedding"
    r"|ln_final\..*|text_projection|logit_scale|input_resolution"
    r"|context_length|vocab_size",
  ),
  Layout(
    "timm",
    "norm_pre.weight",
    _TIMM_CLIP,
    _with_last_bias,
    _without_last_bias,
  ),
)
