"""What a cache of latents says of itself: JSON files, as dataclasses.

`latent_index` says which file holds which, and when it is written.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from marjax import outputs
from marjax.latents.kl import KLConfig
from marjax.schema import check, from_dict, to_dict
from marjax.version import __version__

FORMAT = "marjax latents"
FORMAT_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
  """What the latents are a function of, and how they are stored.

  Attributes:
    format, format_version: of the cache.
    source: kind, name, split and files of the images, for comparison.
    split: of the source. num_source: examples of the source that are cached.
    codec: the autoencoder; its image_size is that of the crops.
    digest: of its parameters.
    dtype: of the stored moments.
    matmul_precision: of float32 products while encoding.
    shard_size: examples of the source in a shard.
  """

  format: str = FORMAT
  format_version: int = FORMAT_VERSION
  source: str
  split: str
  num_source: int
  codec: KLConfig
  digest: str
  dtype: Literal["float16", "float32"] = "float16"
  matmul_precision: Literal["highest", "default"] = "highest"
  shard_size: int = 5000

  def __post_init__(self):
    for name in ("num_source", "shard_size"):
      value = getattr(self, name)
      check(value >= 1, f"{name} is {value}; expected 1 or more.")

  @property
  def num_shards(self) -> int:
    """Files that the latents are in."""
    return math.ceil(self.num_source / self.shard_size)

  def shard_name(self, shard: int) -> str:
    """Name of a shard's file without its ending."""
    return f"latents-{shard:05d}-of-{self.num_shards:05d}"

  def span(self, shard: int) -> range:
    """The examples of the source that belong to a shard."""
    start = shard * self.shard_size
    return range(start, min(start + self.shard_size, self.num_source))


@dataclass(frozen=True)
class Skipped:
  """An image that could not be read: its place in the source, name, reason."""

  id: int
  name: str
  reason: str


@dataclass(frozen=True)
class Rounding:
  """What the stored dtype changes, over `count` numbers.

  Attributes:
    max_error: largest distance from float32. sum_error: of squared distances.
    sum_squares: of the squared float32 numbers themselves.
  """

  count: int = 0
  max_error: float = 0.0
  sum_error: float = 0.0
  sum_squares: float = 0.0

  def __add__(self, other: "Rounding") -> "Rounding":
    return Rounding(
      self.count + other.count,
      max(self.max_error, other.max_error),
      self.sum_error + other.sum_error,
      self.sum_squares + other.sum_squares,
    )

  @property
  def rms_error(self) -> float:
    """Root mean square distance from float32."""
    return math.sqrt(self.sum_error / max(self.count, 1))

  @property
  def relative_error(self) -> float:
    """`rms_error` over the root mean square of the numbers."""
    return math.sqrt(self.sum_error / self.sum_squares) if self.count else 0.0


@dataclass(frozen=True)
class Shard:
  """A whole shard's record.

  Attributes:
    num_examples: images in it, each plain and mirrored: two array records.
    num_bytes, sha256: of the file.
    highest_label: -1 for none. skipped: images of its span that are not in it.
    mean, log_variance: how far the stored numbers are from float32.
  """

  num_examples: int
  num_bytes: int
  sha256: str
  highest_label: int
  skipped: tuple[Skipped, ...] = ()
  mean: Rounding = Rounding()
  log_variance: Rounding = Rounding()


@dataclass(frozen=True, kw_only=True)
class Index:
  """A whole cache. `max_error` and the like are of all its numbers.

  Attributes:
    settings: see there. marjax_version: what joined the index.
    num_examples: images. num_classes: highest label + 1.
    mean_error, log_variance_error: largest, root mean square, and the latter
      relative to the numbers' own root mean square.
    skipped: images that are not in the cache. shards: in order, by name.
  """

  settings: CacheSettings
  marjax_version: str = __version__
  num_examples: int
  num_classes: int
  mean_error: dict[str, float]
  log_variance_error: dict[str, float]
  skipped: tuple[Skipped, ...] = ()
  shards: dict[str, Shard]


def write(path: Path, what, overwrite: bool = False) -> None:
  """Writes one of the dataclasses, whole; errors as in `outputs.write`."""
  text = json.dumps(to_dict(what), indent=1, ensure_ascii=False) + "\n"
  outputs.write(path, text.encode(), overwrite)


def read(cls: type[T], path: Path) -> T:
  """One of the dataclasses from its file.

  Raises:
    ValueError: it is damaged, of something else, or of a newer format.
  """
  try:
    mapping = json.loads(path.read_bytes())
  except ValueError:
    mapping = None
  settings = mapping if cls is CacheSettings else {}
  if mapping is None or settings.get("format", FORMAT) != FORMAT:
    raise ValueError(
      f"{path} is damaged or not of a cache of latents; expected the file that"
      " marjax cache-latents wrote: copy the cache again, or make it anew."
    )
  version = settings.get("format_version", FORMAT_VERSION)
  if not isinstance(version, int) or version > FORMAT_VERSION:
    raise ValueError(
      f"{path} has format version {version}; this is marjax {__version__},"
      f" which reads versions up to {FORMAT_VERSION}: upgrade marjax."
    )
  try:
    return from_dict(cls, mapping, where=path.name)
  except ValueError as error:
    raise ValueError(
      f"{path} cannot be read ({error}); copy the cache again, or make it anew."
    ) from None
