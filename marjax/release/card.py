"""What a released checkpoint says of itself: release.json, as dataclasses.

1. A card says what is needed to generate: model, head, codec, sampling settings
   and presets, names of classes; and where the weights are from.
2. A manifest is a card with the format's version and the hashes of all files.
   Reading one refuses, with a sentence, what is no manifest or is newer.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from marjax import schema
from marjax.arrays import named, one_of
from marjax.experiment import DataConfig
from marjax.generate.settings import Settings
from marjax.model import ModelConfig
from marjax.protocols import Codec
from marjax.release import json_files
from marjax.release.files import check_name
from marjax.schema import Count, Positive, check, from_dict, printable, to_dict
from marjax.version import __version__

FORMAT = "marjax release"
FORMAT_VERSION = 2
MANIFEST = "release.json"


@schema.config
class Origin:
  """The file that the weights were read from.

  Attributes:
    file: its name. num_bytes, sha256: of the whole file.
    weights: "ema" or "raw" where it held both, else "only".
    url: where it was fetched from, "" if it was a local file.
  """

  file: str
  num_bytes: Count
  sha256: str
  weights: Literal["ema", "raw", "only"] = "only"
  url: str = ""


@schema.config
class Card:
  """All that is needed to generate, but the numbers.

  No text of a card has control characters but tabs: it is shown to people.

  Attributes:
    name: for people.
    codec: images ↔ latents; for a "kl" codec the autoencoder's shape.
    model: None for a release that is an autoencoder alone.
    sampling: the settings used unless told otherwise.
    presets: further settings by name.
    class_names: entry i names class i, synonyms separated by commas; empty
      where classes have no names.
    autoencoder: the codec's weights: "autoencoder" inside this release, or a
      release beside it as ../NAME; "" for a codec without weights and for an
      autoencoder itself.
    data: what the model was trained on, where that is known.
    step: optimizer steps behind the weights, 0 if unknown.
    licence: of the weights.
    origin: the file they were read from, None for a run of marjax.
  """

  name: str
  codec: Codec
  model: ModelConfig | None = None
  sampling: Settings = field(default_factory=Settings)
  presets: dict[str, Settings] = field(default_factory=dict)
  class_names: tuple[str, ...] = ()
  autoencoder: str = ""
  data: DataConfig | None = None
  step: Count = 0
  licence: str = ""
  origin: Origin | None = None

  def __post_init__(self):
    # Names of presets are a part of the names here.
    for name, value in named(dataclasses.asdict(self)).items():
      text = f"{name} {value}".replace("\t", "")
      check(
        printable(text) == text,
        f"the card's {printable(name)} has control characters, {text[:60]!r};"
        " expected text that can be shown.",
      )
    if self.autoencoder:
      check_name(self.autoencoder, "the card's autoencoder", is_sibling=True)
    if self.model is None:
      return
    backbone, codec = self.model.backbone, self.codec
    check(
      (backbone.num_tokens, backbone.token_shape)
      == (codec.num_tokens, codec.token_shape),
      f"the codec makes {codec.num_tokens} tokens of shape {codec.token_shape}"
      f" but the model expects {backbone.num_tokens} of {backbone.token_shape};"
      " name the autoencoder that the model was trained with.",
    )
    for name, settings in {"sampling": self.sampling, **self.presets}.items():
      settings.check_fits(self.model, name)
    num_classes = self.num_classes
    check(
      not self.class_names or len(self.class_names) == num_classes,
      f"class_names has {len(self.class_names)} entries; expected one for each"
      f" of the model's {num_classes} classes, or none.",
    )

  @property
  def num_classes(self) -> int:
    """Classes that the model knows; 0 for none."""
    condition = self.model and self.model.backbone.condition
    return getattr(condition, "num_classes", 0)

  def settings(
    self,
    asked: Settings | str | Mapping[str, Any] | None,
    changes: Mapping[str, Any],
  ) -> Settings:
    """Complete settings of this model, as `Pipeline.settings` describes.

    Args:
      asked: a preset, changes, settings, or None for the card's own.
      changes: what differs from those, nested as settings are.

    Raises:
      ValueError: there is no model, preset or field, or the model cannot do it.
    """
    model, own = self.model, self.sampling
    check(
      model is not None,
      f"{self.name} is an autoencoder without a model; it encodes and decodes:"
      " load a model to generate.",
    )
    if isinstance(asked, str):
      presets = {
        name: own.changed({"head": {"final_num_steps": None, **preset}}, model)
        for name, preset in model.head.Settings.PRESETS.items()
      }
      presets |= self.presets
      check(
        asked in presets,
        f"there is no preset {asked!r}; {self.name} has:"
        f" {', '.join(presets) or 'none'}.",
      )
      asked = presets[asked]
    elif isinstance(asked, Mapping):
      asked = own.changed(asked, model)
    chosen = own if asked is None else asked
    return chosen.changed(changes, model).for_model(model)

  def in_dtype(self, dtype: str | None, codec_dtype: str | None) -> "Card":
    """The same card with other matmul dtypes; None leaves one as it is.

    Raises:
      ValueError: neither "float32" nor "bfloat16", or nothing to set it on.
    """
    check_dtype = one_of("float32", "bfloat16", None)
    check_dtype(dtype, "dtype")
    check_dtype(codec_dtype, "codec_dtype")
    model, codec = self.model, self.codec
    if dtype and model:
      model = model.in_dtype(dtype)
    if codec_dtype and hasattr(codec, "dtype"):
      codec = dataclasses.replace(codec, dtype=codec_dtype)
    return dataclasses.replace(self, model=model, codec=codec)


@schema.config
class FileRecord:
  """Size and hash of one file."""

  num_bytes: Count
  sha256: str


@schema.config(kw_only=True)
class Manifest:
  """A card, with what is needed to check that the rest is whole.

  Attributes:
    format, format_version, marjax_version: what wrote it.
    num_parameters: numbers in the weights, without the autoencoder's.
    files: path relative to the release → its record.
  """

  format: str = FORMAT
  format_version: Positive = FORMAT_VERSION
  marjax_version: str = __version__
  num_parameters: Count
  card: Card
  files: dict[str, FileRecord]

  def __post_init__(self):
    for name in self.files:
      check_name(name, "the list of files")

  def to_json(self) -> bytes:
    """Text that `json_files.read_json` and `from_mapping` read back."""
    return json_files.write_json(to_dict(self))


def from_mapping(mapping: dict[str, Any], where: str) -> Manifest:
  """The manifest in a mapping; `where` names its file in messages.

  Raises:
    ValueError: no manifest, one of an older or newer format, or one that does
      not fit.
  """
  check(
    mapping.get("format") == FORMAT,
    f"{where} is no manifest of a released checkpoint; expected the"
    f" {MANIFEST} that marjax wrote: restore it or convert again.",
  )
  version = mapping.get("format_version")
  check(
    version != 1,
    f"{where} is of an older marjax, in a format that is not read any more;"
    " expected a release of this one: move the folder away, and convert what it"
    " was made from again, with marjax convert SOURCE --out FOLDER.",
  )
  check(
    version == FORMAT_VERSION,
    f"{where} has format version {version!r}, written by marjax"
    f" {mapping.get('marjax_version')!r}; this is marjax {__version__}, which"
    f" reads version {FORMAT_VERSION}: upgrade marjax.",
  )
  try:
    return from_dict(Manifest, mapping, where=MANIFEST)
  except ValueError as error:
    reason = str(error).rstrip(".")
    raise ValueError(
      f"{where} cannot be read ({reason}); restore it or convert again."
    ) from None


def check_layers(
  config: ModelConfig | Codec, num_arrays: int, where: str
) -> None:
  """Refuses a configuration of more layers than there are arrays.

  Cheap, and before the parameters' shapes are worked out, which takes a time
  and memory that grow with the layers.
  """
  layers = getattr(getattr(config, "head", config), "depth", 0)
  check(
    layers <= num_arrays,
    f"{where} has {num_arrays} arrays, and the configuration in {MANIFEST} has"
    f" {layers} layers: weights and configuration are of two models; convert"
    " again.",
  )


def is_same_autoencoder(one: Any, other: Any) -> bool:
  """Whether two codecs have the same weights' shape and the same scale."""
  if type(one) is not type(other):
    return False
  free = dict.fromkeys(one.FREE)
  fields = (dataclasses.asdict(codec) | free for codec in (one, other))
  return next(fields) == next(fields)
