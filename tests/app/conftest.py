"""gradio makes event loops that it never closes; here they are closed."""

import asyncio
import contextlib

import pytest


@contextlib.contextmanager
def closing_loops():
  loops, make = [], asyncio.new_event_loop

  def new_event_loop():
    loops.append(make())
    return loops[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(asyncio, "new_event_loop", new_event_loop)
    yield
  if loops:
    asyncio.set_event_loop(None)
  for loop in loops:
    loop.close()


@pytest.fixture(autouse=True)
def loops_are_closed():
  with closing_loops():
    yield


with closing_loops():
  import gradio
assert gradio
