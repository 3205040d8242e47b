"""What a cache of latents says of itself, and when it is whole.

    CACHE/settings.json                         first: what every host agrees on
    CACHE/autoencoder/                          a copy of the release
    CACHE/latents-00003-of-00257.array_record   a shard, renamed when whole
    CACHE/latents-00003-of-00257.json           then what is in it: a `Shard`
    CACHE/index.json                            last: all of those; it is whole

1. Shard k holds the examples [k·n, (k + 1)·n) of the source, n = shard_size, so
   any host can write any shard, and again.
2. A shard has two array records for an image: of the image, of its mirror
   image. A record is label int32, id int64, and the arrays of the codec's
   `record_shapes`; little-endian, and not compressed, since the bits of moments
   look random.
3. A shard counts from the moment its JSON file is there; the cache from the
   moment its index is there. Whoever writes the last shard joins the index. It
   is a function of the shards, so several hosts may do it.

DIFFERS: float16-latents. The published program caches float32, one file for
each image; `--dtype float32` keeps that precision.
"""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import jax
import numpy as np

from marjax import outputs, schema
from marjax.protocols import Codec
from marjax.release import files, json_files, kinds
from marjax.schema import Count, Positive, Range, Size, check
from marjax.version import __version__

FORMAT, FORMAT_VERSION = "marjax latents", 2
SETTINGS, INDEX, AUTOENCODER = "settings.json", "index.json", "autoencoder"
MOST_SHARDS = 100_000  # names have five digits
AGAIN = "run the marjax cache-latents command that began it again"

Error = Annotated[float, Range(0)]
Images = Annotated[int, Range(1, 10**12)]

T = TypeVar("T")


@schema.config
class Choices:
  """What is cached, and how the work is done; each is a flag.

  Attributes:
    num_examples: only the first images of the split (default: all).
    image_size: pixels per side of the crops (default: the autoencoder's).
    max_skipped: images that may be unreadable on a host; each is named in the
      log and in CACHE/index.json (default: 100).
    batch_size: images encoded at a time on this host (default: up to 16 per
      device).
    num_threads: that read and crop images (default: one per core).
    host: which of --num_hosts this is, from 0 (default: as jax says).
    num_hosts: hosts that share the work; all must see CACHE (default: as jax
      says).
  """

  num_examples: Images | None = None
  image_size: Annotated[int, Range(1, 2**14)] | None = None
  max_skipped: Count = 100
  batch_size: Size | None = None
  num_threads: Annotated[int, Range(1, 1024)] | None = None
  host: Annotated[int, Range(0, 2**20)] | None = None
  num_hosts: Annotated[int, Range(1, 2**20)] | None = None

  def share(self, num_shards: int) -> range:
    """The shards that this host writes; ValueError if there is no such host."""
    host = jax.process_index() if self.host is None else self.host
    num_hosts = self.num_hosts or jax.process_count()
    check(
      host < num_hosts,
      f"host is {host} of {num_hosts}; expected 0 .. num_hosts - 1.",
    )
    return range(host, num_shards, num_hosts)


@schema.config
class Storage:
  """How latents are computed and stored; each is a flag.

  Attributes:
    dtype: of the stored numbers; CACHE/index.json has its error (default:
      float16).
    matmul_precision: of float32 products while encoding, exact, or rounded as
      the accelerator likes, which is several times faster (default: highest).
    shard_size: images in a file (default: 5000).
  """

  dtype: Literal["float16", "float32"] = "float16"
  matmul_precision: Literal["highest", "default"] = "highest"
  shard_size: Images = 5000


@schema.config(kw_only=True)
class CacheSettings(Storage):
  """What the latents are a function of; see also `Storage`.

  Attributes:
    format, format_version: of the cache.
    source: kind, name, split and files of the images, for comparison.
    split: of the source. num_source: examples of the source that are cached.
    codec: the autoencoder; its image_size is that of the crops.
    digest: of its parameters.
  """

  format: str = FORMAT
  format_version: Positive = FORMAT_VERSION
  source: str
  split: str
  num_source: Images
  codec: Codec
  digest: str

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

  @property
  def record_type(self) -> np.dtype:
    """One array record, as a structured type of numpy."""
    fields = [("label", "<i4"), ("id", "<i8")]
    for name, array in self.codec.record_shapes().items():
      number = self.dtype if array.dtype.kind == "f" else array.dtype
      fields.append((name, np.dtype(number).newbyteorder("<"), array.shape))
    return np.dtype(fields)

  def shard_name(self, shard: int) -> str:
    """Name of a shard's file without its ending."""
    return f"latents-{shard:05d}-of-{self.num_shards:05d}"

  def span(self, shard: int) -> range:
    """The examples of the source that belong to a shard."""
    start = shard * self.shard_size
    return range(start, min(start + self.shard_size, self.num_source))


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

  @classmethod
  def of(cls, stored: np.ndarray, exact: np.ndarray) -> "Rounding":
    """That of one array."""
    exact = exact.astype(np.float64)
    error = np.abs(stored - exact)
    sums = (float(np.square(numbers).sum()) for numbers in (error, exact))
    return cls(exact.size, float(error.max(initial=0)), *sums)

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
    return math.sqrt(self.sum_error / (self.sum_squares or 1))


@schema.config
class Shard:
  """A whole shard.

  Attributes:
    num_examples: images in it, each plain and mirrored: two array records.
    num_bytes, sha256: of the file.
    highest_label: -1 for none. skipped: images of its span that are not in it.
    errors: how far the stored numbers are from float32, by name.
  """

  num_examples: Count
  num_bytes: Count
  sha256: str
  highest_label: Annotated[int, Range(-1, 2**31 - 1)]
  skipped: tuple[Skipped, ...] = ()
  errors: dict[str, Rounding] = dataclasses.field(default_factory=dict)

  def check(self, settings: CacheSettings, shard: int, where: str) -> None:
    """Refuses what cannot be shard number `shard`."""
    count, span = self.num_examples, len(settings.span(shard))
    check(
      count + len(self.skipped) == span,
      f"{where} has {count} images and {len(self.skipped)} skipped ones for"
      f" {settings.shard_name(shard)}; expected {span} in all: copy the cache"
      " again, whole.",
    )


@schema.config(kw_only=True)
class Index:
  """A whole cache.

  Attributes:
    settings: see there. marjax_version: what joined the index.
    shards: in order, by name.
  """

  settings: CacheSettings
  marjax_version: str = __version__
  shards: dict[str, Shard]

  def __post_init__(self):
    settings = self.settings
    names = [settings.shard_name(k) for k in range(settings.num_shards)]
    check(
      list(self.shards) == names,
      f"the shards are not those of {settings.num_source} examples in shards of"
      f" {settings.shard_size}, {names[0]} to {names[-1]} in order.",
    )
    for number, shard in enumerate(self.shards.values()):
      shard.check(settings, number, "the index")

  @property
  def num_examples(self) -> int:
    """Images in the cache."""
    return sum(shard.num_examples for shard in self.shards.values())

  @property
  def num_classes(self) -> int:
    """The highest label + 1."""
    return 1 + max(shard.highest_label for shard in self.shards.values())

  @property
  def skipped(self) -> tuple[Skipped, ...]:
    """Images that are not in the cache."""
    shards = self.shards.values()
    return tuple(image for shard in shards for image in shard.skipped)

  @property
  def errors(self) -> dict[str, Rounding]:
    """How far the stored numbers are from float32, by name."""
    total: dict[str, Rounding] = {}
    for shard in self.shards.values():
      for name, error in shard.errors.items():
        total[name] = total.get(name, Rounding()) + error
    return total


def begin(cache: Path, settings: CacheSettings) -> None:
  """Writes the settings, or compares them with those that are there.

  Raises:
    ValueError: the cache was begun with other settings.
    OSError: the folder cannot be written, or holds something else.
  """
  path, kind = cache / SETTINGS, kinds.kind_of(cache)
  begun = (kinds.CACHE, kinds.HALF_CACHE) if path.exists() else ()
  if kind not in (kinds.NOTHING, kinds.EMPTY, *begun):
    raise FileExistsError(
      f"{cache} is {kind}; expected a new or empty folder, or a cache that was"
      " begun: choose another --out."
    )
  if not path.exists():
    # Another host may be quicker; then its settings are compared with ours.
    with contextlib.suppress(FileExistsError):
      _write(path, settings, overwrite=False)
  theirs, ours = vars(read_settings(cache)), vars(settings)
  for name in ours:
    check(
      theirs[name] == ours[name],
      f"{cache} was begun with {name} = {theirs[name]!r}, and this command has"
      f" {ours[name]!r}; expected the same: give the flags that it was begun"
      " with, or another --out.",
    )


def read_settings(cache: Path) -> CacheSettings:
  """The settings of a cache, whole or not; errors as in `read_index`."""
  path = cache / SETTINGS
  kinds.check_kind(cache, kinds.CACHE, kinds.HALF_CACHE)
  check(
    path.is_file(),
    f"{path} is missing, and says what the latents are; copy the cache again,"
    " whole, or make it anew.",
  )
  mapping = files.read_json(path)
  check(
    mapping.get("format", FORMAT) == FORMAT,
    f"{path} is not of a cache of latents; expected the file that marjax"
    " cache-latents wrote: copy the cache again, or make it anew.",
  )
  version = mapping.get("format_version", FORMAT_VERSION)
  check(
    version == FORMAT_VERSION,
    f"{path} has format version {version!r}; this is marjax {__version__},"
    f" which reads version {FORMAT_VERSION}: make the cache again with marjax"
    " cache-latents, or, if the cache is newer, upgrade marjax.",
  )
  return _read(CacheSettings, path)


def write_shard(cache: Path, name: str, shard: Shard) -> None:
  """Makes a shard count; its file must be in place."""
  _write(cache / f"{name}.json", shard)


def read_shard(
  cache: Path, settings: CacheSettings, shard: int
) -> Shard | None:
  """What is in a shard, None if it is not whole yet."""
  path = cache / f"{settings.shard_name(shard)}.json"
  file = path.with_suffix(".array_record")
  if not (path.is_file() and file.is_file()):
    return None
  whole = _read(Shard, path)
  whole.check(settings, shard, str(path))
  return whole if file.stat().st_size == whole.num_bytes else None


def join(cache: Path, settings: CacheSettings) -> Index | None:
  """Writes the index if every shard is whole; returns None if one is not.

  Raises:
    ValueError: no image at all could be read.
  """
  shards = {}
  for number in range(settings.num_shards):
    shard = read_shard(cache, settings, number)
    if shard is None:
      return None
    shards[settings.shard_name(number)] = shard
  index = Index(settings=settings, shards=shards)
  check(
    index.num_examples > 0,
    f"none of the {settings.num_source} images could be read, so {cache} would"
    " be empty; look at the reasons in its .json files, and mend the images.",
  )
  if not (cache / INDEX).is_file() or read_index(cache).shards != shards:
    _write(cache / INDEX, index)
  return index


def read_index(cache: Path) -> Index:
  """The index of a whole cache.

  Raises:
    FileNotFoundError: there is no cache, or a half-written one.
    ValueError: it is damaged, or of another format.
  """
  settings = read_settings(cache)
  if not (cache / INDEX).is_file():
    missing = [
      settings.shard_name(shard)
      for shard in range(settings.num_shards)
      if read_shard(cache, settings, shard) is None
    ]
    raise FileNotFoundError(
      f"{cache} is half-written: {len(missing)} of {settings.num_shards} shards"
      f" are missing{', the first ' + missing[0] if missing else ''}; {AGAIN},"
      " on every host, to finish it."
    )
  index = _read(Index, cache / INDEX)
  check(
    index.settings == settings,
    f"{cache} has an {INDEX} and a {SETTINGS} of two caches; copy the cache"
    " again, whole.",
  )
  return index


def _write(path: Path, what, overwrite: bool = True) -> None:
  outputs.write(path, json_files.write_json(schema.to_dict(what)), overwrite)


def _read(cls: type[T], path: Path) -> T:
  mapping = files.read_json(path)
  try:
    return schema.from_dict(cls, mapping, where=path.name)
  except ValueError as error:
    raise ValueError(
      f"{path} cannot be read ({str(error).rstrip('.')}); copy the cache again,"
      " or make it anew."
    ) from None
