"""The table engine: exact filling, and each error names the key."""

import re

import jax
import numpy as np
import pytest

from marjax.convert.mar import RULES
from marjax.convert.table import ConversionError, Rule, convert, transposed

TARGET = {
  "a": {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32)},
  "stack": {"bias": jax.ShapeDtypeStruct((2, 4), np.float32)},
}
TABLE = (
  Rule(r"a\.weight", "a/kernel", transposed),
  Rule(r"layers\.(?P<layer>\d+)\.bias", "stack/bias"),
)


def source() -> dict:
  return {
    "a.weight": np.arange(6.0).reshape(3, 2),
    "layers.0.bias": np.zeros(4),
    "layers.1.bias": np.ones(4),
  }


def test_every_number_lands_where_the_table_says():
  filled = convert(TABLE, source(), TARGET)
  np.testing.assert_array_equal(filled["a"]["kernel"], [[0, 2, 4], [1, 3, 5]])
  np.testing.assert_array_equal(filled["stack"]["bias"].sum(1), [0, 4])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"stranger": np.zeros(1)}, r"stranger is matched by 0 rules"),
    ({"layers.7.bias": np.zeros(4)}, r"stack/bias \(layer 7\), which the"),
    ({"layers.1.bias": None}, r"stack/bias \(layers \[1\]\) is not filled"),
    ({"a.weight": None}, r"a/kernel is not filled"),
    ({"a.weight": np.zeros((3, 3))}, r"a\.weight has shape \(3, 3\)"),
    # As many numbers, but [in, out].
    ({"a.weight": np.zeros((2, 3))}, r"a\.weight has shape \(2, 3\)"),
    ({"layers.0.bias": np.zeros((2, 2))}, r"layers\.0\.bias has shape"),
  ],
)
def test_what_does_not_fit_is_named(change, message):
  arrays = {
    name: array
    for name, array in {**source(), **change}.items()
    if array is not None
  }
  with pytest.raises(ConversionError, match=message):
    convert(TABLE, arrays, TARGET)


def test_a_name_matched_by_two_rules_is_refused():
  rules = (*TABLE, Rule(r"a\..*", "a/kernel"))
  with pytest.raises(ConversionError, match=r"a\.weight is matched by 2 rules"):
    convert(rules, source(), TARGET)


def test_a_slot_filled_twice_is_refused():
  rules = (*TABLE, Rule("again", "a/kernel", transposed))
  arrays = {**source(), "again": np.zeros((3, 2))}
  with pytest.raises(
    ConversionError, match="a/kernel is filled twice, by again"
  ):
    convert(rules, arrays, TARGET)


def test_an_unknown_target_is_refused():
  rules = (*TABLE, Rule("other", "b/kernel"))
  arrays = {**source(), "other": np.zeros(1)}
  with pytest.raises(ConversionError, match="other goes to b/kernel, which"):
    convert(rules, arrays, TARGET)


def test_every_published_name_matches_exactly_one_rule(golden):
  for name in golden("weights_model.npz"):
    matches = [rule for rule in RULES if re.fullmatch(rule.pattern, name)]
    assert len(matches) == 1, name
