"""Mappings to dataclasses, JSON files, settings: what is said of bad ones."""

import dataclasses

import numpy as np
import pytest
import small

from marjax import Settings, schema
from marjax.experiment import Experiment
from marjax.release.card import Card
from marjax.release.json_files import read_json, write_json
from marjax.schema import from_dict, to_dict

GOOD = to_dict(small.EXPERIMENT)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({1: 2}, r"config\.1 is not a known key; Known: name, "),
    ({"codec": 3}, r"config\.codec is 3; expected a mapping"),
    (
      {"codec": {"kind": [1]}},
      r"codec\.kind is \[1\] \(list\); expected one of",
    ),
    (
      {"codec": {"kind": "jpeg"}},
      r"codec\.kind is 'jpeg'; expected one of pix",
    ),
    ({"data": [1]}, r"config\.data is \[1\] \(list\); expected a mapping"),
    (
      {"mesh": {"preset": [1]}},
      r"mesh\.preset is \[1\] \(list\); expected one",
    ),
    ({"name": None}, r"config\.name is None; expected text"),
    ({"name": 3}, r"config\.name is 3; expected text"),
    ({"seed": True}, r"config\.seed is True \(bool\); expected a whole number"),
    ({"seed": 2**32}, r"config\.seed is 4294967296; expected 0 to 4294967295"),
    ({"seed": 10**5000}, r"config\.seed is about 10\^5000; expected 0 to"),
    ({"x\x1b[2Jy": 1}, r"config\.x\\x1b\[2Jy is not a known key"),
    (
      {"sampling": {"num_ar_steps": 17}},
      r"sampling\.num_ar_steps is 17; expected 1 to 16, because each step rev",
    ),
    (
      {"training": {"batch_size": 16, "num_steps": 4, "lr": 1}},
      r"training\.lr is not a known key; did you mean learning_rate\? Known",
    ),
  ],
)
def test_a_mapping_that_does_not_fit(change, message):
  with pytest.raises(ValueError, match=message) as told:
    from_dict(Experiment, {**GOOD, **change}, "config")
  assert len(str(told.value)) < 600
  assert str(told.value).isprintable()


@pytest.mark.parametrize(
  "make",
  [
    lambda: dataclasses.replace(small.MODEL, head=small.EXPERIMENT.codec),
    lambda: Settings(head=small.EXPERIMENT.codec),
  ],
)
def test_a_part_in_the_place_of_another_is_refused(make):
  words = (
    r"^head is PixelsConfig.*; expected a mapping, or a config of kind dif"
  )
  with pytest.raises(ValueError, match=words):
    make()


@pytest.mark.parametrize(
  "value", ["x" * 10**6, list(range(10**6)), [[[]]] * 99]
)
def test_a_message_is_short_however_large_the_value(value):
  with pytest.raises(ValueError, match=r"config\.seed is .*; expected") as told:
    from_dict(Experiment, {**GOOD, "seed": value}, "config")
  assert len(str(told.value)) < 300


def test_a_card_of_more_steps_than_tokens_is_refused():
  with pytest.raises(ValueError, match=r"best\.num_ar_steps is 64; expected 1"):
    small.card(presets={"best": Settings(num_ar_steps=64)})
  assert isinstance(small.card(), Card)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"cfg": 3}, "cfg is not a known key; did you mean guidance_scale"),
    ({"num_ar_step": 3}, "num_ar_step is not .*; did you mean num_ar_steps"),
    ({"guidance_scale": "3"}, "guidance_scale is '3'; expected a number"),
    (
      {"guidance_scale": 1e6},
      r"guidance_scale is 1000000.0; expected 0 to 1000",
    ),
    ({"num_ar_steps": 1.5}, r"num_ar_steps is 1.5 \(float\); expected a whole"),
    ({"temperature": float("nan")}, "temperature is nan; expected a finite"),
    (
      {"guidance_schedule": "cosine"},
      "guidance_schedule is 'cosine'; expected one of 'linear', 'c",
    ),
    ({"num_buckets": 0}, "num_buckets is 0; expected 1 to"),
    ({"num_ar_steps": 0}, "is 0; expected 1 to 1024, and at most one for each"),
  ],
)
def test_settings_that_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    Settings(**fields)


def test_settings_by_their_place_are_held_to_the_same():
  with pytest.raises(
    ValueError, match="num_ar_steps is 'quick'; expected a wh"
  ):
    Settings("quick")


def test_settings_take_numbers_of_any_kind_and_say_what_is_set():
  settings = Settings(num_ar_steps=np.int64(4), guidance_scale=3)
  assert settings == Settings(4, guidance_scale=3.0)
  assert hash(settings) == hash(Settings(4, guidance_scale=3.0))
  assert repr(settings) == "Settings(num_ar_steps=4, guidance_scale=3.0)"
  assert repr(Settings()) == "Settings()"


def test_a_small_model_has_as_many_steps_as_tokens():
  large = dataclasses.replace(small.MODEL.backbone, num_tokens=256)
  large = dataclasses.replace(small.MODEL, backbone=large)
  assert Settings().for_model(small.MODEL).num_ar_steps == 16
  assert Settings().for_model(large).num_ar_steps == 64
  with pytest.raises(ValueError, match="num_ar_steps is 20; expected 1 to 16"):
    Settings(num_ar_steps=20).for_model(small.MODEL)


def test_json_comes_back():
  mapping = {"a": [1.5, None, "é\udc80"], "b": {"c": True}}
  assert read_json(write_json(mapping), "x") == mapping
  assert read_json(b'{"by hand": 1}', "x") == {"by hand": 1}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (write_json({"a": 1.5}).replace(b"1.5", b"1.6"), "was changed or damaged"),
    (b"\xff", "is no JSON text"),
    (b'{"a": NaN}', r"is no JSON text \(NaN is no number\)"),
    (b"[1]", "holds no JSON mapping"),
    (b"[" * 10**5, "is no JSON text"),
    (b'{"a":' * 70 + b"1" + b"}" * 70, "is nested more than 64 deep"),
    (b"9" * 5000, "is no JSON text"),
    (b'{"a": 1, "a": 2}', "a key stands twice"),
  ],
)
def test_json_that_is_none_or_was_changed(content, message):
  with pytest.raises(ValueError, match=rf"x\.json {message}|{message}") as told:
    read_json(content, "x.json")
  assert "x.json" in str(told.value)


def test_every_flip_of_a_bit_is_seen_or_changes_nothing():
  mapping = {"a": {"b": [1, 2.5e-3, "text", None, True]}, "c": "d"}
  content = write_json(mapping)
  for bit in range(8 * len(content)):
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
      read = read_json(bytes(flipped), "x.json")
    except ValueError:
      continue
    # Only the name of the hash's key can go unseen here: then it is one more
    # key, which from_dict refuses.
    assert read == mapping or len(read) == 3


def test_a_config_says_which_argument_is_missing():
  @schema.config
  class One:
    """A field."""

    number: schema.Size

  with pytest.raises(
    ValueError, match=r"One: missing a required argument: 'num"
  ):
    One()
