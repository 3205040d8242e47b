"""Which characters of a font become which class."""

import pytest

from experiments import emoji


@pytest.mark.parametrize(
  ("character", "kind"),
  [
    ("😀", "round faces"),
    ("🤗", "round faces"),
    ("🤭", None),  # with a hand before it
    ("😺", None),
    ("🤖", None),
    ("🥰", "round faces"),  # with hearts
    ("🕐", "clocks"),
    ("⏱", "clocks"),
    ("💔", "hearts"),
    ("🫶", "hearts"),  # of hands
    ("💑", None),
    ("A", None),
  ],
)
def test_a_character_has_the_class_that_one_sees(character, kind):
  assert emoji.class_of(ord(character)) == kind
