"""Flags declared by a text are what argparse makes of them."""

import argparse

import pytest

from marjax.cli import flags

TEXT = """
--config FILE.py[:VARIANT], required
  what to train; 100% of it
--seed N, default 0
  a whole number,
  in two lines
--scale X
  a number
--dtype float32|bfloat16
  a word
--topology KIND:AxB|here
  any text
--overwrite
  a flag without a value
"""


@pytest.fixture
def parser():
  parser = argparse.ArgumentParser()
  flags.add(parser, TEXT)
  return parser


def test_what_is_left_out_has_its_default(parser):
  args = vars(parser.parse_args(["--config", "a.py"]))
  assert args == {
    "config": "a.py",
    "seed": 0,
    "scale": None,
    "dtype": None,
    "topology": None,
    "overwrite": False,
  }


def test_values_have_their_types(parser):
  command = "--config a --seed 3 --scale .5 --dtype float32 --topology v5e:2x2"
  args = parser.parse_args([*command.split(), "--overwrite"])
  assert (args.seed, args.scale, args.dtype) == (3, 0.5, "float32")
  assert (args.topology, args.overwrite) == ("v5e:2x2", True)


@pytest.mark.parametrize(
  ("command", "reason"),
  [
    ("--seed 1", "required: --config"),
    (
      "--config a --seed x",
      "argument --seed: it is 'x'; expected a whole number",
    ),
    ("--config a --scale x", "argument --scale: it is 'x'; expected a number"),
    ("--config a --dtype f16", "argument --dtype: invalid choice"),
  ],
)
def test_wrong_ones_are_refused(parser, command, reason, capsys):
  with pytest.raises(SystemExit):
    parser.parse_args(command.split())
  assert reason in capsys.readouterr().err


def test_the_help_is_the_text(parser):
  text = " ".join(parser.format_help().split())
  assert "--config FILE.py[:VARIANT] what to train; 100% of it" in text
  assert "--seed N a whole number, in two lines (default: 0)" in text
  assert "--dtype {float32,bfloat16} a word" in text
