"""Long stages say that they go on, and stop saying so."""

import logging
import time

import pytest

from marjax import ticks
from marjax.requests import batching


@pytest.fixture
def quickly(monkeypatch):
  monkeypatch.setattr(ticks, "EVERY", 0.4)


def test_a_long_stage_logs_its_seconds(caplog, quickly):
  caplog.set_level(logging.INFO, "marjax")
  with ticks.ticking("compiling"):
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


def test_short_stages_are_not_silent_together(caplog, quickly):
  caplog.set_level(logging.INFO, "marjax")
  with ticks.ticking("training"):
    for stage in ("making", "compiling"):
      with ticks.ticking(stage):
        time.sleep(0.3)
    time.sleep(0.5)
  told = [message.partition(":")[0] for message in caplog.messages]
  assert told[0] == "compiling"
  assert set(told[1:]) == {"training"}


def test_what_is_written_is_no_silence(caplog, quickly):
  caplog.set_level(logging.INFO, "marjax")
  with ticks.ticking("training", lambda: "step 3/9"):
    for _ in range(5):
      time.sleep(0.2)
      ticks.heard()
    assert caplog.messages == []
    time.sleep(0.6)
  assert caplog.messages == ["step 3/9"]


def test_a_stage_that_fails_ends_its_ticks(caplog, quickly):
  with pytest.raises(KeyboardInterrupt), ticks.ticking("loading"):
    raise KeyboardInterrupt
  caplog.set_level(logging.INFO, "marjax")
  time.sleep(0.6)
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
