"""What a run reads, looked at before the first step and written down.

1. `of_source` counts a source's images by class and reads the headers of at
   most LOOKED_AT of them, evenly spaced, so a million files take seconds.
2. `of_cache` takes the same from a cache of latents, where `cache-latents` left
   it, so that names of classes outlive the images.
3. The fingerprint is a hash of what the numbers of a run depend on: names of
   classes, names of files in each, sizes and ends of those looked at; or a
   dataset's version and files; or a cache's shards; never where the data lies.
4. `keep` writes WORKDIR/data.json. A run that goes on compares: if its data has
   changed, it says how, and goes on only if data.accept is the new fingerprint.
5. Of a folder with at most MOST_NAMES images it writes WORKDIR/names.json, too.
   `chosen` is what a run that goes on reads: images added since do not count,
   and are told. For a new run with data.skip_unreadable it leaves out what has
   no header that can be read.
"""

import hashlib
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import jax
import numpy as np

from marjax import outputs
from marjax.data import sources
from marjax.data.batches import Batches
from marjax.data.decoding import Header
from marjax.data.folders import some
from marjax.data.latent_cache import CachedLatents
from marjax.data.sources import Source
from marjax.experiment import DataConfig
from marjax.outputs import AnyPath
from marjax.parallel import hosts
from marjax.release import workdir as workdirs
from marjax.release.json_files import read_json, write_json
from marjax.release.workdir import DATA
from marjax.schema import check, counted, from_dict, to_dict

LOOKED_AT = 1000
"""Images whose header is read."""

CONTENT = "content of images"
"""What a mark of the images looked at is called."""

NUM_THREADS = 8

SILENCE = 4.0
"""Seconds after which a long look says how far it is."""

NAMES, MOST_NAMES = "names.json", 200_000
"""File of the names of a folder's images, of at most so many."""

logger = logging.getLogger("marjax.data")

T = TypeVar("T")


@dataclass(frozen=True)
class ClassPart:
  """The images of one class.

  Attributes:
    name: of the class. num_images: None where counting means reading all.
    files: hash of their names.
  """

  name: str
  num_images: int | None = None
  files: str = ""


@dataclass(frozen=True, kw_only=True)
class Contents:
  """What was read.

  Attributes:
    fingerprint: 12 hexadecimal digits. identity: what it is a hash of.
    description: of the source of the images.
    num_images: in the split. classes: entry i is class i.
    other_splits: name → images.
    num_looked_at: images whose header was read; of these are
    sizes: width × height → how many. modes: Pillow's mode → how many.
    num_frames: with several frames. num_turned: turned as their EXIF says.
    unreadable: name → why.
    skipped: kind → files that are no images and were passed over.
    skipped_names: kind → a few of their names.
  """

  fingerprint: str
  identity: dict[str, str]
  description: str
  num_images: int
  classes: tuple[ClassPart, ...] = ()
  other_splits: dict[str, int] = field(default_factory=dict)
  num_looked_at: int = 0
  sizes: dict[str, int] = field(default_factory=dict)
  modes: dict[str, int] = field(default_factory=dict)
  num_frames: int = 0
  num_turned: int = 0
  unreadable: dict[str, str] = field(default_factory=dict)
  skipped: dict[str, int] = field(default_factory=dict)
  skipped_names: dict[str, str] = field(default_factory=dict)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Entry i names class i; () where classes have no names."""
    return tuple(part.name for part in self.classes)

  def __str__(self) -> str:
    """A few lines for people."""
    named = len(self.classes)
    lines = [
      f"{counted(self.num_images, 'images')},"
      f" {counted(named, 'classes') if named else 'no classes'} with names,"
      f" {self.description}; fingerprint {self.fingerprint}"
    ]
    lines += _line(
      "classes",
      [
        f"{i} {part.name}"
        + ("" if part.num_images is None else f" ({part.num_images})")
        for i, part in enumerate(self.classes)
      ],
    )
    lines += _line("other splits", self.other_splits)
    if self.num_looked_at:
      lines.append(
        f"  looked at {self.num_looked_at} of them, evenly chosen:"
        f" {self.num_turned} turned as their EXIF says, {self.num_frames} with"
        f" several frames, of which the first is read"
      )
      lines += _line("sizes", self.sizes)
      lines += _line("modes", self.modes)
      lines += _line("unreadable", list(self.unreadable.values()))
    lines += _line("passed over", [*map(self._passed_over, self.skipped)])
    return "\n".join(lines)

  def _passed_over(self, kind: str) -> str:
    names = self.skipped_names.get(kind)
    passed = counted(self.skipped[kind], kind)
    return passed + (f" ({names})" if names else "")


def of_source(source: Source, count: int | None = None) -> Contents:
  """What is in the first `count` images of a source, or in all."""
  count = len(source) if count is None else min(count, len(source))
  looked_at = evenly(count, LOOKED_AT)
  identity = dict(source.identity)
  classes = [ClassPart(name) for name in source.class_names]
  headers, wrong = look_at(source, looked_at)
  if source.identity["kind"] == "folder":
    hashes = source.hashes(count)
    names = "" if classes else f"{hashes} "
    classes = [
      ClassPart(part.name, *counted)
      for part, counted in zip(classes, hashes, strict=False)
    ]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
      marks = list(pool.map(source.mark, looked_at))
    identity |= {"images": str(count), CONTENT: _hash([names, marks])}
  elif hasattr(source, "counts") and count == len(source):
    classes = [
      ClassPart(part.name, number)
      for part, number in zip(classes, source.counts(), strict=False)
    ]
  sizes = Counter(f"{x.width}×{x.height}" for x in headers)
  identity["classes"] = _hash([to_dict(part) for part in classes])
  return Contents(
    fingerprint=_hash(identity),
    identity=identity,
    description=source.description,
    num_images=count,
    classes=tuple(classes),
    other_splits=source.other_splits(),
    num_looked_at=len(headers) + len(wrong),
    sizes=dict(sizes.most_common()),
    modes=dict(Counter(x.mode for x in headers).most_common()),
    num_frames=sum(x.has_frames for x in headers),
    num_turned=sum(x.is_turned for x in headers),
    unreadable=dict(sorted((source.name(i), why) for i, why in wrong.items())),
    skipped=source.skipped,
    skipped_names=source.skipped_names,
  )


def of_cache(cache: CachedLatents) -> Contents:
  """What is in a cache of latents."""
  path = cache.path / DATA
  before = read(path) if workdirs.is_file(path) else None
  settings = cache.index.settings
  check(
    before is None or before.description == settings.source,
    f"{path} is of other images than the cache beside it; copy the cache again,"
    " whole.",
  )
  identity = {
    "kind": "latents",
    "autoencoder": cache.digest[:16],
    "images": str(len(cache)),
    "shards": _hash([shard.sha256 for shard in cache.index.shards.values()]),
  }
  more = {} if before is None else dict(vars(before))
  classes = more.get("classes", ())
  if len(cache) != more.get("num_images"):
    # Some were skipped, and nobody counted of which class.
    classes = tuple(ClassPart(part.name) for part in classes)
  more |= {
    "fingerprint": _hash(identity),
    "identity": identity,
    "description": f"latents of {settings.source}",
    "num_images": len(cache),
    "classes": classes,
    "unreadable": {},
  }
  return Contents(**more)


def read(path: AnyPath) -> Contents:
  """What `write` wrote; ValueError if it is damaged."""
  mapping = read_json(path.read_bytes(), str(path))
  return from_dict(Contents, mapping, where=path.name)


def write(path: AnyPath, contents: Contents) -> None:
  """Writes a file, replacing what is there; errors as in `outputs.write`."""
  outputs.write(path, write_json(to_dict(contents)), overwrite=True)


def chosen(
  workdir: AnyPath, config: DataConfig, is_new: bool
) -> frozenset[str] | None:
  """Names of the training images that a run reads; None for all there are."""
  path = workdir / NAMES
  if not is_new:
    if config.accept or not workdirs.is_file(path):
      return None
    named = read_json(path.read_bytes(), str(path))["names"]
    names = frozenset(map(str, named))
    source = sources.open_source(config, config.train_split, names)
    # Where some are gone, all that is there counts as changed data.
    return names if len(source) == len(names) else None
  if not (config.skip_unreadable and config.source == "folder"):
    return None
  return readable(sources.open_source(config, config.train_split))


def readable(source: Source) -> frozenset[str] | None:
  """Names of a folder's images whose header can be read; None for all.

  Says of the others why. All of more than MOST_NAMES are taken.
  """
  if not hasattr(source, "names") or len(source) > MOST_NAMES:
    return None
  wrong = look_at(source, range(len(source)))[1]
  if not wrong:
    return None
  reasons = list(wrong.values())
  check(
    len(wrong) < len(source),
    f"none of {len(wrong)} pictures can be read; the first: {reasons[0]}",
  )
  labels = enumerate(source.labels)
  lost = {*source.labels} - {label for i, label in labels if i not in wrong}
  check(
    not lost or not source.class_names,
    f"no picture of {some([source.class_names[i] for i in sorted(lost)])} can"
    f" be read; the first: {reasons[0]}",
  )
  skipped = counted(len(wrong), "pictures")
  logger.info("%s skipped: %s", skipped, some(reasons, " "))
  names = enumerate(source.names)
  return frozenset(name for i, name in names if i not in wrong)


def look_at(
  source: Source, indices: Sequence[int]
) -> tuple[list[Header], dict[int, str]]:
  """Headers of images that are files; of those without one, why, in order."""

  def header(index: int) -> Header | str | None:
    try:
      return source.header(index)
    except (ValueError, OSError) as error:
      return outputs.shown(str(error))

  seen = in_threads(header, indices, "looked at")
  wrong = {i: x for i, x in zip(indices, seen, strict=True) if type(x) is str}
  return [x for x in seen if isinstance(x, Header)], wrong


def in_threads(function: Callable, items: Sequence, verb: str) -> list:
  """function(item) of each, and every few seconds a line on how far it is."""
  with ThreadPoolExecutor(NUM_THREADS) as pool:
    return [*told(pool.map(function, items), len(items), verb)]


def evenly(count: int, most: int) -> list[int]:
  """At most so many of 0 .. count - 1, evenly spread."""
  chosen = np.linspace(0, count - 1, min(count, most))
  return np.rint(chosen).astype(int).tolist()


def told(things: Iterable[T], total: int, verb: str) -> Iterator[T]:
  """The things; says every few seconds how far it is."""
  start = last = time.monotonic()
  for count, thing in enumerate(things, start=1):
    now = time.monotonic()
    if now - last > SILENCE:
      left = (now - start) / count * (total - count)
      logger.info("%s %d of %d pictures, %.0f s left", verb, count, total, left)
      last = now
    yield thing


def keep(
  batches: Batches,
  workdir: AnyPath,
  accept: str,
  is_new: bool,
  num_classes: int = 0,
) -> Contents:
  """What is read: said, compared with the run's record, and written there.

  Args:
    batches: of the training split. workdir: of the run.
    accept: a changed fingerprint to go on with. is_new: nothing was trained.
    num_classes: of the model.

  Raises:
    ValueError: the data has changed, differs between processes, or holds an
      image that cannot be read.
  """
  if batches.source is None:
    contents = of_cache(batches.cache)
  else:
    contents = of_source(batches.source)
  hosts.agree({"the data's fingerprint": contents.fingerprint})
  logger.info("%s", contents)
  if 0 < (named := len(contents.classes)) < num_classes:
    rest = num_classes - named
    logger.info("  %d of data.num_classes=%d have no images", rest, num_classes)
  for why in contents.unreadable.values():
    raise ValueError(why)
  path = workdir / DATA
  before = read(path) if workdirs.is_file(path) else None
  changed = []
  if not is_new:
    # Latents of another autoencoder mean something else.
    made_by = [
      x.identity.get("autoencoder") for x in (before or contents, contents)
    ]
    check(
      None in made_by or made_by[0] == made_by[1],
      f"the cache was made by {made_by[1]}..., and {workdir} was trained on"
      f" latents of the autoencoder {made_by[0]}...; expected the same: name"
      " that cache, or another --workdir.",
    )
    changed = changes(before, contents)
    check(
      not changed or accept == contents.fingerprint,
      f"the data is not what {workdir} was trained on:"
      f" {some(changed, '; ')}; expected the same: restore it, or go on with"
      f" --config.data.accept={contents.fingerprint} if the change is meant.",
    )
    if changed:
      logger.info("changed data is accepted: %s", some(changed, "; "))
  _keep_names(batches.source, workdir, is_new or bool(changed))
  is_same = before and before.fingerprint == contents.fingerprint
  if is_same and not contents.classes:
    # The names in a run's record outlive those beside its cache.
    contents = before
  if before != contents and jax.process_index() == 0:
    write(path, contents)
  return contents


def _keep_names(
  source: Source | None, workdir: AnyPath, is_changed: bool
) -> None:
  """Writes the names of a folder's images; says which were added since."""
  if not hasattr(source, "names") or len(source) > MOST_NAMES:
    return
  if source.added and not is_changed:
    logger.info(
      "%s came since %s began (%s), and it goes on with the %d that it began"
      " with: name another --workdir to train on all.",
      counted(len(source.added), "pictures"),
      workdir,
      some(source.added),
      len(source),
    )
  if is_changed and jax.process_index() == 0:
    content = write_json({"names": source.names})
    outputs.write(workdir / NAMES, content, overwrite=True)


def changes(before: Contents | None, now: Contents) -> list[str]:
  """What differs, in words; nothing if the fingerprints are equal."""
  if before is None:
    # Before there were records, folders with numbers were sorted as text.
    names = [part.name for part in now.classes]
    if now.identity["kind"] != "folder" or names == sorted(names):
      return []
    return [
      "it was begun by an older version, which numbered classes in the order of"
      f" their names as text, {some(sorted(names))}, and now that is"
      f" {some(names)}"
    ]
  if before.fingerprint == now.fingerprint:
    return []
  words = []
  if before.classes and now.classes:
    pairs = itertools.zip_longest(before.classes, now.classes)
    for i, (old, new) in enumerate(pairs):
      was, now_is = (part.name if part else "none" for part in (old, new))
      if was != now_is:
        words.append(f"class {i} was {was} and is {now_is}")
  if not words:
    for old, new in zip(before.classes, now.classes, strict=False):
      counts = old.num_images, new.num_images
      if None not in counts and counts[0] != counts[1]:
        words.append(f"{new.name} had {counts[0]} images and has {counts[1]}")
      elif None not in counts and old.files != new.files:
        words.append(f"{new.name} has files of other names")
  shown = {"classes", CONTENT, "images"} if words else {"classes"}
  for key in before.identity | now.identity:
    old, new = before.identity.get(key), now.identity.get(key)
    if old != new and key not in shown:
      words.append(f"{key} was {old or 'none'} and is {new or 'none'}")
  return words or [f"its fingerprint was {before.fingerprint}"]


def _hash(what) -> str:
  text = json.dumps(what, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _line(title: str, words: list[str] | dict[str, int]) -> list[str]:
  """One line of the first few words, or of what there is of each; or none."""
  if isinstance(words, dict):
    words = [f"{n} {kind}" for kind, n in words.items()]
  return [f"  {title}: {some(words)}"] if words else []
