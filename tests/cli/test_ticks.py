"""Long stages say that they go on, and stop saying so."""

import logging
import time

import pytest

from marjax import ticks
from marjax.requests import batching


def test_a_long_stage_logs_its_seconds(caplog):
  caplog.set_level(logging.INFO, "marjax")
  with ticks.ticking("compiling", every=0.4):
    time.sleep(1.4)  # as a compiler that holds no lock
  assert caplog.messages[0] == "compiling: 0 s"
  assert caplog.messages[-1] == "compiling: 1 s"
  caplog.clear()
  time.sleep(0.6)
  assert caplog.messages == []


def test_a_short_stage_says_nothing(caplog):
  caplog.set_level(logging.INFO, "marjax")
  with ticks.ticking("compiling"):
    pass
  assert caplog.messages == []


def test_a_stage_that_fails_ends_its_ticks(caplog):
  with pytest.raises(KeyboardInterrupt), ticks.ticking("loading", every=0.01):
    raise KeyboardInterrupt
  caplog.set_level(logging.INFO, "marjax")
  time.sleep(0.1)
  assert caplog.messages == []


def test_the_time_of_a_bar_goes_on_while_it_compiles(capsys):
  with batching._bar(8, is_shown=True) as bar:
    bar.set_description("compiling")
    time.sleep(2.3)
  shown = capsys.readouterr().err
  assert "compiling:   0%" in shown
  assert "[00:01<" in shown
  assert "[00:02<" in shown


def test_a_hidden_bar_stays_hidden(capsys):
  with batching._bar(8, is_shown=False):
    time.sleep(1.2)
  assert capsys.readouterr().err == ""
