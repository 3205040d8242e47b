"""What a person reads who called something wrongly: one sentence."""

import pytest


def refuses(call, message: str) -> None:
  """It is a ValueError of one line, with a full stop, and that message."""
  with pytest.raises(ValueError, match=message) as error:
    call()
  said = str(error.value)
  assert said.endswith(".")
  assert "\n" not in said
  assert len(said) < 500
