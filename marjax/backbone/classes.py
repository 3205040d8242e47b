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
import reprlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from marjax.arrays import count
from marjax.schema import check

NO_CLASS = -1
"""The integer that means "no class"."""

_WNID = re.compile(r"n\d{8}\Z")
_DECIMAL = re.compile(r"[+-]?[0-9]+\Z")
EXPECTED = "expected a list with one class per image"

_NEAR = 3  # classes suggested by a message


@functools.cache
def imagenet() -> tuple[str, ...]:
  """The 1000 entries of ImageNet-1k, e.g. 207: "n02099601 golden retriever"."""
  path = resources.files("marjax.backbone").joinpath("imagenet_classes.txt")
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
  classes = [_class_of(label, entries, num_classes) for label in listed]
  wrong = [i for i, number in enumerate(classes) if number is None]
  if wrong:
    i = wrong[0]
    shown = reprlib.repr(listed)
    which = f", but labels[{i}] is {listed[i]!r}" if len(listed) > 1 else ""
    raise ValueError(
      f"labels {shown} are not all classes of this model; expected"
      f" {_numbers(num_classes)}, in a list with one class per image{which}."
    )
  return classes


def one_each(
  labels: Any,
  num_images: Any,
  class_names: Sequence[str],
  num_classes: int,
) -> list[int]:
  """The class of every image, -1 for no class.

  Args:
    labels: see `resolve`; None for `num_images` images without a class.
    num_images: how many; with one label, that many of it; with several, None
      or their count.

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
  classes = resolve(labels, class_names, num_classes)
  if len(classes) == 1:
    return classes * (num_images or 1)
  check(
    num_images in (None, len(classes)),
    f"there are {len(classes)} labels and num_images is {num_images};"
    f" {EXPECTED}.",
  )
  return classes


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


def matches(
  class_names: Sequence[str], others: Sequence[str]
) -> tuple[int, ...]:
  """For each class the one of `others` that is called the same, -1 for none.

  Entries as in the module's docstring: a whole one, its id or a synonym may be
  the same; a name that several others have is nobody's.
  """
  index = _index(tuple(others))

  def of(entry: str) -> int:
    wnid, synonyms = _parsed(entry)
    for name in (_fold(entry), wnid, *map(_fold, synonyms)):
      if name and len(index.get(name, ())) == 1:
        return index[name][0]
    return NO_CLASS

  return tuple(map(of, class_names))


def _listed(labels: Any) -> list:
  """Labels as a list that is not empty."""
  if hasattr(labels, "ndim") and hasattr(labels, "tolist"):
    check(
      labels.ndim < 2, f"labels has shape {tuple(labels.shape)}; {EXPECTED}."
    )
    labels = labels.tolist()
  if isinstance(labels, str | int | float):
    return [labels]
  is_list = isinstance(labels, Sequence) and not isinstance(labels, bytes)
  check(
    is_list and len(labels) > 0,
    f"labels is {reprlib.repr(labels)}; {EXPECTED}.",
  )
  return list(labels)


def _numbers(num_classes: int) -> str:
  if num_classes == 0:
    return "-1 for no class, because the model has no classes"
  return f"integers in 0 .. {num_classes - 1}, or -1 for no class"


def _class_of(
  label: Any, entries: tuple[str, ...], num_classes: int
) -> int | None:
  """The integer of a label; None if it is neither a class nor a name."""
  number = NO_CLASS if label is None else label
  if isinstance(label, str):
    text, named = label.strip(), _index(entries).get(_fold(label), [])
    if text.casefold() == "none":
      number = NO_CLASS
    elif _DECIMAL.match(text):
      number = int(text)
    else:
      return _only(label, named, entries, num_classes)
    others = [i for i in named if i != number]
    meaning = "no class" if number == NO_CLASS else f"class {number}"
    check(
      not others,
      f"label {label!r} means {meaning}, but is also the name of"
      f" {_described(others, entries)}; give the integer instead of a string.",
    )
  try:
    index = None if isinstance(number, bool) else operator.index(number)
  except TypeError:
    return None
  is_class = index is not None and NO_CLASS <= index < num_classes
  return index if is_class else None


def _only(
  label: str, named: list[int], entries: tuple[str, ...], num_classes: int
) -> int:
  """The one class of that name."""
  check(
    num_classes > 0,
    f"label {label!r} is the name of a class, and this model has none; expected"
    " none: leave labels out.",
  )
  if len(named) == 1:
    return named[0]
  check(
    not named,
    f"label {label!r} is the name of {len(named)} classes,"
    f" {_described(named, entries)}; give the integer of the one you mean.",
  )
  numbers = _numbers(num_classes)
  check(
    bool(entries),
    f"label {label!r} is a name, but no names are known for the classes of"
    f" this model; give {numbers}.",
  )
  near = " or ".join(f"{name} ({i})" for i, name in _near(label, entries))
  meant = f" did you mean {near}? Expected" if near else " expected"
  ids = " a WordNet id," * any(_parsed(entry)[0] for entry in entries)
  raise ValueError(
    f"label {label!r} names no class of this model;{meant} a"
    f" class name,{ids} {numbers}."
  )


def _described(classes: list[int], entries: tuple[str, ...]) -> str:
  return " and ".join(f"{i} ({entries[i]})" for i in classes)


def _near(label: str, entries: tuple[str, ...]) -> list[tuple[int, str]]:
  """Up to three classes, each with the name that is near.

  First names that have all of it, as words or in a word, the shortest first;
  then names that are spelt much alike; then names that have its longest word.
  """
  folded, named = _fold(label), dict[str, tuple[int, str]]()
  for i, entry in enumerate(entries):
    for name in _parsed(entry)[1]:
      named.setdefault(_fold(name), (i, name))
  ordered = sorted(named, key=len)
  word = max(folded.split(), key=len, default="")
  near: dict[int, str] = {}
  for name in (
    *(name for name in ordered if f" {folded} " in f" {name} "),
    *(name for name in ordered if folded in name and len(folded) > 2),
    *difflib.get_close_matches(folded, ordered, n=_NEAR, cutoff=0.7),
    *(name for name in ordered if word in name.split() and len(word) > 2),
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
