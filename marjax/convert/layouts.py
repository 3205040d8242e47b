"""One network, named by several programs → the names of the published files.

1. Wrappers put their name before a parameter's, or inside it: `module.` (for
   several GPUs) and `_orig_mod.` (a compiled module), also both. They are taken
   out.
2. A file of a larger model holds ours below a prefix, `first_stage_model.` in a
   latent diffusion model: what is below it is read.
3. What only training an autoencoder needs is left out: `loss.*`, counters of
   the moving average, `model_ema.*`, and of codes, `quantize.codebook_used`.
4. diffusers names the autoencoder's parts otherwise, counts the decoder's
   levels from the smallest resolution, and has matrices for 1 × 1 convolutions.
5. Each of these is noted, for the report. Numbers are not touched.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from marjax.schema import check

T = TypeVar("T")

WRAPPERS = ("module", "_orig_mod")

# A name that the network has and few others: autoencoder, model.
_ANCHORS = ("encoder.conv_in.weight", "encoder_pos_embed_learned")
_FIRST_STAGE = "first_stage_model."
_TRAINING = ("loss.", "model_ema.", "quantize.codebook_used")

_MIDDLE = r"^(encoder|decoder)\.mid_block\."
_ATTENTION = _MIDDLE + r"attentions\.0\."
_DIFFUSERS = (
  (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
  (r"^encoder\.down_blocks\.(\d+)\.attentions\.", r"encoder.down.\1.attn."),
  (
    r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.",
    r"encoder.down.\1.downsample.",
  ),
  (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
  (r"^decoder\.up_blocks\.(\d+)\.attentions\.", r"decoder.up.\1.attn."),
  (
    r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.",
    r"decoder.up.\1.upsample.",
  ),
  (_MIDDLE + r"resnets\.0\.", r"\1.mid.block_1."),
  (_MIDDLE + r"resnets\.1\.", r"\1.mid.block_2."),
  (_ATTENTION, r"\1.mid.attn_1."),
  (r"(\.attn(?:_1|\.\d+))\.group_norm\.", r"\1.norm."),
  (r"(\.attn(?:_1|\.\d+))\.(?:to_q|query)\.", r"\1.q."),
  (r"(\.attn(?:_1|\.\d+))\.(?:to_k|key)\.", r"\1.k."),
  (r"(\.attn(?:_1|\.\d+))\.(?:to_v|value)\.", r"\1.v."),
  (r"(\.attn(?:_1|\.\d+))\.(?:to_out\.0|proj_attn)\.", r"\1.proj_out."),
  (r"\.conv_shortcut\.", ".nin_shortcut."),
  (r"\.conv_norm_out\.", ".norm_out."),
)


def standard(
  arrays: Mapping[str, T], where: str
) -> tuple[dict[str, T], tuple[str, ...]]:
  """The arrays under their published names, and notes on what was done.

  Args:
    arrays: by their names in the file, whatever they are.
    where: the file, for messages.

  Raises:
    ValueError: two names become one, or it holds several such networks.
  """
  notes: list[str] = []
  named = _unwrapped(arrays, where, notes)
  named = _below_prefix(named, where, notes)
  if _ANCHORS[0] in named:
    named = _without_training(named, notes)
    if any(".down_blocks." in name for name in named):
      named = _renamed(named, where, notes)
  return named, tuple(notes)


def _unwrapped(arrays: Mapping, where: str, notes: list[str]) -> dict:
  parts = {name: name.split(".") for name in arrays}
  found = [w for w in WRAPPERS if any(w in part for part in parts.values())]
  if not found:
    return dict(arrays)
  notes.append(f"{' and '.join(f'{w}.' for w in found)} taken out of the names")
  names = [
    ".".join(part for part in parts[name] if part not in WRAPPERS)
    for name in arrays
  ]
  return _together(names, arrays, where)


def _below_prefix(named: Mapping, where: str, notes: list[str]) -> dict:
  if any(anchor in named for anchor in _ANCHORS):
    return dict(named)
  prefixes = {
    name.removesuffix(anchor)
    for anchor in _ANCHORS
    for name in named
    if name.endswith(f".{anchor}")
  }
  if not prefixes:
    return dict(named)
  if _FIRST_STAGE in prefixes:
    prefixes = {_FIRST_STAGE}
  check(
    len(prefixes) == 1,
    f"{where} holds several networks, below {', '.join(sorted(prefixes))};"
    " expected one: save the state dict of the one that you mean.",
  )
  (prefix,) = prefixes
  inner = {
    name.removeprefix(prefix): array
    for name, array in named.items()
    if name.startswith(prefix)
  }
  others = len(named) - len(inner)
  notes.append(
    f"read what is below {prefix}"
    + (f", {_counted(others, 'other array')} left out" if others else "")
  )
  return inner


def _without_training(named: Mapping, notes: list[str]) -> dict:
  for prefix in _TRAINING:
    count = sum(name.startswith(prefix) for name in named)
    if count:
      notes.append(f"{_counted(count, 'array')} of {prefix}* left out")
  return {n: array for n, array in named.items() if not n.startswith(_TRAINING)}


def _renamed(named: Mapping, where: str, notes: list[str]) -> dict:
  notes.append("parts named by diffusers")
  names = []
  for name in named:
    for pattern, replacement in _DIFFUSERS:
      name = re.sub(pattern, replacement, name)
    names.append(name)
  pattern = r"decoder\.up\.(\d+)\."
  levels = [int(match[1]) for n in names if (match := re.match(pattern, n))]
  last = max(levels, default=0)

  def from_above(match: re.Match) -> str:
    return f"decoder.up.{last - int(match[1])}."

  names = [re.sub(pattern, from_above, name) for name in names]
  return _together(names, named, where)


def _counted(count: int, noun: str) -> str:
  return f"{count} {noun}{'s' * (count != 1)}"


def _together(names: Iterable[str], arrays: Mapping, where: str) -> dict:
  """The arrays under new names, in their order."""
  named = {}
  for name, (old, array) in zip(names, arrays.items(), strict=True):
    check(
      name not in named,
      f"{where} holds {name} twice, the second time as {old}; expected one"
      " array for each: save the plain state dict of the model.",
    )
    named[name] = array
  return named
