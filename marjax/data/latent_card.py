"""What a cache of latents says of itself: JSON files, as dataclasses.

`latent_index` says which file holds which, and when it is written.
"""

import math
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from marjax import outputs, schema
from marjax.latents.kl import KLConfig
from marjax.release import files
from marjax.schema import Count, Positive, Range, check, from_dict, to_dict
from marjax.version import __version__

FORMAT = "marjax latents"
FORMAT_VERSION = 1
MOST_SHARDS = 100_000  # names have five digits

Error = Annotated[float, Range(0)]

T = TypeVar("T")


@schema.config(kw_only=True)
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
  format_version: Positive = FORMAT_VERSION
  source: str
  split: str
  num_source: Annotated[int, Range(1, 10**12)]
  codec: KLConfig
  digest: str
  dtype: Literal["float16", "float32"] = "float16"
  matmul_precision: Literal["highest", "default"] = "highest"
  shard_size: Annotated[int, Range(1, 10**12)] = 5000

  def __post_init__(self):
    check(
      self.num_shards <= MOST_SHARDS,
      f"num_source = {self.num_source} examples in shards of shard_size ="
      f" {self.shard_size} are {self.num_shards} files; expected at most"
      f" {MOST_SHARDS}: make the shards larger.",
    )

  @property
  def num_shards(self) -> int:
    """Files that the latents are in."""
    return -(-self.num_source // self.shard_size)

  def shard_name(self, shard: int) -> str:
    """Name of a shard's file without its ending."""
    return f"latents-{shard:05d}-of-{self.num_shards:05d}"

  def span(self, shard: int) -> range:
    """The examples of the source that belong to a shard."""
    start = shard * self.shard_size
    return range(start, min(start + self.shard_size, self.num_source))

  def check_shard(self, shard: int, record: "Shard", where: str) -> None:
    """Refuses a record that cannot be that of this shard."""
    count, span = record.num_examples, len(self.span(shard))
    numbers = 2 * math.prod(self.codec.latent_shape)
    least = 2 * count * numbers * (2 if self.dtype == "float16" else 4)
    check(
      count + len(record.skipped) == span and record.num_bytes >= least,
      f"{where} has {count} images and {len(record.skipped)} skipped ones in"
      f" {record.num_bytes} bytes for {self.shard_name(shard)}; expected {span}"
      f" in all, and {least} bytes or more: copy the cache again, whole.",
    )


@schema.config
class Skipped:
  """An image that could not be read: its place in the source, name, reason."""

  id: Count
  name: str
  reason: str


@schema.config
class Rounding:
  """What the stored dtype changes, over `count` numbers.

  Attributes:
    max_error: largest distance from float32. sum_error: of squared distances.
    sum_squares: of the squared float32 numbers themselves.
  """

  count: Count = 0
  max_error: Error = 0.0
  sum_error: Error = 0.0
  sum_squares: Error = 0.0

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


@schema.config
class Shard:
  """A whole shard's record.

  Attributes:
    num_examples: images in it, each plain and mirrored: two array records.
    num_bytes, sha256: of the file.
    highest_label: -1 for none. skipped: images of its span that are not in it.
    mean, log_variance: how far the stored numbers are from float32.
  """

  num_examples: Count
  num_bytes: Count
  sha256: str
  highest_label: Annotated[int, Range(-1, 2**31 - 1)]
  skipped: tuple[Skipped, ...] = ()
  mean: Rounding = Rounding()
  log_variance: Rounding = Rounding()


@schema.config(kw_only=True)
class Index:
  """A whole cache; its counts and its shards' names follow from `settings`.

  Attributes:
    settings: see there. marjax_version: what joined the index.
    num_examples: images. num_classes: highest label + 1.
    mean_error, log_variance_error: largest, root mean square, and the latter
      relative to the numbers' own root mean square.
    skipped: images that are not in the cache. shards: in order, by name.
  """

  settings: CacheSettings
  marjax_version: str = __version__
  num_examples: Count
  num_classes: Annotated[int, Range(0, 2**31)]
  mean_error: dict[str, Error]
  log_variance_error: dict[str, Error]
  skipped: tuple[Skipped, ...] = ()
  shards: dict[str, Shard]

  def __post_init__(self):
    settings, records = self.settings, list(self.shards.values())
    names = [settings.shard_name(k) for k in range(settings.num_shards)]
    check(
      list(self.shards) == names,
      f"the shards are not those of {settings.num_source} examples in shards of"
      f" {settings.shard_size}, {names[0]} to {names[-1]} in order.",
    )
    for shard, record in enumerate(records):
      settings.check_shard(shard, record, "the index")
    counts = (
      sum(record.num_examples for record in records),
      1 + max(record.highest_label for record in records),
      tuple(image for record in records for image in record.skipped),
    )
    check(
      counts == (self.num_examples, self.num_classes, self.skipped),
      f"{self.num_examples} images in {self.num_classes} classes, and"
      f" {len(self.skipped)} skipped ones, are not what the shards add up to.",
    )


def write(path: Path, what, overwrite: bool = False) -> None:
  """Writes one of the dataclasses, whole; errors as in `outputs.write`."""
  outputs.write(path, schema.write_json(to_dict(what)), overwrite)


def read(cls: type[T], path: Path) -> T:
  """One of the dataclasses from its file.

  Raises:
    ValueError: it is damaged, of something else, or of a newer format.
  """
  mapping = files.read_json(path)
  settings = mapping if cls is CacheSettings else {}
  check(
    settings.get("format", FORMAT) == FORMAT,
    f"{path} is not of a cache of latents; expected the file that marjax"
    " cache-latents wrote: copy the cache again, or make it anew.",
  )
  version = settings.get("format_version", FORMAT_VERSION)
  if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
    raise ValueError(
      f"{path} has format version {version!r}; this is marjax {__version__},"
      f" which reads versions 1 to {FORMAT_VERSION}: upgrade marjax."
    )
  try:
    return from_dict(cls, mapping, where=path.name)
  except ValueError as error:
    reason = str(error).rstrip(".")
    raise ValueError(
      f"{path} cannot be read ({reason}); copy the cache again, or make it"
      " anew."
    ) from None
