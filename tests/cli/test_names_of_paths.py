"""What a name of a path may be: what is there, and what could be there."""

from pathlib import Path

import pytest

from marjax import outputs


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("", "is no path"),
    (" \n", "is no path"),
    (None, "None is no path"),
    (b"run", "is no path"),
    (3, "3 is no path"),
    ("a\0b", r"a\\x00b can be no path"),
    ("\ud800", "can be no path"),
    ("run\n", r"'run\\n' begins or ends in a space"),
    (" run", "begins or ends in a space"),
    ("r\x1b[2Jn", r"\\x1b.* control character"),
    ("$HOME/run", r"names \$HOME, a variable"),
    ("a/${RUN}", r"names \$\{RUN\}, a variable"),
    ("a/" + "b" * 256, "a name of 256 bytes"),
    ("é" * 128, "a name of 256 bytes"),
    ("file:///run", "on file://, which"),
    ("~nobody-of-that-name/run", "home folder that is unknown"),
  ],
)
def test_what_is_no_path_is_one_sentence(name, message):
  with pytest.raises(ValueError, match=message) as told:
    outputs.path_of(name)
  assert str(told.value).isprintable()


def test_odd_names_of_files_that_are_there(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("two words", " a ", "$HOME", "-x", "é", "a~", "b" * 255, "~"):
    Path(name).write_text("")
    path = outputs.path_of(name if name != "~" else "./~")
    assert path.samefile(tmp_path / name)
    assert outputs.path_of(path) == path, "a path comes through again"


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_none(home, monkeypatch):
  monkeypatch.setenv("HOME", home)
  with pytest.raises(ValueError, match="expected HOME to name one"):
    outputs.path_of("~/run")


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\u202eb", "a\u2028b", "a\rb"])
def test_what_a_terminal_would_obey_is_shown(text):
  assert outputs.shown(text).startswith("a\\")
  assert outputs.shown("née 日本 a\u00a0b") == "née 日本 a\u00a0b"
