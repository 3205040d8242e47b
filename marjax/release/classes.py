"""Classes by name: what a person calls a class to the integer a model takes.

1. An entry describes one class by an optional WordNet id and its synonyms:
   "n02099601 golden retriever", "cat, kitty". Entry i is class i.
2. Names are compared after folding: lower case, no full stops or apostrophes,
   and spaces, underscores, hyphens and commas alike.
3. A label is an integer, a decimal string, a synonym, an id or a whole entry;
   -1, None and "none" are no class.
4. What fits no class is answered with near misses, what fits several with all
   of them: nothing is guessed.

`imagenet` are the 1000 classes of ImageNet-1k in the order of their WordNet
ids, the order in which released models and data sets count them.
"""

import difflib
import functools
import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from marjax.arguments import count
from marjax.schema import check

NO_CLASS = -1
"""The integer that means "no class"."""

_WNID = re.compile(r"n\d{8}\Z")
_DECIMAL = re.compile(r"[+-]?[0-9]+\Z")
_SHOWN = 6  # labels quoted by a message
_NEAR = 3  # classes suggested by a message


@functools.cache
def imagenet() -> tuple[str, ...]:
  """The 1000 entries of ImageNet-1k, e.g. 207: "n02099601 golden retriever"."""
  path = resources.files("marjax.release").joinpath("imagenet_classes.txt")
  return tuple(path.read_text(encoding="utf-8").splitlines())


def resolve(
  labels: Any, class_names: Sequence[str], num_classes: int
) -> list[int]:
  """The integer of every label.

  Args:
    labels: a list or 1-D array with one class per image: integers, names or
      None, also mixed. A single integer or string is a list of one; a string
      is never split, because entries have commas.
    class_names: one entry per class (see the module), or none at all.
    num_classes: classes of the model.

  Returns:
    Integers in -1 .. num_classes - 1, where -1 is no class.

  Raises:
    ValueError: an unknown or shared name, an integer out of range, a label of
      another type, an empty or nested list, or entries of the wrong count.
  """
  check(
    len(class_names) in (0, num_classes),
    f"class_names has {len(class_names)} entries; expected {num_classes}, one"
    " for each class of the model, or none.",
  )
  listed, entries = _listed(labels), tuple(class_names)
  return [_resolve(listed, i, entries, num_classes) for i in range(len(listed))]


def one_each(
  labels: Any,
  num_images: Any,
  class_names: Sequence[str],
  num_classes: int,
) -> list[int]:
  """The class of every image, -1 for no class.

  Args:
    labels: see `resolve`; None for `num_images` images without a class.
    num_images: how many; with labels, None or their count.

  Raises:
    ValueError: as `resolve`; or the counts do not fit.
  """
  num_images = count(num_images, "num_images")
  if labels is None:
    check(
      num_images is not None,
      "labels is None; give num_images, 1 or more, to generate without"
      " classes.",
    )
    return [NO_CLASS] * num_images
  found = resolve(labels, class_names, num_classes)
  check(
    num_images in (None, len(found)),
    f"there are {len(found)} labels and num_images is {num_images}; expected a"
    " list with one class per image.",
  )
  return found


def name_of(label: Any, class_names: Sequence[str]) -> str:
  """A short name for display: the first synonym of the label's entry.

  "none" for -1 and None, and the number itself where no entry is known.
  """
  label = NO_CLASS if label is None else operator.index(label)
  if label == NO_CLASS:
    return "none"
  if not 0 <= label < len(class_names):
    return str(label)
  wnid, synonyms = _parsed(class_names[label])
  return synonyms[0] if synonyms else wnid or str(label)


def _listed(labels: Any) -> list:
  """Labels as a flat list that is not empty."""
  is_array = hasattr(labels, "ndim") and hasattr(labels, "tolist")
  if is_array and labels.ndim < 2:
    labels = labels.tolist()
  elif is_array:
    raise ValueError(
      f"labels has shape {tuple(labels.shape)}; expected a list with one class"
      " per image."
    )
  if isinstance(labels, str | int | float):
    return [labels]
  is_list = isinstance(labels, Sequence) and not isinstance(labels, bytes)
  if not is_list or not labels or any(map(_is_nested, labels)):
    raise ValueError(
      f"labels is {_shown(labels)}; expected a list with one class per image."
    )
  return list(labels)


def _is_nested(label: Any) -> bool:
  if isinstance(label, str | bytes):
    return False
  return isinstance(label, Iterable) and getattr(label, "ndim", 1) > 0


def _shown(labels: Any) -> str:
  """The labels, or the first few of many."""
  if not isinstance(labels, list | tuple) or len(labels) <= _SHOWN:
    return repr(labels)
  return f"[{', '.join(map(repr, labels[:_SHOWN]))}, ...]"


def _expected(num_classes: int) -> str:
  if num_classes == 0:
    return "-1 for no class, because the model has no classes"
  return f"integers in 0 .. {num_classes - 1}, or -1 for no class"


def _resolve_number(labels: list, i: int, number: Any, num_classes: int) -> int:
  """`number`, what label i stands for, if the model has such a class."""
  try:
    index = None if isinstance(number, bool) else operator.index(number)
  except TypeError:
    index = None
  if index is None or not NO_CLASS <= index < num_classes:
    which = f", but labels[{i}] is {labels[i]!r}" if len(labels) > 1 else ""
    raise ValueError(
      f"labels {_shown(labels)} are not all classes of this model; expected"
      f" {_expected(num_classes)}{which}."
    )
  return index


def _resolve(
  labels: list, i: int, entries: tuple[str, ...], num_classes: int
) -> int:
  """The integer of label i."""
  label = labels[i]
  if not isinstance(label, str):
    number = NO_CLASS if label is None else label
    return _resolve_number(labels, i, number, num_classes)
  found = _index(entries).get(_fold(label), [])
  number = _number(label)
  if number is None:
    return _resolve_name(label, found, entries, num_classes)
  others = [k for k in found if k != number]
  if others:
    meaning = "no class" if number == NO_CLASS else f"class {number}"
    raise ValueError(
      f"label {label!r} means {meaning}, but is also the name of"
      f" {_described(others, entries)}; give the integer instead of a string."
    )
  return _resolve_number(labels, i, number, num_classes)


def _number(label: str) -> int | None:
  """What a string means whatever the classes are called."""
  label = label.strip()
  if label.casefold() == "none":
    return NO_CLASS
  return int(label) if _DECIMAL.match(label) else None


def _resolve_name(
  label: str, found: list[int], entries: tuple[str, ...], num_classes: int
) -> int:
  """The one class in `found`, those of that name."""
  if len(found) == 1:
    return found[0]
  if found:
    raise ValueError(
      f"label {label!r} is the name of {len(found)} classes,"
      f" {_described(found, entries)}; give the integer of the one you mean."
    )
  if not entries:
    raise ValueError(
      f"label {label!r} is a name, but no names are known for the classes of"
      f" this model; give {_expected(num_classes)}."
    )
  near = [f"{name} ({i})" for i, name in _near(_fold(label), entries)]
  has_ids = any(_parsed(entry)[0] for entry in entries)
  raise ValueError(
    f"label {label!r} names no class of this model;"
    + (
      f" did you mean {_joined(near, 'or')}? Expected" if near else " expected"
    )
    + f" a class name,{' a WordNet id,' * has_ids} {_expected(num_classes)}."
  )


def _described(found: list[int], entries: tuple[str, ...]) -> str:
  return _joined([f"{i} ({entries[i]})" for i in found], "and")


def _joined(items: list[str], word: str) -> str:
  *first, last = items
  return f"{', '.join(first)} {word} {last}" if first else last


def _near(folded: str, entries: tuple[str, ...]) -> list[tuple[int, str]]:
  """Up to three classes, each with the name that is near.

  First names that have all words asked for, the shortest first; then names
  that the letters are part of, or that are spelt much alike; then names that
  have one of the words, the rarest word first.
  """
  words = set(folded.split())
  if not words or _WNID.match(folded):
    return []
  named: dict[str, tuple[int, str]] = {}
  for i, entry in enumerate(entries):
    for name in _parsed(entry)[1]:
      named.setdefault(_fold(name), (i, name))
  ordered = sorted(named, key=lambda name: len(name.split()))
  long = {word for word in words if len(word) > 2}
  count = Counter(word for name in ordered for word in long & {*name.split()})
  rarest = {
    name: min(count[word] for word in long & {*name.split()})
    for name in ordered
    if long & {*name.split()}
  }
  near: dict[int, str] = {}
  for name in (
    *(name for name in ordered if words <= {*name.split()}),
    *(name for name in ordered if folded in name and folded in long),
    *difflib.get_close_matches(folded, ordered, n=_NEAR, cutoff=0.7),
    *sorted(rarest, key=rarest.get),
  ):
    near.setdefault(*named[name])
  return list(near.items())[:_NEAR]


def _fold(name: str) -> str:
  without = re.sub(r"[.'’]", "", name.casefold())
  return re.sub(r"[\s_,-]+", " ", without).strip()


def _parsed(entry: str) -> tuple[str, list[str]]:
  """WordNet id, empty if there is none, and synonyms of an entry."""
  first, _, rest = entry.strip().partition(" ")
  wnid, names = (first, rest) if _WNID.match(first) else ("", entry)
  return wnid, [name.strip() for name in names.split(",") if name.strip()]


@functools.lru_cache(maxsize=8)
def _index(entries: tuple[str, ...]) -> dict[str, list[int]]:
  """Folded synonym, id or entry → the classes that it names, in order."""
  index: dict[str, list[int]] = {}
  for i, entry in enumerate(entries):
    wnid, synonyms = _parsed(entry)
    names = {wnid, _fold(entry), _fold(",".join(synonyms))}
    for key in (names | set(map(_fold, synonyms))) - {""}:
      index.setdefault(key, []).append(i)
  return index
