r"""The table of the published MAR checkpoints (backbone and diffusion head).

Sources are state dicts of the released program: linear weights are [out, in],
the fused qkv output is [3, heads, head_dim], position tables are [1, slots, W].
"""

from functools import partial

from marjax.convert.table import Rule, transposed, weight_and_bias

_STACK = r"(?P<stack>encoder|decoder)_blocks\.(?P<layer>\d+)\."
_BLOCK = r"backbone/\g<stack>/layers/block/"
_HEAD_BLOCK = r"diffloss\.net\.res_blocks\.(?P<block>\d+)\."
_HEAD_TARGET = r"head/net/blocks_\g<block>/"
_linear = partial(weight_and_bias, weight="kernel", move=transposed)
_norm = partial(weight_and_bias, weight="scale")

RULES: tuple[Rule, ...] = (
  Rule("fake_latent", "backbone/class_embedding/fake_latent"),
  Rule(r"class_emb\.weight", "backbone/class_embedding/table"),
  Rule("mask_token", "backbone/mask_token"),
  Rule("encoder_pos_embed_learned", "backbone/encoder_positions/table"),
  Rule("decoder_pos_embed_learned", "backbone/decoder_positions/table"),
  Rule("diffusion_pos_embed_learned", "backbone/head_positions/table"),
  *_linear("z_proj", "backbone/embed_token"),
  *_norm("z_proj_ln", "backbone/embed_norm"),
  *_norm("encoder_norm", "backbone/encoder_norm"),
  *_linear("decoder_embed", "backbone/embed_encoded"),
  *_norm("decoder_norm", "backbone/decoder_norm"),
  *_norm(_STACK + "norm1", _BLOCK + "norm_attention"),
  *_linear(_STACK + r"attn\.qkv", _BLOCK + "attention/qkv"),
  *_linear(_STACK + r"attn\.proj", _BLOCK + "attention/projection"),
  *_norm(_STACK + "norm2", _BLOCK + "norm_mlp"),
  *_linear(_STACK + r"mlp\.fc1", _BLOCK + "fc1"),
  *_linear(_STACK + r"mlp\.fc2", _BLOCK + "fc2"),
  *_linear(r"diffloss\.net\.time_embed\.mlp\.0", "head/net/time_in"),
  *_linear(r"diffloss\.net\.time_embed\.mlp\.2", "head/net/time_out"),
  *_linear(r"diffloss\.net\.cond_embed", "head/net/condition"),
  *_linear(r"diffloss\.net\.input_proj", "head/net/embed_x"),
  *_norm(_HEAD_BLOCK + "in_ln", _HEAD_TARGET + "norm"),
  *_linear(_HEAD_BLOCK + r"mlp\.0", _HEAD_TARGET + "linear_in"),
  *_linear(_HEAD_BLOCK + r"mlp\.2", _HEAD_TARGET + "linear_out"),
  *_linear(_HEAD_BLOCK + r"adaLN_modulation\.1", _HEAD_TARGET + "modulation"),
  *_linear(r"diffloss\.net\.final_layer\.linear", "head/net/final_linear"),
  *_linear(
    r"diffloss\.net\.final_layer\.adaLN_modulation\.1",
    "head/net/final_modulation",
  ),
)
