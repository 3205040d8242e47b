r"""The table of the published KL autoencoders.

Sources are state dicts of the released program: convolution weights are
[out, in, height, width], 1 × 1 ones included. Its level 0 is that of the full
resolution in encoder and decoder alike, and so is ours.
"""

from functools import partial

from marjax.convert.table import Rule, weight_and_bias

_LEVEL = r"(?P<half>encoder|decoder)\.(?:down|up)\.(?P<level>\d+)\."
_LEVEL_TARGET = r"\g<half>/levels_\g<level>/"
_MIDDLE = r"(?P<half>encoder|decoder)\.mid\."
_MIDDLE_TARGET = r"\g<half>/middle/"


def conv(array, shape: tuple[int, ...]):
  """A convolution's [out, in, height, width] to [height, width, in, out].

  A matrix [out, in] is one of 1 × 1.

  Raises:
    ValueError: the array is no such convolution.
  """
  if len(array.shape) == 2:
    array = array.reshape(*array.shape, 1, 1)
  moved = array.transpose(2, 3, 1, 0)
  if moved.shape != shape:
    raise ValueError("another shape")
  return moved


conv_layer = partial(weight_and_bias, weight="kernel", move=conv)
norm_layer = partial(weight_and_bias, weight="scale")


def block(pattern: str, path: str) -> tuple[Rule, ...]:
  """Rules of a residual block."""
  return (
    *norm_layer(pattern + r"\.norm(?P<n>[12])", path + r"/norm\g<n>"),
    *conv_layer(pattern + r"\.conv(?P<n>[12])", path + r"/conv\g<n>"),
    *conv_layer(pattern + r"\.nin_shortcut", path + "/shortcut"),
  )


def attention(pattern: str, path: str) -> tuple[Rule, ...]:
  """Rules of an attention."""
  return (
    *norm_layer(pattern + r"\.norm", path + "/norm"),
    *conv_layer(pattern + r"\.q", path + "/query"),
    *conv_layer(pattern + r"\.k", path + "/key"),
    *conv_layer(pattern + r"\.v", path + "/value"),
    *conv_layer(pattern + r"\.proj_out", path + "/projection"),
  )


TRUNK: tuple[Rule, ...] = (
  *conv_layer(r"(?P<half>encoder|decoder)\.conv_in", r"\g<half>/conv_in"),
  *block(
    _LEVEL + r"block\.(?P<block>\d+)", _LEVEL_TARGET + r"blocks_\g<block>"
  ),
  *attention(
    _LEVEL + r"attn\.(?P<block>\d+)", _LEVEL_TARGET + r"attentions_\g<block>"
  ),
  *conv_layer(_LEVEL + r"downsample\.conv", _LEVEL_TARGET + "down"),
  *conv_layer(_LEVEL + r"upsample\.conv", _LEVEL_TARGET + "up"),
  *block(_MIDDLE + r"block_(?P<block>\d)", _MIDDLE_TARGET + r"block\g<block>"),
  *attention(_MIDDLE + r"attn_1", _MIDDLE_TARGET + "attention"),
  *norm_layer(r"(?P<half>encoder|decoder)\.norm_out", r"\g<half>/norm_out"),
  *conv_layer(r"(?P<half>encoder|decoder)\.conv_out", r"\g<half>/conv_out"),
)
"""Encoder and decoder, without what is between them."""

RULES: tuple[Rule, ...] = (
  *TRUNK,
  *conv_layer("quant_conv", "to_moments"),
  *conv_layer("post_quant_conv", "from_latents"),
)
