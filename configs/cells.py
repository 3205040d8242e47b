"""The cells of the paper's table 1, which other configs make variants of.

A cell is a backbone and a number of AR steps; with "_ce" after its name its
tokens are codes, and its loss is cross-entropy instead of Diffusion Loss.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

BACKBONES = ("ar_raster", "ar_random", "mar_one", "mar", "guided")
NAMES = (*BACKBONES, *(f"{name}_ce" for name in BACKBONES))


def parts(variant: str, known: Sequence[str], path: str) -> tuple[str, bool]:
  """Which of the known variants, "" for none, and whether made for a laptop.

  Both are said as "mar_ce,laptop". `path`: of the config, for messages.
  """
  words = [word for word in variant.split(",") if word]
  names = [word for word in words if word != "laptop"]
  if len(names) > 1 or any(name not in known for name in names):
    raise ValueError(
      f"{path} has no variant {variant!r}; expected laptop, or one of"
      f" {', '.join(known)}, or one of those with ,laptop after it."
    )
  return "".join(names), len(words) > len(names)


def set_cell(
  config: ConfigDict, name: str, num_codes: int, num_ar_steps: tuple[int, int]
) -> None:
  """Makes a masked model with Diffusion Loss that of a cell, as many blocks.

  `num_codes`: of the codec of cells with "_ce". `num_ar_steps`: with one token
  a step, and with several.
  """
  backbone, order = config.model.backbone, name.removesuffix("_ce")
  draws_several = order in ("mar", "guided")
  config.sampling.num_ar_steps = num_ar_steps[1 if draws_several else 0]
  if not order.startswith("mar"):
    depth = backbone.encoder_depth
    _drop(backbone, "encoder_depth", "decoder_depth", "num_buffer", "masking")
    if order == "guided":
      backbone.update(kind="guided", memory_depth=depth, query_depth=depth)
    else:
      order = order.removeprefix("ar_")
      backbone.update(kind="causal", depth=2 * depth, order=order)
  if name.endswith("_ce"):
    _drop(backbone, "token_dim")
    backbone.num_codes = num_codes
    config.model.head = {"kind": "categorical", "num_codes": num_codes}
    config.sampling.head = {"kind": "categorical"}


def _drop(group: ConfigDict, *fields: str) -> None:
  """Removes fields that another kind of part does not have."""
  for field in set(fields) & set(group):
    del group[field]
