"""What a released checkpoint says of itself: release.json, as dataclasses.

    RELEASE/release.json      the manifest: a card, and every file's hash
    RELEASE/weights/          parameters, one folder each (Orbax, zarr)
    RELEASE/autoencoder/      another release, where the model carries its own

1. A card says what is needed to generate: model, head, codec, sampling settings
   and presets, names of classes; and where the weights are from.
2. A manifest is a card with the format's version and the hashes of all files.
   Reading one refuses, with a sentence, what is no manifest or is newer.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from marjax.experiment import DataConfig
from marjax.latents.kl import KLConfig
from marjax.latents.pixels import PixelsConfig
from marjax.model import ModelConfig
from marjax.schema import check, from_dict, to_dict
from marjax.settings import Settings
from marjax.version import __version__

FORMAT = "marjax release"
FORMAT_VERSION = 1
MANIFEST = "release.json"

Codec = PixelsConfig | KLConfig


@dataclass(frozen=True)
class Origin:
  """The file that the weights were read from.

  Attributes:
    file: its name. num_bytes, sha256: of the whole file.
    weights: "ema" or "raw" where it held both, else "only".
    url: where it was fetched from, "" if it was a local file.
  """

  file: str
  num_bytes: int
  sha256: str
  weights: Literal["ema", "raw", "only"] = "only"
  url: str = ""


@dataclass(frozen=True)
class Card:
  """All that is needed to generate, but the numbers.

  Attributes:
    name: for people.
    codec: images ↔ latents; for a "kl" codec the autoencoder's shape.
    model: None for a release that is an autoencoder alone.
    sampling: the settings used unless told otherwise.
    presets: further settings by name.
    class_names: entry i names class i, synonyms separated by commas; empty
      where classes have no names.
    autoencoder: release of the codec's weights, relative to this one; "" for a
      codec without weights and for an autoencoder itself.
    data: what the model was trained on, where that is known.
    step: optimizer steps behind the weights, 0 if unknown.
    licence: of the weights.
    origin: the file they were read from, None for a run of marjax.
  """

  name: str
  codec: PixelsConfig | KLConfig
  model: ModelConfig | None = None
  sampling: Settings = field(default_factory=Settings)
  presets: dict[str, Settings] = field(default_factory=dict)
  class_names: tuple[str, ...] = ()
  autoencoder: str = ""
  data: DataConfig | None = None
  step: int = 0
  licence: str = ""
  origin: Origin | None = None

  def __post_init__(self):
    if self.model is None:
      return
    backbone, codec = self.model.backbone, self.codec
    check(
      (backbone.num_tokens, backbone.token_dim)
      == (codec.num_tokens, codec.token_dim),
      f"the codec makes {codec.num_tokens} tokens of {codec.token_dim} numbers"
      f" but the model expects {backbone.num_tokens} of {backbone.token_dim};"
      " name the autoencoder that the model was trained with.",
    )
    check(
      not self.class_names or len(self.class_names) == backbone.num_classes,
      f"class_names has {len(self.class_names)} entries; expected one for each"
      f" of the model's {backbone.num_classes} classes, or none.",
    )

  def in_dtype(self, dtype: str | None, codec_dtype: str | None) -> "Card":
    """The same card with other matmul dtypes; None leaves one as it is.

    Raises:
      ValueError: neither "float32" nor "bfloat16", or nothing to set it on.
    """
    for name, value in (("dtype", dtype), ("codec_dtype", codec_dtype)):
      check(
        value in (None, "float32", "bfloat16"),
        f"{name} is {value!r}; expected 'float32', 'bfloat16' or None.",
      )
    model, codec = self.model, self.codec
    if dtype and model:
      backbone = dataclasses.replace(model.backbone, dtype=dtype)
      head = dataclasses.replace(model.head, dtype=dtype)
      model = dataclasses.replace(model, backbone=backbone, head=head)
    if codec_dtype and isinstance(codec, KLConfig):
      codec = dataclasses.replace(codec, dtype=codec_dtype)
    return dataclasses.replace(self, model=model, codec=codec)


@dataclass(frozen=True)
class FileRecord:
  """Size and hash of one file, or of one tensor's bytes."""

  num_bytes: int
  sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
  """A card, with what is needed to check that the rest is whole.

  Attributes:
    format, format_version, marjax_version: what wrote it.
    num_parameters: numbers in the weights, without the autoencoder's.
    files: path relative to the release, or name of a tensor → its record.
  """

  format: str = FORMAT
  format_version: int = FORMAT_VERSION
  marjax_version: str = __version__
  num_parameters: int
  card: Card
  files: dict[str, FileRecord]

  def to_json(self) -> str:
    """Text that `read_manifest` reads back."""
    return json.dumps(to_dict(self), indent=1, ensure_ascii=False) + "\n"


def read_manifest(text: str, where: str) -> Manifest:
  """The manifest in a text; `where` names its file in messages.

  Raises:
    ValueError: no manifest, one of a newer format, or one that does not fit.
  """
  try:
    mapping = json.loads(text)
  except ValueError:
    mapping = None
  if not isinstance(mapping, dict) or mapping.get("format") != FORMAT:
    raise ValueError(
      f"{where} is no manifest of a released checkpoint; expected the"
      f" {MANIFEST} that marjax wrote: restore it or convert again."
    )
  version = mapping.get("format_version")
  if not isinstance(version, int) or version > FORMAT_VERSION:
    raise ValueError(
      f"{where} has format version {version}, written by marjax"
      f" {mapping.get('marjax_version')}; this is marjax {__version__}, which"
      f" reads versions up to {FORMAT_VERSION}: upgrade marjax."
    )
  try:
    return from_dict(Manifest, mapping, where=MANIFEST)
  except ValueError as error:
    raise ValueError(
      f"{where} cannot be read ({error}); restore it or convert again."
    ) from None


def with_files(
  card: Card, num_parameters: int, files: dict[str, tuple[int, str]]
) -> Manifest:
  """The manifest of a card and its files, (bytes, sha256) each."""
  records = {name: FileRecord(*files[name]) for name in sorted(files)}
  return Manifest(num_parameters=num_parameters, card=card, files=records)


def is_same_autoencoder(one: Any, other: Any) -> bool:
  """Whether two codecs have the same weights' shape and the same scale."""
  if not (isinstance(one, KLConfig) and isinstance(other, KLConfig)):
    return one == other
  free = {"image_size": 0, "patch": 0, "dtype": ""}
  fields = (dataclasses.asdict(codec) | free for codec in (one, other))
  return next(fields) == next(fields)
