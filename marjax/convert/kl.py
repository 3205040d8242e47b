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


_conv = partial(weight_and_bias, weight="kernel", move=conv)
_norm = partial(weight_and_bias, weight="scale")


def _block(pattern: str, path: str) -> tuple[Rule, ...]:
  return (
    *_norm(pattern + r"\.norm(?P<n>[12])", path + r"/norm\g<n>"),
    *_conv(pattern + r"\.conv(?P<n>[12])", path + r"/conv\g<n>"),
    *_conv(pattern + r"\.nin_shortcut", path + "/shortcut"),
  )


def _attention(pattern: str, path: str) -> tuple[Rule, ...]:
  return (
    *_norm(pattern + r"\.norm", path + "/norm"),
    *_conv(pattern + r"\.q", path + "/query"),
    *_conv(pattern + r"\.k", path + "/key"),
    *_conv(pattern + r"\.v", path + "/value"),
    *_conv(pattern + r"\.proj_out", path + "/projection"),
  )


RULES: tuple[Rule, ...] = (
  *_conv(r"(?P<half>encoder|decoder)\.conv_in", r"\g<half>/conv_in"),
  *_block(
    _LEVEL + r"block\.(?P<block>\d+)", _LEVEL_TARGET + r"blocks_\g<block>"
  ),
  *_attention(
    _LEVEL + r"attn\.(?P<block>\d+)", _LEVEL_TARGET + r"attentions_\g<block>"
  ),
  *_conv(_LEVEL + r"downsample\.conv", _LEVEL_TARGET + "down"),
  *_conv(_LEVEL + r"upsample\.conv", _LEVEL_TARGET + "up"),
  *_block(_MIDDLE + r"block_(?P<block>\d)", _MIDDLE_TARGET + r"block\g<block>"),
  *_attention(_MIDDLE + r"attn_1", _MIDDLE_TARGET + "attention"),
  *_norm(r"(?P<half>encoder|decoder)\.norm_out", r"\g<half>/norm_out"),
  *_conv(r"(?P<half>encoder|decoder)\.conv_out", r"\g<half>/conv_out"),
  *_conv("quant_conv", "to_moments"),
  *_conv("post_quant_conv", "from_latents"),
)
