"""Every number that a file, a flag or a caller gives has a type and a range.

The walk goes over the fields of all that is made from outside, and of what is
inside them: so a new field without a range is found here.
"""

import dataclasses
import math
import types
import typing
from typing import Annotated

import numpy as np
import pytest

from marjax import schema
from marjax.convert.run import Choices
from marjax.data.latent_index import CacheSettings, Index
from marjax.data.latent_index import Choices as CacheChoices
from marjax.evaluate.saved import Saving
from marjax.evaluate.scores.options import Options
from marjax.evaluate.seen import Taken
from marjax.experiment import Experiment
from marjax.head.reverse import ReverseSettings
from marjax.release.card import Manifest

ROOTS = (
  *(Experiment, Manifest, CacheSettings, Index),
  *(ReverseSettings, Choices, CacheChoices),
  *(Saving, Taken, Options),
)


def inner(hint) -> list:
  """The types that a type is made of, itself if it is plain."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType, tuple, dict):
    return [one for arg in args if arg is not Ellipsis for one in inner(arg)]
  kinds = schema.options(hint)
  if kinds != (hint,):
    return [one for kind in kinds for one in inner(kind)]
  return [hint]


def walk(cls: type, fields: dict) -> dict:
  """Adds (class, field) → its types, of a dataclass and those inside it."""
  hints = typing.get_type_hints(cls, include_extras=True)
  for field in dataclasses.fields(cls):
    if (cls, field.name) not in fields:
      fields[cls, field.name] = parts = inner(hints[field.name])
      for part in filter(dataclasses.is_dataclass, parts):
        walk(part, fields)
  return fields


FIELDS: dict = {}
for root in ROOTS:
  walk(root, FIELDS)

NUMBERS = {
  f"{cls.__name__}.{name}": (name, part)
  for (cls, name), parts in FIELDS.items()
  for part in parts
  if typing.get_origin(part) is Annotated
}


def test_every_number_has_a_range():
  bare = [
    f"{cls.__name__}.{name}"
    for (cls, name), parts in FIELDS.items()
    if any(part in (int, float) for part in parts)
  ]
  assert bare == []
  assert len(NUMBERS) > 60


def test_every_one_of_them_checks_its_fields():
  for cls in {cls for cls, _ in FIELDS}:
    with pytest.raises(ValueError, match="not_a_field is not a known key"):
      cls(not_a_field=1)


def test_defaults_lie_inside():
  for cls in {cls for cls, _ in FIELDS}:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
      if field.default is not dataclasses.MISSING:
        one_field(field.name, hints[field.name])(field.default)


def one_field(name: str, hint):
  """A config of that field alone."""
  return schema.config(type("One", (), {"__annotations__": {name: hint}}))


def outside(base: type, allowed: schema.Range) -> list:
  """Numbers just below and just above."""
  step = 1 if base is int else None
  low, high = allowed.low, allowed.high
  numbers = []
  if low > -math.inf:
    below = low - step if step else math.nextafter(low, -math.inf)
    numbers.append(low if allowed.is_open else below)
  if high < math.inf:
    above = high + step if step else math.nextafter(high, math.inf)
    numbers.append(high if allowed.is_below else above)
  return [base(number) for number in numbers]


@pytest.mark.parametrize(("name", "hint"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_is_held_against_its_range(name, hint):
  base, allowed = typing.get_args(hint)
  One = one_field(name, hint)
  for bad in outside(base, allowed):
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected .*\.$"):
      One(bad)
  for bad in (math.nan, math.inf, -math.inf, "3", True, [3], {}, None, 10**400):
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected .*\.$"):
      One(bad)
  if base is int:
    with pytest.raises(
      ValueError, match=rf"^{name} is 1.5 \(float\); expected"
    ):
      One(1.5)


@pytest.mark.parametrize(("name", "hint"), NUMBERS.values(), ids=NUMBERS)
def test_what_lies_inside_is_taken(name, hint):
  base, allowed = typing.get_args(hint)
  low = max(allowed.low, -1e6)
  inside = base(low + 1 if allowed.is_open and base is int else low)
  if base is float and allowed.is_open:
    inside = math.nextafter(low, math.inf)
  for number in (
    inside,
    np.float64(inside) if base is float else np.int64(inside),
  ):
    taken = getattr(one_field(name, hint)(number), name)
    assert taken == inside
    assert type(taken) is base
